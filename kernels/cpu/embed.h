// embed.h: one row of a table of weights, widened and scaled.
#pragma once

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/formats/decode.h"

namespace gemmantle::cpu {
namespace {

void embed(float* y, const WeightRows* table, int64_t row, float factor) {
  formats::decode_row(table->format, table->data + row * table->row_bytes, table->cols, y);
  scale(y, y, nullptr, table->cols, factor);
}

}  // namespace
}  // namespace gemmantle::cpu
