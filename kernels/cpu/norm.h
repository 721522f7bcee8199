// norm.h: RMS norm of one row, group by group.
#pragma once

#include "kernels/cpu/vec.h"

namespace gemmantle::cpu {
namespace {

void rms_norm(float* y, const float* x, const float* weight, int64_t cols, int64_t group, float eps) {
  for (int64_t start = 0; start < cols; start += group) {
    const float* in = x + start;
    float* out = y + start;
    // Two sums, so that a row of several thousand values stays near the precision of f32.
    Vec even = fill(0.0f), odd = fill(0.0f);
    int64_t i = 0;
    for (; i + 2 * kLanes <= group; i += 2 * kLanes) {
      const Vec a = load(in + i), b = load(in + i + kLanes);
      even = fma(a, a, even);
      odd = fma(b, b, odd);
    }
    for (; i < group; i += kLanes) {
      const int64_t n = group - i < kLanes ? group - i : kLanes;
      const Vec a = load_first(in + i, n);
      even = fma(a, a, even);
    }
    const double mean = static_cast<double>(sum(even + odd)) / static_cast<double>(group);
    const Vec factor = fill(static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(eps))));
    for (i = 0; i + kLanes <= group; i += kLanes) {
      Vec v = load(in + i) * factor;
      if (weight != nullptr) v = v * load(weight + i);
      store(out + i, v);
    }
    if (i < group) {
      Vec v = load_first(in + i, group - i) * factor;
      if (weight != nullptr) v = v * load_first(weight + i, group - i);
      store_first(out + i, v, group - i);
    }
  }
}

}  // namespace
}  // namespace gemmantle::cpu
