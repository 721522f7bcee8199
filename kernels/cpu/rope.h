// rope.h: half-split rotation. Angles are taken in double: at position 100,000 an f32 product is off by 4e-3 radians.
#pragma once

#include "kernels/cpu/vec.h"

namespace gemmantle::cpu {
namespace {

void rope_turns(float* turns, const float* freq, int64_t half, int32_t position) {
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(freq[i]);
    turns[i] = static_cast<float>(__builtin_cos(angle));
    turns[half + i] = static_cast<float>(__builtin_sin(angle));
  }
}

// x'[i] = x[i] cos - x[i + half] sin; x'[i + half] = x[i + half] cos + x[i] sin
void rope(float* x, const float* turns, int64_t heads, int64_t half) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half) {
    float* second = x + half;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec a = load(x + i), b = load(second + i), c = load(turns + i), s = load(turns + half + i);
      store(x + i, a * c - b * s);
      store(second + i, b * c + a * s);
    }
    if (const int64_t n = half - i; n > 0) {
      const Vec a = load_first(x + i, n), b = load_first(second + i, n);
      const Vec c = load_first(turns + i, n), s = load_first(turns + half + i, n);
      store_first(x + i, a * c - b * s, n);
      store_first(second + i, b * c + a * s, n);
    }
  }
}

}  // namespace
}  // namespace gemmantle::cpu
