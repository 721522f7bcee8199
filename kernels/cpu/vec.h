// vec.h: one vector of f32, as wide as the flags of this compilation allow.
//
// Every vec_*.h gives the same words: Vec, Mask, kLanes, loads and stores (whole, or the first n lanes with zeros
// behind), arithmetic, select, sums. What all widths share (exp, tanh) is here. Kernels are written once over these.
// `larger` and `smaller` return their second operand where either is not a number, so a clamp lets NaN through.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/common/float.h"

#define GEMMANTLE_VEC static inline __attribute__((always_inline))

namespace gemmantle::cpu {
namespace {
typedef uint8_t Bytes __attribute__((vector_size(16)));
constexpr int64_t kLine = 64;  // bytes that memory gives at once
}  // namespace
}  // namespace gemmantle::cpu

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "kernels/cpu/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernels/cpu/vec_avx2.h"
#else
#include "kernels/cpu/vec_baseline.h"
#endif

namespace gemmantle::cpu {
namespace {

// exp with a relative error below 2e-7 in [-87, 88]; outside it stays at the border, so nothing overflows. x = n ln 2 +
// r; n comes out of the low bits of a sum that has no room for a fraction, and goes into the exponent of exp(r).
GEMMANTLE_VEC Vec vexp(Vec x) noexcept {
  const Vec magic = fill(12582912.0f);  // 1.5 * 2^23
  x = smaller(fill(88.0f), larger(fill(-87.0f), x));
  const Vec shifted = fma(x, fill(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, fill(-0.693359375f), x);  // ln 2 in two parts: n times the first is exact
  r = fma(n, fill(2.12194440e-4f), r);
  // (exp(r) - 1 - r) / r^2 at Chebyshev nodes of |r| <= ln 2 / 2, error 2e-10
  Vec p = fill(1.9890981e-4f);
  p = fma(p, r, fill(1.3933641e-3f));
  p = fma(p, r, fill(8.3333109e-3f));
  p = fma(p, r, fill(4.1666465e-2f));
  p = fma(p, r, fill(1.6666667e-1f));
  p = fma(p, r, fill(0.5f));
  p = fma(p, r * r, r) + fill(1.0f);
  return scale_by_low_bits(p, shifted);
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3): no cancellation on either side.
GEMMANTLE_VEC Vec gelu_tanh(Vec x) noexcept {
  const Vec cubic = fma(x * x, fill(0.044715f), fill(1.0f)) * x;
  return x / (fill(1.0f) + vexp(cubic * fill(-1.5957691216f)));
}

GEMMANTLE_VEC Vec vtanh(Vec x) noexcept {
  const Vec a = magnitude(x);
  // (tanh(x) / x - 1) / x^2 at Chebyshev nodes of |x| <= 0.625, error 6e-10
  const Vec z = x * x;
  Vec p = fill(2.2927447e-3f);
  p = fma(p, z, fill(-8.3439454e-3f));
  p = fma(p, z, fill(2.1768919e-2f));
  p = fma(p, z, fill(-5.3959260e-2f));
  p = fma(p, z, fill(1.3333304e-1f));
  p = fma(p, z, fill(-3.3333333e-1f));
  const Vec near = fma(p * z, x, x);
  const Vec far = fill(1.0f) - fill(2.0f) / (vexp(a + a) + fill(1.0f));
  return select(less(a, fill(0.625f)), near, with_sign_of(far, x));
}

// Calls body.operator()<N>() for n = N in [1, kMost]; more count as kMost.
template <int kMost, class Body>
GEMMANTLE_VEC void with_count(int64_t n, Body&& body) noexcept {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_count<kMost - 1>(n, body);
  }
  body.template operator()<kMost>();
}

}  // namespace
}  // namespace gemmantle::cpu
