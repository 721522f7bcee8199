// vec_avx2.h: eight lanes, tails by masked loads. Included by vec.h.
#pragma once

#include <immintrin.h>

namespace gemmantle::cpu {
namespace {

constexpr int kLanes = 8;
using Vec = __m256;
using Mask = __m256;

GEMMANTLE_VEC __m256i first_lanes(int64_t n) noexcept {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

GEMMANTLE_VEC Vec fill(float value) noexcept { return _mm256_set1_ps(value); }
GEMMANTLE_VEC Vec load(const void* p) noexcept { return _mm256_loadu_ps((const float*)p); }
GEMMANTLE_VEC Vec load_first(const void* p, int64_t n) noexcept {
  return _mm256_maskload_ps((const float*)p, first_lanes(n));
}
GEMMANTLE_VEC void store(float* p, Vec v) noexcept { _mm256_storeu_ps(p, v); }
GEMMANTLE_VEC void store_first(float* p, Vec v, int64_t n) noexcept { _mm256_maskstore_ps(p, first_lanes(n), v); }

GEMMANTLE_VEC Vec fma(Vec a, Vec b, Vec c) noexcept { return _mm256_fmadd_ps(a, b, c); }
GEMMANTLE_VEC Vec larger(Vec a, Vec b) noexcept { return _mm256_max_ps(a, b); }
GEMMANTLE_VEC Vec smaller(Vec a, Vec b) noexcept { return _mm256_min_ps(a, b); }
GEMMANTLE_VEC Vec magnitude(Vec v) noexcept { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
GEMMANTLE_VEC Vec with_sign_of(Vec v, Vec sign) noexcept {
  return _mm256_or_ps(v, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
GEMMANTLE_VEC Mask less(Vec a, Vec b) noexcept { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
GEMMANTLE_VEC Vec select(Mask mask, Vec yes, Vec no) noexcept { return _mm256_blendv_ps(no, yes, mask); }

// v * 2^n, n in the low bits of `bits`.
GEMMANTLE_VEC Vec scale_by_low_bits(Vec v, Vec bits) noexcept {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), n));
}

GEMMANTLE_VEC float sum(Vec v) noexcept {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

GEMMANTLE_VEC float largest(Vec v) noexcept {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

GEMMANTLE_VEC Vec load_i8(const int8_t* p) noexcept {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
GEMMANTLE_VEC Vec load_bf16(const uint8_t* p) noexcept {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
GEMMANTLE_VEC Vec load_bf16_first(const uint8_t* p, int64_t n) noexcept {
  uint8_t halves[16] = {};
  memcpy(halves, p, static_cast<size_t>(2 * n));
  return load_bf16(halves);
}
GEMMANTLE_VEC float widen_f16(uint16_t half) noexcept { return _cvtsh_ss(half); }
GEMMANTLE_VEC Vec load_f16(const uint8_t* p) noexcept { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
GEMMANTLE_VEC Vec load_f16_first(const uint8_t* p, int64_t n) noexcept {
  uint8_t halves[16] = {};
  memcpy(halves, p, static_cast<size_t>(2 * n));
  return load_f16(halves);
}

// 255 in byte i where bit i is set.
GEMMANTLE_VEC Bytes bytes_of_bits(uint16_t bits) noexcept {
  const __m128i own = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));  // byte i of eight keeps bit i
  const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m128i copies = _mm_shuffle_epi8(_mm_set1_epi16(static_cast<int16_t>(bits)), spread);
  return (Bytes)_mm_cmpeq_epi8(_mm_and_si128(copies, own), own);
}
// table[codes[i]], codes below 16.
GEMMANTLE_VEC Bytes look_up(Bytes table, Bytes codes) noexcept {
  return (Bytes)_mm_shuffle_epi8((__m128i)table, (__m128i)codes);
}

}  // namespace
}  // namespace gemmantle::cpu
