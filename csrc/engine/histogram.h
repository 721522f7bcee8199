// histogram.h: how long something took, counted in fixed buckets.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace gemmantle {

class Histogram {
 public:
  // Upper ends in seconds; what is longer than the last is in the sum and the count only.
  static constexpr std::array<double, 14> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                     0.25,  0.5,    1,     2.5,  5,     10,   60};

  void add(std::chrono::duration<double> time) {
    size_t bucket = 0;
    while (bucket < kBounds.size() && time.count() > kBounds[bucket]) ++bucket;
    if (bucket < kBounds.size()) ++buckets_[bucket];
    sum_ += time.count();
    ++count_;
  }

  // How many took no longer than each of the bounds.
  std::array<int64_t, kBounds.size()> cumulative() const {
    std::array<int64_t, kBounds.size()> out = buckets_;
    for (size_t i = 1; i < out.size(); ++i) out[i] += out[i - 1];
    return out;
  }
  double sum() const { return sum_; }
  int64_t count() const { return count_; }

 private:
  std::array<int64_t, kBounds.size()> buckets_{};
  double sum_ = 0;
  int64_t count_ = 0;
};

}  // namespace gemmantle
