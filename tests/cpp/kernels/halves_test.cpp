// Products of bf16 weights with x in bf16, on every instruction set that has them, against the same halves in plain
// loops.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/cpu_isa.h"
#include "kernels/common/float.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/encoded_rows.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using formats::FormatId;
using test::EncodedRows;
using test::multiply;
using test::product_args;
using test::Random;
using test::RandomWeight;

class HalvesTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!GetParam().usable()) GTEST_SKIP() << GetParam().missing();
    if (GetParam().kernels->halves == nullptr) GTEST_SKIP() << "no dot products of bf16 in this instruction set";
  }
  const cpu::CodedKernels& k() const { return *GetParam().kernels->halves; }
};

TEST_P(HalvesTest, products_are_those_of_the_halves_in_every_size) {
  Random random(35);
  for (const int64_t cols : {1, 2, 31, 32, 33, 63, 64, 100, 513, 1536, 1552, 5003}) {
    const int64_t outputs = cols == 100 ? 131 : cols == 513 ? 70 : 5;
    RandomWeight w(random, FormatId::bf16, outputs, cols, 1, static_cast<size_t>(cols % 4));
    for (const int64_t rows : {1, 2, 3, 4, 5, 9, 16, 17}) {
      const std::vector<float> x = random.normals(rows * cols);
      std::vector<float> y(static_cast<size_t>(rows * outputs));
      multiply(k(), product_args(y, rows, w.weight), EncodedRows(k(), x, cols), 0, outputs);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < outputs; ++o) {
          double want = 0, size = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const double half = bf16_to_f32(f32_to_bf16(x[static_cast<size_t>(r * cols + c)]));
            want += half * w.at(o, c);
            size += std::abs(half * w.at(o, c));
          }
          ASSERT_LE(std::abs(y[static_cast<size_t>(r * outputs + o)] - want), 1e-6 * size + 1e-30)
              << cols << " columns, " << rows << " rows: " << r << ", " << o;
        }
      }
    }
  }
}

TEST_P(HalvesTest, a_row_has_the_same_bits_alone_and_in_a_batch) {
  Random random(36);
  for (const int64_t cols : {95, 4000}) {
    const int64_t outputs = 67, rows = 19;
    RandomWeight w(random, FormatId::bf16, outputs, cols);
    const std::vector<float> x = random.normals(rows * cols);
    std::vector<float> all(static_cast<size_t>(rows * outputs)), part(all.size());
    multiply(k(), product_args(all, rows, w.weight), EncodedRows(k(), x, cols), 0, outputs);
    for (const int64_t n : {1, 2, 3, 4, 6}) {
      for (int64_t first = 0; first + n <= rows; first += n) {
        const std::vector<float> some(x.begin() + first * cols, x.begin() + (first + n) * cols);
        const EncodedRows few(k(), some, cols);
        multiply(k(), product_args(part, n, w.weight), few, 0, 30);
        multiply(k(), product_args(part, n, w.weight), few, 30, outputs);
        ASSERT_EQ(std::memcmp(part.data(), all.data() + first * outputs, static_cast<size_t>(4 * n * outputs)), 0)
            << cols << " columns: " << n << " rows from " << first;
      }
    }
  }
}

TEST_P(HalvesTest, what_is_not_finite_is_seen) {
  Random random(37);
  const int64_t cols = 70;
  RandomWeight w(random, FormatId::bf16, 3, cols);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x = random.normals(cols), y(3);
    x[69] = bad;
    multiply(k(), product_args(y, 1, w.weight), EncodedRows(k(), x, cols), 0, 3);
    for (const float value : y) EXPECT_FALSE(std::isfinite(value));
  }
}

INSTANTIATE_TEST_SUITE_P(isas, HalvesTest, ::testing::ValuesIn(cpu_isas().begin(), cpu_isas().end()),
                         [](const auto& isa) { return std::string(isa.param.name); });

}  // namespace
}  // namespace gemmantle
