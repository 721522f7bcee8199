// The norm kernels against double.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/device_rows.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::DeviceRows;
using test::in_every_order;
using test::Random;
using test::SameBits;

constexpr float kEps = 1e-6f;
constexpr double kF32 = 1e-5;

// Column c of the run [first, first + group) of row r: x / sqrt(mean(x^2) + eps) * weight, in double.
double normed(const DeviceRows& x, int r, int first, int group, int c, const float* weight) {
  double squares = 0;
  for (int i = 0; i < group; ++i) squares += std::pow(double{x.at(r, first + i)}, 2);
  const double value = x.at(r, first + c) / std::sqrt(squares / group + double{kEps});
  return weight == nullptr ? value : value * double{weight[c]};
}

TEST(CudaNorm, every_run_is_normed_by_itself) {
  Random random(1);
  for (const int group : {1, 7, 32, 257, 600}) {
    for (const int runs : {1, 3}) {
      const DeviceRows x(random, 3, group * runs);
      const std::vector<float> weight = random.normals(group);
      const DeviceArray<float> on_device(weight);
      for (const bool weighted : {true, false}) {
        SameBits<float> bits;
        in_every_order([&](const std::string& order) {
          const DeviceRows y(3, group * runs);
          rms_norm(nullptr, y.view(), x.input(), weighted ? on_device.data() : nullptr, group, kEps);
          y.expect(order, kF32, [&](int r, int c) {
            return normed(x, r, c / group * group, group, c % group, weighted ? weight.data() : nullptr);
          });
          bits.expect(order, y.values());
        });
      }
    }
  }
}

TEST(CudaNorm, in_place_is_the_same) {
  Random random(2);
  const DeviceRows x(random, 2, 513), in_place = x, apart(2, 513);
  rms_norm(nullptr, apart.view(), x.input(), nullptr, 513, kEps);
  rms_norm(nullptr, in_place.view(), in_place.input(), nullptr, 513, kEps);
  EXPECT_EQ(in_place.values(), apart.values());
}

TEST(CudaNorm, add_norm_is_its_definition) {
  Random random(3);
  constexpr float kScale = 0.75f;
  for (const int n : {1, 31, 256, 300, 1001}) {
    const DeviceRows before(random, 3, n), y(random, 3, n);
    const std::vector<float> post = random.normals(n), next = random.normals(n);
    const DeviceArray<float> post_on_device(post), next_on_device(next);
    for (const bool more : {true, false}) {
      SameBits<float> bits;
      in_every_order([&](const std::string& order) {
        const DeviceRows h = before, x(3, n);
        add_norm(nullptr, h.view(), y.input(), post_on_device.data(), kScale, more ? next_on_device.data() : nullptr,
                 x.view(), kEps);
        h.expect(order, kF32, [&](int r, int c) {
          return (double{before.at(r, c)} + normed(y, r, 0, n, c, post.data())) * double{kScale};
        });
        bits.expect(order, h.values());
        if (more) {
          x.expect(order, kF32, [&](int r, int c) { return normed(h, r, 0, n, c, next.data()); });
        } else {
          EXPECT_TRUE(x.untouched()) << order;
        }
      });
    }
  }
}

}  // namespace
}  // namespace gemmantle::cuda
