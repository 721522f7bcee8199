// Products of few rows against double, for every plane of weights.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cuda/device_weight.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceRows;
using test::DeviceWeight;
using test::in_every_order;
using test::kWeightKinds;
using test::Random;
using test::round_bf16;
using test::SameBits;
using test::WeightKind;

constexpr double kF32 = 1e-5;

double dot(const DeviceRows& x, int r, const DeviceWeight& w, int output) {
  double sum = 0;
  for (int i = 0; i < x.cols(); ++i) sum += double{round_bf16(x.at(r, i))} * w.value(output, i);
  return sum;
}

double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

class CudaProduct : public testing::TestWithParam<WeightKind> {};

TEST_P(CudaProduct, few_rows_are_the_dot_products) {
  Random random(11);
  struct Case {
    int rows, outputs, cols, gap;
  };
  // Columns: less than a turn, ragged, and more than eight rows stage at once.
  for (const Case& c : {Case{1, 37, 48, 3}, {3, 16, 304, 0}, {8, 21, 2080, 5}, {16, 33, 1200, 3}}) {
    const DeviceRows x(random, c.rows, c.cols, 1.0f, c.gap);
    const DeviceWeight w(random, GetParam(), c.outputs, c.cols);
    SameBits<float> bits;
    in_every_order([&](const std::string& order) {
      const DeviceRows y(c.rows, c.outputs);
      product_few(nullptr, y.view(), x.input(), w.matrix());
      y.expect(order, kF32, [&](int r, int o) { return dot(x, r, w, o); });
      bits.expect(order, y.values());
    });
  }
}

TEST_P(CudaProduct, geglu_joins_gate_and_up) {
  Random random(12);
  for (const int rows : {1, 5, 11}) {
    constexpr int kOutputs = 29, kCols = 176;
    const DeviceRows x(random, rows, kCols, 0.3f);
    const DeviceWeight gate(random, GetParam(), kOutputs, kCols), up(random, GetParam(), kOutputs, kCols);
    SameBits<float> bits;
    in_every_order([&](const std::string& order) {
      const DeviceRows y(rows, kOutputs);
      product_geglu(nullptr, y.view(), x.input(), gate.matrix(), up.matrix());
      y.expect(order, kF32, [&](int r, int o) { return gelu(dot(x, r, gate, o)) * dot(x, r, up, o); });
      bits.expect(order, y.values());
    });
  }
}

TEST_P(CudaProduct, a_row_has_the_same_bits_alone_and_in_company) {
  Random random(13);
  constexpr int kRows = 13, kOutputs = 16, kCols = 2100;
  const DeviceRows x(random, kRows, kCols);
  const DeviceWeight w(random, GetParam(), kOutputs, kCols);
  const DeviceRows together(kRows, kOutputs), eight(8, kOutputs);
  product_few(nullptr, together.view(), x.input(), w.matrix());
  ConstRows some = x.input();
  some.rows = 8;
  product_few(nullptr, eight.view(), some, w.matrix());
  for (const int r : {0, 7, 12}) {
    ConstRows one = x.input();
    one.data += r * one.stride;
    one.rows = 1;
    const DeviceRows alone(1, kOutputs);
    product_few(nullptr, alone.view(), one, w.matrix());
    together.values(), alone.values(), eight.values();
    for (int o = 0; o < kOutputs; ++o) {
      EXPECT_EQ(alone.at(0, o), together.at(r, o)) << "row " << r;
      if (r < 8) {
        EXPECT_EQ(alone.at(0, o), eight.at(r, o)) << "row " << r;
      }
    }
  }
}

// Enough outputs for blocks of two tiles.
TEST(CudaProductWide, many_outputs) {
  Random random(14);
  constexpr int kOutputs = 264 * 32 + 17, kCols = 32;
  const DeviceRows x(random, 2, kCols);
  const DeviceWeight w(random, kWeightKinds[0], kOutputs, kCols);
  const DeviceRows y(2, kOutputs);
  product_few(nullptr, y.view(), x.input(), w.matrix());
  y.expect("two tiles", kF32, [&](int r, int o) { return dot(x, r, w, o); });
}

INSTANTIATE_TEST_SUITE_P(planes, CudaProduct, testing::ValuesIn(kWeightKinds), test::weight_kind_name);

}  // namespace
}  // namespace gemmantle::cuda
