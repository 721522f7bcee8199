// ints_avx2.h: integers for coded.h in 256 bits. Included by ints.h.
#pragma once

namespace gemmantle::cpu {
namespace {

GEMMANTLE_VEC Ints fill_bytes(int value) noexcept { return _mm256_set1_epi8(static_cast<char>(value)); }

// Sixteen bytes from at(0) and at(1) behind each other.
template <class At>
GEMMANTLE_VEC Ints load_sixteens(At at) noexcept {
  const auto one = [&](int b) __attribute__((always_inline)) { return _mm_loadu_si128((const __m128i*)at(b)); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(one(0)), one(1), 1);
}

// 255 in byte i of piece b where bit i of at(b) is set.
template <class At>
GEMMANTLE_VEC Ints bytes_of_sixteens(At at) noexcept {
  return _mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)bytes_of_bits(at(0))), (__m128i)bytes_of_bits(at(1)),
                                 1);
}

// Every 32 bits of piece b by 4 (b mod 2).
GEMMANTLE_VEC Ints shift_right_by_piece(Ints v) noexcept {
  return _mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
}
// a and, beside it, those of b that are in mask.
GEMMANTLE_VEC Ints with(Ints a, Ints b, Ints mask) noexcept { return a | (b & mask); }
GEMMANTLE_VEC Ints look_up_each(Bytes table, Ints codes) noexcept {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)table), codes);
}
GEMMANTLE_VEC Vec keep_first(Vec v, int64_t n) noexcept {
  return _mm256_and_ps(v, _mm256_castsi256_ps(first_lanes(n)));
}
GEMMANTLE_VEC Vec to_float(Ints v) noexcept { return _mm256_cvtepi32_ps(v); }

GEMMANTLE_VEC Ints low_pairs(Ints a, Ints b) noexcept { return _mm256_unpacklo_epi32(a, b); }
GEMMANTLE_VEC Ints high_pairs(Ints a, Ints b) noexcept { return _mm256_unpackhi_epi32(a, b); }
GEMMANTLE_VEC Ints low_quads(Ints a, Ints b) noexcept { return _mm256_unpacklo_epi64(a, b); }
GEMMANTLE_VEC Ints high_quads(Ints a, Ints b) noexcept { return _mm256_unpackhi_epi64(a, b); }

// sums + products of four unsigned bytes with four signed ones. Without kByteDots codes are at most 128: two products
// have to fit 16 bits.
#if defined(__AVXVNNI__)
constexpr bool kByteDots = true;
GEMMANTLE_VEC Ints dot4(Ints sums, Ints codes, Ints x) noexcept { return _mm256_dpbusd_avx_epi32(sums, codes, x); }
#else
constexpr bool kByteDots = false;
GEMMANTLE_VEC Ints dot4(Ints sums, Ints codes, Ints x) noexcept {
  const __m256i pairs = _mm256_maddubs_epi16(codes, x);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// The same with signed codes.
GEMMANTLE_VEC Ints dot4_signed(Ints sums, Ints codes, Ints x) noexcept {
  return dot4(sums, _mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
}

// Eight f16, `kStride` bytes apart.
template <int kStride>
GEMMANTLE_VEC Vec load_halves(const uint8_t* p) noexcept {
  const auto at = [&](int g) __attribute__((always_inline)) { return static_cast<short>(load_u16(p + kStride * g)); };
  return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}

// One block of eight groups fills the lanes, so the second argument is not looked at.
GEMMANTLE_VEC Vec by_block(float a, float) noexcept { return fill(a); }
GEMMANTLE_VEC Vec bytes_to_float(uint64_t a, uint64_t) noexcept {
  return to_float(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(a))));
}
// Eight pairs of signed bytes: the first and the second of each pair.
GEMMANTLE_VEC void load_byte_pairs(const uint8_t* a, const uint8_t*, Vec* first, Vec* second) noexcept {
  const __m256i wide = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)a));
  *first = to_float(_mm256_srai_epi32(_mm256_slli_epi32(wide, 24), 24));
  *second = to_float(_mm256_srai_epi32(wide, 8));
}

// sum() of eight vectors, `stride` floats apart, each to the bit.
GEMMANTLE_VEC Vec sum_each(const float* v, int64_t stride) noexcept {
  Vec halves[4];
#pragma GCC unroll 4
  for (int64_t e = 0; e < 4; ++e) {
    const Vec a = load(v + e * stride), b = load(v + (e + 4) * stride);
    halves[e] = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
  }
  const auto pairs = [](Vec a, Vec b) __attribute__((always_inline)) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)) + _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
  };
  const Vec a = pairs(halves[0], halves[1]), b = pairs(halves[2], halves[3]);
  return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xdd);
}

// Eight numbers below 128 in magnitude, rounded to the nearest integer.
GEMMANTLE_VEC void store_rounded(int8_t* p, Vec v) noexcept {
  const __m256i wide = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}

}  // namespace
}  // namespace gemmantle::cpu
