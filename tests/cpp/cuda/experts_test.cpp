// The router and the experts against double, for few rows and many, every plane, joined and separate gate and up.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
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
using test::round_bf16;
using test::SameBits;
using test::WeightKind;

constexpr double kF32 = 1e-5;
constexpr double kRoundedBetween = 1e-4;  // values between the two products are rounded to bf16, rarely another way

double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

TEST(CudaRoute, the_largest_in_order_with_ties_to_the_lower_id) {
  Random random(41);
  for (const int experts : {8, 33, 128}) {
    for (const int used : {1, 2, 8}) {
      constexpr int kRows = 11, kGap = 3;
      DeviceRows logits(random, kRows, experts);
      std::vector<float> values = logits.values();
      for (size_t i = 0; i < values.size(); ++i) {
        if (i % 3 == 0) values[i] = std::round(values[i]);  // many are equal
      }
      const DeviceArray<float> device_logits(values);
      const ConstRows in{device_logits.data(), kRows, experts, experts + kGap};
      const std::vector<float> scale = random.normals(experts);
      const DeviceArray<float> device_scale(scale);
      SameBits<float> bits;
      in_every_order([&](const std::string& order) {
        const DeviceArray<int32_t> ids(std::vector<int32_t>(static_cast<size_t>(kRows * (used + 1)), -5));
        const DeviceRows weights(kRows, used);
        route(nullptr, {ids.data(), kRows, used, used + 1}, weights.view(), in, device_scale.data());
        const std::vector<int32_t> found = ids.values();
        weights.expect(order, kF32, [&](int r, int j) {
          const auto logit = [&](int e) { return values[static_cast<size_t>(r * (experts + kGap) + e)]; };
          std::vector<int> wanted(static_cast<size_t>(experts));
          std::iota(wanted.begin(), wanted.end(), 0);
          std::stable_sort(wanted.begin(), wanted.end(), [&](int a, int b) { return logit(a) > logit(b); });
          EXPECT_EQ(found[static_cast<size_t>(r * (used + 1) + j)], wanted[static_cast<size_t>(j)]) << r << ", " << j;
          EXPECT_EQ(found[static_cast<size_t>(r * (used + 1) + used)], -5);
          double total = 0;
          for (int i = 0; i < used; ++i) total += std::exp(double{logit(wanted[static_cast<size_t>(i)])});
          const int id = wanted[static_cast<size_t>(j)];
          return std::exp(double{logit(id)}) / total * double{scale[static_cast<size_t>(id)]};
        });
        bits.expect(order, weights.values());
      });
    }
  }
}

struct Sizes {
  int rows, experts, used, hidden, width;
};

void check(uint64_t seed, const Sizes& z, const WeightKind& up_kind, const WeightKind& down_kind, bool joined) {
  Random random(seed);
  const DeviceRows x(random, z.rows, z.hidden, 0.3f);
  const DeviceWeight gate_up(random, up_kind, joined ? 2 * z.width : z.width, z.hidden, z.experts);
  const DeviceWeight up(random, up_kind, z.width, z.hidden, z.experts);
  const DeviceWeight down(random, down_kind, z.hidden, z.width, z.experts);
  const DeviceRows weights(random, z.rows, z.used);
  std::vector<int32_t> ids;
  for (int r = 0; r < z.rows; ++r) {
    std::vector<int32_t> all(static_cast<size_t>(z.experts));
    std::iota(all.begin(), all.end(), 0);
    // The last expert is never chosen: its group is empty.
    for (int j = 0; j < z.used; ++j)
      std::swap(all[static_cast<size_t>(j)], all[static_cast<size_t>(j + random.below(z.experts - 1 - j))]);
    ids.insert(ids.end(), all.begin(), all.begin() + z.used);
  }
  const DeviceArray<int32_t> device_ids(ids);

  std::vector<double> wanted(static_cast<size_t>(z.rows * z.hidden), 0);
  for (int r = 0; r < z.rows; ++r) {
    for (int j = 0; j < z.used; ++j) {
      const int e = ids[static_cast<size_t>(r * z.used + j)];
      std::vector<double> middle;
      for (int i = 0; i < z.width; ++i) {
        double g = 0, u = 0;
        for (int c = 0; c < z.hidden; ++c) {
          const double value = round_bf16(x.at(r, c));
          g += value * gate_up.value(i, c, e);
          u += value * (joined ? gate_up.value(z.width + i, c, e) : up.value(i, c, e));
        }
        middle.push_back(round_bf16(static_cast<float>(gelu(g) * u)));
      }
      for (int o = 0; o < z.hidden; ++o) {
        double sum = 0;
        for (int i = 0; i < z.width; ++i) sum += middle[static_cast<size_t>(i)] * down.value(o, i, e);
        wanted[static_cast<size_t>(r * z.hidden + o)] += double{weights.at(r, j)} * sum;
      }
    }
  }

  SameBits<float> bits;
  in_every_order([&](const std::string& order) {
    const DeviceRows y(z.rows, z.hidden);
    ExpertArgs a;
    a.y = y.view();
    a.x = x.input();
    a.ids = {device_ids.data(), z.rows, z.used, z.used};
    a.weights = weights.input();
    a.gate_up = gate_up.matrix();
    if (!joined) a.up = up.matrix();
    a.down = down.matrix();
    const DeviceArray<uint8_t> scratch(experts_scratch_bytes(a));
    a.scratch = scratch.data();
    experts(nullptr, a);
    y.expect(order, kRoundedBetween, [&](int r, int c) { return wanted[static_cast<size_t>(r * z.hidden + c)]; });
    bits.expect(order, y.values());
  });
}

class CudaExperts : public testing::TestWithParam<WeightKind> {};

TEST_P(CudaExperts, few_rows) {
  check(42, {1, 6, 3, 48, 32}, GetParam(), GetParam(), true);
  check(43, {3, 5, 2, 80, 176}, GetParam(), GetParam(), false);
}

TEST_P(CudaExperts, many_rows) {
  check(44, {9, 6, 3, 48, 32}, GetParam(), GetParam(), true);
  check(45, {80, 3, 2, 80, 112}, GetParam(), GetParam(), false);
}

INSTANTIATE_TEST_SUITE_P(planes, CudaExperts, testing::ValuesIn(kWeightKinds), test::weight_kind_name);

TEST(CudaExpertsMixed, planes_of_up_and_down_may_differ) {
  check(46, {2, 4, 2, 64, 48}, kWeightKinds[4], kWeightKinds[2], true);
  check(47, {12, 4, 2, 64, 48}, kWeightKinds[4], kWeightKinds[2], true);
}

TEST(CudaExpertsMixed, more_experts_than_warps_and_a_wide_middle) {
  check(48, {2, 11, 10, 32, 1100}, kWeightKinds[0], kWeightKinds[0], true);
}

}  // namespace
}  // namespace gemmantle::cuda
