// pairs.h: a vector of pairs of bf16, one pair a lane: what KV is kept as in mode "fast", and products of two of them.
//
// GEMMANTLE_PAIR_DOTS says whether the instruction set multiplies pairs itself; elsewhere each half is widened, which
// is exact, and goes through fma.
#pragma once

#include "kernels/cpu/vec.h"

#if defined(__AVX512BF16__)
#define GEMMANTLE_PAIR_DOTS 1
#else
#define GEMMANTLE_PAIR_DOTS 0
#endif

namespace gemmantle::cpu {
namespace {

typedef uint32_t Pairs __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

GEMMANTLE_VEC Pairs load_pairs(const void* p) noexcept { return (Pairs)load(p); }
GEMMANTLE_VEC Pairs load_pairs_first(const void* p, int64_t n) noexcept { return (Pairs)load_first(p, n); }
GEMMANTLE_VEC Pairs fill_pair(uint32_t pair) noexcept { return Pairs{} + pair; }

// The nearest bf16 of every lane, ties to even; a NaN stays one. Stores kLanes halves.
GEMMANTLE_VEC void store_halves(uint16_t* p, Vec v) noexcept {
#if GEMMANTLE_PAIR_DOTS
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
  const Pairs bits = (Pairs)v;
  const Pairs rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Pairs is_nan = (Pairs)((bits & 0x7fffffffu) > 0x7f800000u);
  const Halves halves = __builtin_convertvector((is_nan & (bits >> 16 | 0x40u)) | (~is_nan & rounded), Halves);
  memcpy(p, &halves, sizeof halves);
#endif
}

// halves[0, n) of x * factor.
GEMMANTLE_VEC void to_halves(uint16_t* halves, const float* x, int64_t n, float factor) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_halves(halves + i, load(x + i) * fill(factor));
  if (const int64_t rest = n - i; rest > 0) {
    uint16_t tail[kLanes];
    store_halves(tail, load_first(x + i, rest) * fill(factor));
    memcpy(halves + i, tail, static_cast<size_t>(rest) * sizeof(uint16_t));
  }
}

// sums + both products of every lane.
GEMMANTLE_VEC Vec dot2(Vec sums, Pairs a, Pairs b) noexcept {
#if GEMMANTLE_PAIR_DOTS
  return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
#else
  sums = fma((Vec)(a << 16), (Vec)(b << 16), sums);
  return fma((Vec)(a & 0xffff0000u), (Vec)(b & 0xffff0000u), sums);
#endif
}

}  // namespace
}  // namespace gemmantle::cpu
