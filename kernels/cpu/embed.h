// embed.h: one row of a table of weights, widened and scaled.
#pragma once

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/linear.h"

namespace gemmantle::cpu {
namespace {

void embed(float* y, const WeightRows* table, int64_t row, float factor) {
  formats::with_format(table->format,
                       [&]<class F>() { widen<F>(table->data + row * table->row_bytes, 0, table->cols, y); });
  scale(y, y, nullptr, table->cols, factor);
}

}  // namespace
}  // namespace gemmantle::cpu
