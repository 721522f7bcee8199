// elementwise.h: norms, gates and caps of one row, in the plainest code: loops, doubles for sums.
//
// The definition that every other implementation is tested against. architecture 2.3, 2.9, 2.13.
#pragma once

#include <cmath>
#include <cstdint>

namespace gemmantle::reference {

// `group` values; weight null: weightless. y may be x.
inline void rms_norm(float* y, const float* x, const float* weight, int64_t group, float eps) {
  double sum = 0;
  for (int64_t i = 0; i < group; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(group) + eps);
  for (int64_t i = 0; i < group; ++i) y[i] = static_cast<float>(x[i] * scale * (weight == nullptr ? 1.0 : weight[i]));
}

inline double gelu_tanh(double x) {
  const double sqrt_2_over_pi = 0.79788456080286535588;
  return 0.5 * x * (1.0 + std::tanh(sqrt_2_over_pi * (x + 0.044715 * x * x * x)));
}

inline void gelu_mul(float* y, const float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(gelu_tanh(gate[i]) * up[i]);
}

inline void softcap(float* y, int64_t n, float cap) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(cap * std::tanh(static_cast<double>(y[i]) / cap));
}

}  // namespace gemmantle::reference
