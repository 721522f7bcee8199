// tensor.h: a view of a matrix of activations: rows are tokens, columns are features, heads are groups of columns.
//
// Never owns, copied freely. Two dimensions and a row stride are all that the graph needs.
#pragma once

#include <cstdint>

#include "core/error.h"

namespace gemmantle {

enum class DType : uint8_t { f32, bf16, f16, i32, i8 };

constexpr int64_t size_bytes(DType dtype) {
  return dtype == DType::i8 ? 1 : dtype == DType::bf16 || dtype == DType::f16 ? 2 : 4;
}

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements between the starts of two rows

  // Columns [first, first + n) of every row.
  Tensor columns(int64_t first, int64_t n) const {
    GEMMANTLE_CHECK(first >= 0 && n >= 0 && first + n <= cols, "columns ", first, "+", n, " of ", cols);
    return {static_cast<char*>(data) + first * size_bytes(dtype), dtype, rows, n, stride};
  }
  // Rows [first, first + n).
  Tensor slice(int64_t first, int64_t n) const {
    GEMMANTLE_CHECK(first >= 0 && n >= 0 && first + n <= rows, "rows ", first, "+", n, " of ", rows);
    return {static_cast<char*>(data) + first * stride * size_bytes(dtype), dtype, n, cols, stride};
  }
  float* row(int64_t r) const { return static_cast<float*>(data) + r * stride; }  // f32 only
};

}  // namespace gemmantle
