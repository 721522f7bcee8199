// ints_avx512.h: integers for coded.h in 512 bits. Included by ints.h.
#pragma once

namespace gemmantle::cpu {
namespace {

GEMMANTLE_VEC Ints fill_bytes(int value) noexcept { return _mm512_set1_epi8(static_cast<char>(value)); }

// Sixteen bytes from at(0), at(1), ... behind each other.
template <class At>
GEMMANTLE_VEC Ints load_sixteens(At at) noexcept {
  const auto one = [&](int b) __attribute__((always_inline)) { return _mm_loadu_si128((const __m128i*)at(b)); };
  // Broadcasts under a mask, not insertions: those would take the two pipes that shuffle.
  Ints v = _mm512_castsi128_si512(one(0));
  v = _mm512_mask_broadcast_i32x4(v, 0x00f0, one(1));
  v = _mm512_mask_broadcast_i32x4(v, 0x0f00, one(2));
  return _mm512_mask_broadcast_i32x4(v, 0xf000, one(3));
}

// 255 in byte i of piece b where bit i of at(b) is set.
template <class At>
GEMMANTLE_VEC Ints bytes_of_sixteens(At at) noexcept {
  const uint64_t bits = uint64_t{at(0)} | uint64_t{at(1)} << 16 | uint64_t{at(2)} << 32 | uint64_t{at(3)} << 48;
  return _mm512_movm_epi8(bits);
}

// Every 32 bits of piece b by 4 (b mod 2).
GEMMANTLE_VEC Ints shift_right_by_piece(Ints v) noexcept {
  return _mm512_srlv_epi32(v, _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4));
}
// a and, beside it, those of b that are in mask.
GEMMANTLE_VEC Ints with(Ints a, Ints b, Ints mask) noexcept { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
GEMMANTLE_VEC Ints look_up_each(Bytes table, Ints codes) noexcept {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)table), codes);
}
GEMMANTLE_VEC Vec keep_first(Vec v, int64_t n) noexcept { return _mm512_maskz_mov_ps(first_lanes(n), v); }
GEMMANTLE_VEC Vec to_float(Ints v) noexcept { return _mm512_cvtepi32_ps(v); }

GEMMANTLE_VEC Ints low_pairs(Ints a, Ints b) noexcept { return _mm512_unpacklo_epi32(a, b); }
GEMMANTLE_VEC Ints high_pairs(Ints a, Ints b) noexcept { return _mm512_unpackhi_epi32(a, b); }
GEMMANTLE_VEC Ints low_quads(Ints a, Ints b) noexcept { return _mm512_unpacklo_epi64(a, b); }
GEMMANTLE_VEC Ints high_quads(Ints a, Ints b) noexcept { return _mm512_unpackhi_epi64(a, b); }

// sums + products of four unsigned bytes with four signed ones. Without kByteDots codes are at most 128: two products
// have to fit 16 bits.
#if defined(__AVX512VNNI__)
constexpr bool kByteDots = true;
GEMMANTLE_VEC Ints dot4(Ints sums, Ints codes, Ints x) noexcept { return _mm512_dpbusd_epi32(sums, codes, x); }
#else
constexpr bool kByteDots = false;
GEMMANTLE_VEC Ints dot4(Ints sums, Ints codes, Ints x) noexcept {
  const __m512i pairs = _mm512_maddubs_epi16(codes, x);
  return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif

// The same with signed codes.
GEMMANTLE_VEC Ints dot4_signed(Ints sums, Ints codes, Ints x) noexcept {
  const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(codes), _mm512_setzero_si512(), x);
  return dot4(sums, _mm512_abs_epi8(codes), turned);
}

// Sixteen f16, `kStride` bytes apart. For 18 the words are picked out of whole registers, not loaded one by one.
template <int kStride>
GEMMANTLE_VEC Vec load_halves(const uint8_t* p) noexcept {
  if constexpr (kStride == 18) {
    const __m512i at = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 62, 53, 44, 35, 26, 17, 8,
                                        63, 54, 45, 36, 27, 18, 9, 0);
    const __m512i first = _mm512_permutex2var_epi16(load_ints(p), at, load_ints(p + 64));
    const __m512i second = _mm512_permutex2var_epi16(load_ints(p + 128), at, load_ints(p + 192));
    __m256i words = _mm256_mask_blend_epi16(0xff00, _mm512_castsi512_si256(first), _mm512_castsi512_si256(second));
    return _mm512_cvtph_ps(_mm256_insert_epi16(words, static_cast<int16_t>(load_u16(p + 270)), 15));
  } else {
    const auto at = [&](int g) __attribute__((always_inline)) { return static_cast<short>(load_u16(p + kStride * g)); };
    return _mm512_cvtph_ps(_mm256_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                                             at(10), at(11), at(12), at(13), at(14), at(15)));
  }
}

// a in the lanes of a block's first eight groups, b in the next eight.
GEMMANTLE_VEC Vec by_block(float a, float b) noexcept { return _mm512_mask_blend_ps(0xff00, fill(a), fill(b)); }
// Eight bytes of each of two words, as numbers.
GEMMANTLE_VEC Vec bytes_to_float(uint64_t a, uint64_t b) noexcept {
  return to_float(_mm512_cvtepu8_epi32(_mm_set_epi64x(static_cast<int64_t>(b), static_cast<int64_t>(a))));
}
// Sixteen pairs of signed bytes at a and b: the first and the second of each pair.
GEMMANTLE_VEC void load_byte_pairs(const uint8_t* a, const uint8_t* b, Vec* first, Vec* second) noexcept {
  const __m256i pairs = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)a)),
                                                _mm_loadu_si128((const __m128i*)b), 1);
  const __m512i wide = _mm512_cvtepi16_epi32(pairs);
  *first = to_float(_mm512_srai_epi32(_mm512_slli_epi32(wide, 24), 24));
  *second = to_float(_mm512_srai_epi32(wide, 8));
}

// sum() of sixteen vectors, `stride` floats apart, each to the bit. Of each pair of vectors one half is chosen under a
// mask, and only the other is shuffled to meet it: two pipes shuffle, all of them choose.
GEMMANTLE_VEC Vec sum_each(const float* v, int64_t stride) noexcept {
  Vec quarters[4];
#pragma GCC unroll 4
  for (int64_t e = 0; e < 4; ++e) {
    const auto halves = [&](int64_t i) __attribute__((always_inline)) {
      const Vec a = load(v + i * stride), b = load(v + (i + 8) * stride);
      return _mm512_mask_blend_ps(0xff00, a, b) + _mm512_shuffle_f32x4(a, b, 0x4e);
    };
    const Vec a = halves(e), b = halves(e + 4), other = _mm512_mask_blend_ps(0xf0f0, b, a);
    quarters[e] = _mm512_mask_blend_ps(0xf0f0, a, b) + _mm512_shuffle_f32x4(other, other, 0xb1);
  }
  const auto pairs = [](Vec a, Vec b) __attribute__((always_inline)) {
    const __m512d other = _mm512_shuffle_pd(_mm512_castps_pd(a), _mm512_castps_pd(b), 0x55);
    return _mm512_mask_blend_ps(0xcccc, a, b) + _mm512_castpd_ps(other);
  };
  const Vec a = pairs(quarters[0], quarters[2]), b = pairs(quarters[1], quarters[3]);
  return _mm512_mask_blend_ps(0xaaaa, a, b) + _mm512_permute_ps(_mm512_mask_blend_ps(0xaaaa, b, a), 0xb1);
}

// Sixteen numbers below 128 in magnitude, rounded to the nearest integer.
GEMMANTLE_VEC void store_rounded(int8_t* p, Vec v) noexcept {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}

}  // namespace
}  // namespace gemmantle::cpu
