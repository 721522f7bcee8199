// Kernels that treat each value by itself, rotations and KV writes, against double at ragged sizes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/device_rows.h"
#include "kernels/common/float.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::DeviceRows;
using test::in_every_order;
using test::Random;

constexpr double kF32 = 1e-5;
constexpr int kWidths[] = {1, 31, 256, 1030};

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

TEST(CudaElementwise, each_value_is_its_definition) {
  Random random(1);
  constexpr float kFactor = 0.7f;
  for (const int n : kWidths) {
    const DeviceRows x(random, 3, n), before(random, 3, n);
    const std::vector<float> weight = random.normals(n);
    const DeviceArray<float> on_device(weight);
    in_every_order([&](const std::string& order) {
      DeviceRows y = before;
      add(nullptr, y.view(), x.input(), kFactor);
      y.expect(order + ", add", kF32, [&](int r, int c) { return (double{before.at(r, c)} + x.at(r, c)) * kFactor; });
      scale(nullptr, y.view(), x.input(), on_device.data(), kFactor);
      y.expect(order + ", scale", kF32,
               [&](int r, int c) { return double{x.at(r, c)} * kFactor * weight[static_cast<size_t>(c)]; });
      scale(nullptr, y.view(), x.input(), nullptr, kFactor);
      y.expect(order + ", scale", kF32, [&](int r, int c) { return double{x.at(r, c)} * kFactor; });
      gelu_mul(nullptr, y.view(), x.input(), before.input());
      y.expect(order + ", gelu", kF32, [&](int r, int c) { return gelu(x.at(r, c)) * before.at(r, c); });
    });
    const DeviceRows capped = before;
    softcap(nullptr, capped.view(), kFactor);
    capped.expect("softcap", kF32,
                  [&](int r, int c) { return kFactor * std::tanh(before.at(r, c) / double{kFactor}); });
  }
}

TEST(CudaElementwise, rows_are_copied_by_number_and_rounded_with_zeros_behind) {
  Random random(2);
  const DeviceRows x(random, 5, 37), y(3, 37);
  const DeviceArray<int32_t> source(std::vector<int32_t>{4, 0, 4});
  copy_rows(nullptr, y.view(), x.input(), source.data());
  y.expect("copy_rows", 0, [&](int r, int c) { return x.at(r == 1 ? 0 : 4, c); });

  constexpr int kPadded = 64;
  const DeviceArray<Bf16> rounded(5 * kPadded);
  round_rows(nullptr, {rounded.data(), 5, kPadded, kPadded}, x.input());
  const std::vector<Bf16> values = rounded.values();
  for (int r = 0; r < 5; ++r) {
    for (int c = 0; c < kPadded; ++c) {
      EXPECT_EQ(values[static_cast<size_t>(r * kPadded + c)], c < 37 ? f32_to_bf16(x.at(r, c)) : 0) << r << ", " << c;
    }
  }
}

TEST(CudaElementwise, the_smallest_tag_of_a_value_that_is_not_finite_is_kept) {
  Random random(3);
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    const DeviceRows fine(random, 3, 1030), broken = fine;
    broken.view().data[2 * broken.view().stride + 1029] = bad;
    const DeviceArray<int32_t> smallest(std::vector<int32_t>{kNone});
    check_finite(nullptr, fine.input(), 4, smallest.data());
    EXPECT_EQ(smallest.values()[0], kNone);
    for (const auto& [tag, wanted] : {std::pair{6, 6}, {9, 6}, {2, 2}}) {
      check_finite(nullptr, broken.input(), tag, smallest.data());
      EXPECT_EQ(smallest.values()[0], wanted);
    }
  }
}

TEST(CudaRope, heads_turn_by_their_position_however_late_it_is) {
  Random random(4);
  const std::vector<int32_t> positions = {0, 1, 17, 4095, 131071, 262143};
  for (const int dim : {2, 64, 256}) {
    std::vector<float> freq(static_cast<size_t>(dim / 2));
    for (int i = 0; i < dim / 2; ++i) {
      freq[static_cast<size_t>(i)] = i < dim / 4 || dim == 2 ? std::pow(10000.0f, -2.0f * i / dim) : 0.0f;
    }
    const DeviceArray<float> freq_on_device(freq);
    const DeviceArray<int32_t> positions_on_device(positions);
    const DeviceRows before(random, 6, 3 * dim);
    in_every_order([&](const std::string& order) {
      const DeviceRows x = before;
      rope(nullptr, x.view(), dim, freq_on_device.data(), positions_on_device.data());
      x.expect(order, kF32, [&](int r, int c) {
        const int i = c % (dim / 2), head = c / dim * dim;
        const double angle = double{freq[static_cast<size_t>(i)]} * positions[static_cast<size_t>(r)];
        const double a = before.at(r, head + i), b = before.at(r, head + i + dim / 2);
        return c % dim < dim / 2 ? a * std::cos(angle) - b * std::sin(angle)
                                 : b * std::cos(angle) + a * std::sin(angle);
      });
    });
  }
}

TEST(CudaStoreKv, rows_go_to_their_slots_and_padding_rows_nowhere) {
  Random random(5);
  constexpr int kCols = 300, kSlots = 6;
  const DeviceRows k(random, 3, kCols), v(random, 3, kCols);
  const DeviceArray<int32_t> slots(std::vector<int32_t>{5, -1, 0});
  const DeviceArray<Bf16> k_cache(std::vector<Bf16>(kSlots * kCols, 7)), v_cache(std::vector<Bf16>(kSlots * kCols, 7));
  store_kv(nullptr, k_cache.data(), v_cache.data(), k.input(), v.input(), slots.data());
  const std::vector<Bf16> ks = k_cache.values(), vs = v_cache.values();
  for (int slot = 0; slot < kSlots; ++slot) {
    for (int c = 0; c < kCols; ++c) {
      const auto at = static_cast<size_t>(slot * kCols + c);
      const int row = slot == 5 ? 0 : slot == 0 ? 2 : -1;
      ASSERT_EQ(ks[at], row < 0 ? 7 : f32_to_bf16(k.at(row, c))) << slot << ", " << c;
      ASSERT_EQ(vs[at], row < 0 ? 7 : f32_to_bf16(v.at(row, c))) << slot << ", " << c;
    }
  }
}

}  // namespace
}  // namespace gemmantle::cuda
