// Norm, rotation and KV write of a layer's heads in one launch, against double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
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
using test::SameBits;

constexpr float kEps = 1e-6f;
constexpr double kF32 = 1e-5;
constexpr int kSlots = 6;
constexpr Bf16 kUnwritten = 7;

enum class Values { given, normed, of_key };

// Heads of one layer on the device, and what should become of them.
class Layer {
 public:
  Layer(Random& random, int dim, int queries, int keys)
      : dim_(dim),
        q(random, 3, queries * dim),
        k(random, 3, keys * dim),
        v(random, 3, keys * dim),
        q_norm_(random.normals(dim)),
        k_norm_(random.normals(dim)),
        freq_(static_cast<size_t>(dim / 2)),
        on_device_{DeviceArray<float>(q_norm_), DeviceArray<float>(k_norm_), DeviceArray<float>(freqs())},
        positions_on_device_(positions_),
        slots_on_device_(slots_) {}

  QkvArgs args(const DeviceRows* queries, bool has_kv, Values values) const {
    QkvArgs a;
    if (queries != nullptr) a.q = queries->view();
    if (has_kv) a.k = k.input();
    if (has_kv && values != Values::of_key) a.v = v.input();
    a.norms_v = values == Values::normed;
    a.rows = 3;
    a.dim = dim_;
    a.q_norm = on_device_[0].data();
    a.k_norm = on_device_[1].data();
    a.eps = kEps;
    a.freq = on_device_[2].data();
    a.positions = positions_on_device_.data();
    a.slots = slots_on_device_.data();
    return a;
  }

  double query(int r, int c) const { return turned(q, q_norm_, r, c); }
  double key(int r, int c) const { return turned(k, k_norm_, r, c); }
  double value(int r, int c, Values values) const {
    if (values == Values::given) return v.at(r, c);
    return normed(values == Values::normed ? v : k, nullptr, r, c);
  }
  // The row that goes to a slot, or -1.
  static int row_of(int slot) { return slot == 5 ? 0 : slot == 0 ? 2 : -1; }

 private:
  const std::vector<float>& freqs() {
    for (int i = 0; i < dim_ / 4; ++i) freq_[static_cast<size_t>(i)] = std::pow(10000.0f, -2.0f * i / dim_);
    return freq_;  // the rest never turns
  }
  double normed(const DeviceRows& x, const std::vector<float>* weight, int r, int c) const {
    const int first = c / dim_ * dim_;
    double squares = 0;
    for (int i = 0; i < dim_; ++i) squares += std::pow(double{x.at(r, first + i)}, 2);
    const double value = x.at(r, c) / std::sqrt(squares / dim_ + double{kEps});
    return weight == nullptr ? value : value * double{(*weight)[static_cast<size_t>(c - first)]};
  }
  double turned(const DeviceRows& x, const std::vector<float>& weight, int r, int c) const {
    const int half = dim_ / 2, i = c % half, first = c / dim_ * dim_;
    const double angle = double{freq_[static_cast<size_t>(i)]} * positions_[static_cast<size_t>(r)];
    const double a = normed(x, &weight, r, first + i), b = normed(x, &weight, r, first + i + half);
    return c % dim_ < half ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
  }

  int dim_;

 public:
  const DeviceRows q, k, v;

 private:
  std::vector<float> q_norm_, k_norm_, freq_;
  std::vector<int32_t> positions_ = {5, 0, 131071}, slots_ = {5, -1, 0};
  DeviceArray<float> on_device_[3];
  DeviceArray<int32_t> positions_on_device_, slots_on_device_;
};

void expect_cache(const std::string& what, const std::vector<Bf16>& found, int cols,
                  const std::function<double(int, int)>& wanted) {
  for (int slot = 0; slot < kSlots; ++slot) {
    for (int c = 0; c < cols; ++c) {
      const Bf16 bits = found[static_cast<size_t>(slot * cols + c)];
      const int row = Layer::row_of(slot);
      if (row < 0) {
        ASSERT_EQ(bits, kUnwritten) << what << ", slot " << slot;
        continue;
      }
      const double value = wanted(row, c);
      ASSERT_NEAR(bf16_to_f32(bits), value, std::fabs(value) / 256 + 1e-5) << what << ", slot " << slot << ", " << c;
    }
  }
}

TEST(CudaPrepareQkv, heads_are_normed_turned_and_stored) {
  Random random(1);
  for (const int dim : {256, 512}) {
    for (const auto& [queries, keys] : {std::pair{5, 2}, {2, 1}, {8, 3}}) {
      const Layer layer(random, dim, queries, keys);
      const int cols = keys * dim;
      for (const Values values : {Values::given, Values::normed, Values::of_key}) {
        SameBits<float> q_bits;
        SameBits<Bf16> k_bits, v_bits;
        in_every_order([&](const std::string& order) {
          const DeviceRows q = layer.q;
          const DeviceArray<Bf16> k_cache(std::vector<Bf16>(static_cast<size_t>(kSlots * cols), kUnwritten)),
              v_cache(std::vector<Bf16>(static_cast<size_t>(kSlots * cols), kUnwritten));
          QkvArgs args = layer.args(&q, true, values);
          args.k_cache = k_cache.data();
          args.v_cache = v_cache.data();
          prepare_qkv(nullptr, args);
          q.expect(order, kF32, [&](int r, int c) { return layer.query(r, c); });
          expect_cache(order + ", k", k_cache.values(), cols, [&](int r, int c) { return layer.key(r, c); });
          expect_cache(order + ", v", v_cache.values(), cols, [&](int r, int c) { return layer.value(r, c, values); });
          q_bits.expect(order, q.values());
          k_bits.expect(order, k_cache.values());
          v_bits.expect(order, v_cache.values());
        });
      }
    }
  }
}

TEST(CudaPrepareQkv, queries_and_keys_may_come_without_each_other) {
  Random random(2);
  const Layer layer(random, 256, 3, 2);
  const DeviceRows q = layer.q;
  prepare_qkv(nullptr, layer.args(&q, false, Values::normed));
  q.expect("queries alone", kF32, [&](int r, int c) { return layer.query(r, c); });

  const DeviceArray<Bf16> k_cache(std::vector<Bf16>(kSlots * 512, kUnwritten)),
      v_cache(std::vector<Bf16>(kSlots * 512, kUnwritten));
  QkvArgs args = layer.args(nullptr, true, Values::normed);
  args.k_cache = k_cache.data();
  args.v_cache = v_cache.data();
  prepare_qkv(nullptr, args);
  expect_cache("keys alone", k_cache.values(), 512, [&](int r, int c) { return layer.key(r, c); });
  expect_cache("values alone", v_cache.values(), 512, [&](int r, int c) { return layer.value(r, c, Values::normed); });
}

}  // namespace
}  // namespace gemmantle::cuda
