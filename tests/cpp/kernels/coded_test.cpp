// Products with 8-bit codes of x, on every instruction set that has them, against the same codes in plain loops.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/cpu_isa.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/encoded_rows.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using test::all_formats;
using test::EncodedRows;
using test::multiply;
using test::NamedFormat;
using test::product_args;
using test::Random;
using test::RandomWeight;

constexpr int64_t kGroup = 32;

// x as its codes say it: scale * code.
std::vector<float> rounded(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  for (size_t first = 0; first < x.size(); first += kGroup) {
    float most = 0;
    for (size_t i = first; i < first + kGroup; ++i) most = std::max(most, std::abs(x[i]));
    if (most == 0) continue;
    const float inverse = 127.0f / most, scale = most / 127.0f;
    for (size_t i = first; i < first + kGroup; ++i) out[i] = scale * std::nearbyint(x[i] * inverse);
  }
  return out;
}

class CodedTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!GetParam().usable()) GTEST_SKIP() << GetParam().missing();
    if (GetParam().kernels->coded == nullptr) GTEST_SKIP() << "no dot products of bytes in this instruction set";
  }
  const cpu::CodedKernels& k() const { return *GetParam().kernels->coded; }
};

TEST_P(CodedTest, products_are_those_of_the_codes_in_every_format_and_size) {
  Random random(31);
  for (const NamedFormat& format : all_formats()) {
    ASSERT_EQ(k().takes(format.id), format.group > 1) << format.name;
    if (format.group == 1) continue;
    for (const int64_t groups : {1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 40, 112}) {
      const int64_t cols = groups * kGroup;
      if (cols % format.group != 0) continue;
      const int64_t outputs = groups == 9 ? 131 : groups == 40 ? 70 : 5;
      RandomWeight w(random, format.id, outputs, cols, 1, static_cast<size_t>(groups % 4));
      for (const int64_t rows : {1, 2, 3, 4, 5, 9, 16, 21}) {
        const std::vector<float> x = random.normals(rows * cols), coded = rounded(x);
        std::vector<float> y(static_cast<size_t>(rows * outputs));
        multiply(k(), product_args(y, rows, w.weight), EncodedRows(k(), x, cols), 0, outputs);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t o = 0; o < outputs; ++o) {
            double want = 0, size = 0;
            for (int64_t c = 0; c < cols; ++c) {
              const double product = double{coded[static_cast<size_t>(r * cols + c)]} * w.at(o, c);
              want += product;
              size += std::abs(product);
            }
            ASSERT_LE(std::abs(y[static_cast<size_t>(r * outputs + o)] - want), 1e-6 * size + 1e-30)
                << format.name << ", " << cols << " columns, " << rows << " rows: " << r << ", " << o << ": "
                << y[static_cast<size_t>(r * outputs + o)] << " for " << want;
          }
        }
      }
    }
  }
}

// Alone, a few, up to sixteen and more are four ways through a kernel. Rows of 12 Ki columns are too long for the
// first-level cache to hold a few of x.
TEST_P(CodedTest, a_row_has_the_same_bits_alone_and_in_a_batch) {
  Random random(32);
  for (const NamedFormat& format : all_formats()) {
    if (format.group == 1) continue;
    for (const int64_t cols : {9 * 256, 48 * 256}) {
      const int64_t outputs = 67, rows = 37;
      RandomWeight w(random, format.id, outputs, cols);
      const std::vector<float> x = random.normals(rows * cols);
      std::vector<float> all(static_cast<size_t>(rows * outputs)), part(all.size());
      const EncodedRows codes(k(), x, cols);
      multiply(k(), product_args(all, rows, w.weight), codes, 0, outputs);
      for (const int64_t n : {1, 2, 3, 4, 6, 13, 16, 18}) {
        for (int64_t first = 0; first + n <= rows; first += n) {
          const std::vector<float> some(x.begin() + first * cols, x.begin() + (first + n) * cols);
          const EncodedRows few(k(), some, cols);
          // In two runs of outputs, as threads would share them.
          multiply(k(), product_args(part, n, w.weight), few, 0, 30);
          multiply(k(), product_args(part, n, w.weight), few, 30, outputs);
          ASSERT_EQ(std::memcmp(part.data(), all.data() + first * outputs, static_cast<size_t>(4 * n * outputs)), 0)
              << format.name << ", " << cols << " columns: " << n << " rows from " << first;
        }
      }
    }
  }
}

TEST_P(CodedTest, gathers_scatters_adds_and_leaves_the_rest_alone) {
  Random random(33);
  const int64_t cols = 96, outputs = 20;
  RandomWeight w(random, formats::FormatId::q4_0, outputs, cols);
  constexpr int64_t kRows = 23;
  const std::vector<float> x = random.normals(6 * cols), factor = random.normals(kRows);
  std::vector<int32_t> from(kRows), to(kRows);
  for (int32_t r = 0; r < kRows; ++r) {
    from[static_cast<size_t>(r)] = 5 * r % 6;
    to[static_cast<size_t>(r)] = 7 * r % kRows;
  }
  const EncodedRows codes(k(), x, cols);
  std::vector<float> plain(6 * outputs);
  multiply(k(), product_args(plain, 6, w.weight), codes, 0, outputs);
  for (const int64_t rows : {int64_t{1}, int64_t{3}, int64_t{5}, int64_t{16}, kRows}) {
    std::vector<float> y(kRows * outputs, 1.0f);
    cpu::LinearArgs some = product_args(y, rows, w.weight);
    some.from = from.data();
    some.to = to.data();
    some.factor = factor.data();
    multiply(k(), some, codes, 3, 17);
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t o = 0; o < outputs; ++o) {
        const bool touched = r < static_cast<size_t>(rows) && o >= 3 && o < 17;
        const float product = plain[static_cast<size_t>(from[r]) * outputs + o];
        EXPECT_NEAR(y[static_cast<size_t>(to[r]) * outputs + o], touched ? 1.0f + factor[r] * product : 1.0f, 1e-5);
      }
    }
  }
}

TEST_P(CodedTest, zeros_stay_zeros_and_what_is_not_finite_is_seen) {
  Random random(34);
  const int64_t cols = 160;
  RandomWeight w(random, formats::FormatId::q8_0, 3, cols);
  std::vector<float> y(3);
  std::vector<float> x(static_cast<size_t>(cols));
  x[70] = 1e-35f;
  multiply(k(), product_args(y, 1, w.weight), EncodedRows(k(), x, cols), 0, 3);
  for (const float value : y) EXPECT_EQ(value, 0.0f);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    x = random.normals(cols);
    x[40] = bad;
    multiply(k(), product_args(y, 1, w.weight), EncodedRows(k(), x, cols), 0, 3);
    for (const float value : y) EXPECT_FALSE(std::isfinite(value));
  }
}

INSTANTIATE_TEST_SUITE_P(isas, CodedTest, ::testing::ValuesIn(cpu_isas().begin(), cpu_isas().end()),
                         [](const auto& isa) { return std::string(isa.param.name); });

}  // namespace
}  // namespace gemmantle
