// weight.h: a matrix of weights in one format, already where its backend wants it.
//
// Not a Tensor on purpose: packed bytes cannot be handed to an element-wise op by mistake.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/format.h"

namespace gemmantle {

struct Weight {
  formats::FormatId format{};
  int64_t rows = 0;   // output features, of one matrix
  int64_t cols = 0;   // input features
  int32_t count = 1;  // matrices (experts) behind each other
  int64_t row_bytes = 0;
  const std::byte* data = nullptr;

  explicit operator bool() const { return data != nullptr; }
  const std::byte* row(int64_t r) const { return data + r * row_bytes; }
  // Rows [first, first + n) of each matrix seen as one matrix of its own; only for count == 1.
  Weight slice(int64_t first, int64_t n) const { return {format, n, cols, 1, row_bytes, row(first)}; }
  Weight expert(int32_t e) const { return {format, rows, cols, 1, row_bytes, data + e * rows * row_bytes}; }
};

}  // namespace gemmantle
