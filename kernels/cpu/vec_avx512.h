// vec_avx512.h: sixteen lanes, masked tails. Included by vec.h.
#pragma once

// GCC 12 takes its own "undefined" operands in this header for a mistake of ours (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace gemmantle::cpu {
namespace {

constexpr int kLanes = 16;
using Vec = __m512;
using Mask = __mmask16;

GEMMANTLE_VEC Mask first_lanes(int64_t n) noexcept { return static_cast<Mask>((1u << n) - 1u); }

GEMMANTLE_VEC Vec fill(float value) noexcept { return _mm512_set1_ps(value); }
GEMMANTLE_VEC Vec load(const void* p) noexcept { return _mm512_loadu_ps(p); }
GEMMANTLE_VEC Vec load_first(const void* p, int64_t n) noexcept { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
GEMMANTLE_VEC void store(float* p, Vec v) noexcept { _mm512_storeu_ps(p, v); }
GEMMANTLE_VEC void store_first(float* p, Vec v, int64_t n) noexcept { _mm512_mask_storeu_ps(p, first_lanes(n), v); }

GEMMANTLE_VEC Vec fma(Vec a, Vec b, Vec c) noexcept { return _mm512_fmadd_ps(a, b, c); }
GEMMANTLE_VEC Vec larger(Vec a, Vec b) noexcept { return _mm512_max_ps(a, b); }
GEMMANTLE_VEC Vec smaller(Vec a, Vec b) noexcept { return _mm512_min_ps(a, b); }
GEMMANTLE_VEC Vec magnitude(Vec v) noexcept { return _mm512_abs_ps(v); }
GEMMANTLE_VEC Vec with_sign_of(Vec v, Vec sign) noexcept {
  return _mm512_or_ps(v, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
GEMMANTLE_VEC Mask less(Vec a, Vec b) noexcept { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
GEMMANTLE_VEC Vec select(Mask mask, Vec yes, Vec no) noexcept { return _mm512_mask_blend_ps(mask, no, yes); }

// v * 2^n, n in the low bits of `bits`.
GEMMANTLE_VEC Vec scale_by_low_bits(Vec v, Vec bits) noexcept {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), n));
}

GEMMANTLE_VEC float sum(Vec v) noexcept {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

GEMMANTLE_VEC float largest(Vec v) noexcept { return _mm512_reduce_max_ps(v); }

GEMMANTLE_VEC Vec load_i8(const int8_t* p) noexcept {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
GEMMANTLE_VEC Vec widen_bf16(__m256i halves) noexcept {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
GEMMANTLE_VEC Vec load_bf16(const uint8_t* p) noexcept { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
GEMMANTLE_VEC Vec load_bf16_first(const uint8_t* p, int64_t n) noexcept {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
GEMMANTLE_VEC float widen_f16(uint16_t half) noexcept { return _cvtsh_ss(half); }
GEMMANTLE_VEC Vec load_f16(const uint8_t* p) noexcept { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
GEMMANTLE_VEC Vec load_f16_first(const uint8_t* p, int64_t n) noexcept {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

// 255 in byte i where bit i is set.
GEMMANTLE_VEC Bytes bytes_of_bits(uint16_t bits) noexcept { return (Bytes)_mm_movm_epi8(bits); }
// table[codes[i]], codes below 16.
GEMMANTLE_VEC Bytes look_up(Bytes table, Bytes codes) noexcept {
  return (Bytes)_mm_shuffle_epi8((__m128i)table, (__m128i)codes);
}

}  // namespace
}  // namespace gemmantle::cpu
