// rope_frequencies.h: radians a position of every pair of a head. architecture 2.5.
#pragma once

#include <cmath>
#include <vector>

#include "model/config.h"

namespace gemmantle {

// dim / 2 values, zero for pairs that do not turn.
inline std::vector<float> rope_frequencies(const LayerSpec& spec) {
  std::vector<float> freq(static_cast<size_t>(spec.heads.dim / 2));
  const auto turning = static_cast<size_t>(spec.rope_fraction * spec.heads.dim / 2);
  for (size_t i = 0; i < turning; ++i) {
    freq[i] = static_cast<float>(std::pow(spec.rope_theta, -2.0 * static_cast<double>(i) / spec.heads.dim) /
                                 spec.rope_divisor);
  }
  return freq;
}

}  // namespace gemmantle
