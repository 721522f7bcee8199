// encoded_rows.h: rows of x as the products of mode "fast" take them, and those products, for tests of kernel tables.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/weight.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle::test {

// Encoded rows, where the contract wants them: at multiples of 64 bytes.
class EncodedRows {
 public:
  EncodedRows(const cpu::CodedKernels& k, const std::vector<float>& x, int64_t cols) {
    const int64_t rows = static_cast<int64_t>(x.size()) / cols, row_bytes = (k.bytes(cols) + 63) / 64 * 64;
    memory_.assign(static_cast<size_t>(rows * row_bytes + 64), 0xaa);
    uint8_t* data = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
    for (int64_t r = 0; r < rows; ++r) k.encode(data + r * row_bytes, x.data() + r * cols, cols);
    rows_ = {data, row_bytes};
  }
  cpu::CodedRows rows() const { return rows_; }

 private:
  std::vector<uint8_t> memory_;
  cpu::CodedRows rows_;
};

inline cpu::LinearArgs product_args(std::vector<float>& y, int64_t rows, const Weight& w) {
  return {y.data(), nullptr, w.rows,
          0,        rows,    nullptr,
          nullptr,  nullptr, {w.format, reinterpret_cast<const uint8_t*>(w.data), w.row_bytes, w.cols}};
}

inline void multiply(const cpu::CodedKernels& k, const cpu::LinearArgs& a, const EncodedRows& x, int64_t first,
                     int64_t last) {
  std::vector<float> scratch(static_cast<size_t>(k.scratch(a.w.cols)));
  k.linear(&a, x.rows(), first, last, scratch.data());
}

}  // namespace gemmantle::test
