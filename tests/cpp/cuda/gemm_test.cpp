// Products of many rows against double, and rows unpacked bit by bit.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device_weight.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::DeviceRows;
using test::DeviceWeight;
using test::in_every_order;
using test::kWeightKinds;
using test::Random;
using test::SameBits;
using test::WeightKind;

constexpr double kF32 = 1e-5;

// bf16 rows with eight values between them that nobody may read: NaN.
struct HalfRows {
  int rows, cols;
  std::vector<Bf16> values;
  DeviceArray<Bf16> device{0};

  HalfRows(Random& random, int r, int c) : rows(r), cols(c), values(static_cast<size_t>(r * (c + 8)), 0x7fc0) {
    for (int i = 0; i < r; ++i) {
      for (int j = 0; j < c; ++j) values[static_cast<size_t>(i * (c + 8) + j)] = f32_to_bf16(random.normal());
    }
    device = DeviceArray<Bf16>(values);
  }
  View<const Bf16> view() const { return {device.data(), rows, cols, cols + 8}; }
  double at(int r, int c) const { return bf16_to_f32(values[static_cast<size_t>(r * (cols + 8) + c)]); }
};

TEST(CudaGemm, is_the_dot_products_at_every_size) {
  Random random(31);
  struct Case {
    int rows, outputs, cols;
  };
  // Less than a tile, several ragged tiles of both kinds, one step of columns and fewer steps than stages.
  for (const Case& c : {Case{17, 40, 96}, {61, 33, 32}, {65, 130, 64}, {150, 140, 160}}) {
    const HalfRows x(random, c.rows, c.cols);
    const DeviceWeight w(random, kWeightKinds[0], c.outputs, c.cols);
    const View<const Bf16> weights{reinterpret_cast<const Bf16*>(w.matrix().values), c.outputs, c.cols, c.cols};
    SameBits<float> bits;
    in_every_order([&](const std::string& order) {
      const DeviceRows y(c.rows, c.outputs);
      gemm(nullptr, y.view(), x.view(), weights);
      y.expect(order, kF32, [&](int r, int o) {
        double sum = 0;
        for (int i = 0; i < c.cols; ++i) sum += x.at(r, i) * w.value(o, i);
        return sum;
      });
      bits.expect(order, y.values());
    });
  }
}

class CudaUnpack : public testing::TestWithParam<WeightKind> {};

TEST_P(CudaUnpack, every_value_of_some_rows) {
  Random random(32);
  constexpr int kRows = 9, kCols = 96, kCount = 3, kFirst = 7, kSome = 13, kGap = 8;
  const DeviceWeight w(random, GetParam(), kRows, kCols, kCount);
  const std::vector<Bf16> untouched(kSome * (kCols + kGap), 0x1234);
  const DeviceArray<Bf16> out(untouched);
  unpack_rows(nullptr, {out.data(), kSome, kCols, kCols + kGap}, w.matrix(), kFirst);
  const std::vector<Bf16> found = out.values();
  for (int r = 0; r < kSome; ++r) {
    for (int c = 0; c < kCols + kGap; ++c) {
      const Bf16 bits = found[static_cast<size_t>(r * (kCols + kGap) + c)];
      const double wanted = c < kCols ? w.value((kFirst + r) % kRows, c, (kFirst + r) / kRows) : 0;
      if (c < kCols) {
        ASSERT_EQ(bf16_to_f32(bits), wanted) << r << ", " << c;
      } else {
        ASSERT_EQ(bits, 0x1234) << r << ", " << c;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(planes, CudaUnpack, testing::ValuesIn(kWeightKinds), test::weight_kind_name);

}  // namespace
}  // namespace gemmantle::cuda
