// rope.h: rotary embedding of one row: column i of a head pairs with i + dim / 2. architecture 2.5.
#pragma once

#include <cmath>
#include <cstdint>

namespace gemmantle::reference {

// x: heads * dim values; freq: dim / 2 radians a position, zero for pairs that do not turn.
inline void rope(float* x, int64_t heads, int64_t dim, const float* freq, int32_t position) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * freq[i];
    const double c = std::cos(angle);
    const double s = std::sin(angle);
    for (int64_t h = 0; h < heads; ++h) {
      float& a = x[h * dim + i];
      float& b = x[h * dim + i + half];
      const double left = a, right = b;
      a = static_cast<float>(left * c - right * s);
      b = static_cast<float>(right * c + left * s);
    }
  }
}

}  // namespace gemmantle::reference
