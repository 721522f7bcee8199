// unpack.h: blocks of weights to f32 by vectors: sixteen codes at a time as bytes, then widened and scaled.
//
// Gives the bits of Format::decode, which serves where there is no reader here. Compilers do not find these loops by
// themselves, since bytes may alias floats. Milliseconds a token by decode and by unpack, Gemma 3 270M shapes all in
// one format, AMD Zen 5, one core, AVX-512: Q6_K 450 and 48, IQ4_NL 203 and 26, Q4_0 130 and 26 (hidden size 768); Q5_0
// 105 and 28, Q8_0 43 and 29 (hidden size 640). A scale goes through the processor's own f16 conversion: the branches
// of the portable one cost half of the time where scales are small.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/formats/decode.h"

namespace gemmantle::cpu {
namespace {

GEMMANTLE_VEC Bytes load_bytes(const uint8_t* p) noexcept {
  Bytes b;
  memcpy(&b, p, sizeof b);
  return b;
}

GEMMANTLE_VEC Bytes low_halves(Bytes b) noexcept { return b & 15; }
GEMMANTLE_VEC Bytes high_halves(Bytes b) noexcept { return b >> 4; }

// 16 in byte i where bit i of two bytes of fifth bits is set.
GEMMANTLE_VEC Bytes fifth_bits(const uint8_t* two) noexcept { return bytes_of_bits(load_u16(two)) & 16; }

// values[0, 16) = step * code, and plus offset; codes are signed bytes.
GEMMANTLE_VEC void spread(float* values, Bytes codes, float step) noexcept {
  int8_t bytes[16];
  memcpy(bytes, &codes, sizeof codes);
  for (int i = 0; i < 16; i += kLanes) store(values + i, fill(step) * load_i8(bytes + i));
}
GEMMANTLE_VEC void spread(float* values, Bytes codes, float step, float offset) noexcept {
  int8_t bytes[16];
  memcpy(bytes, &codes, sizeof codes);
  for (int i = 0; i < 16; i += kLanes) store(values + i, fill(step) * load_i8(bytes + i) + fill(offset));
}

GEMMANTLE_VEC float f16_at(const uint8_t* p) noexcept { return widen_f16(load_u16(p)); }

template <class F>
GEMMANTLE_VEC void unpack(const uint8_t* block, float* values) noexcept {
  using formats::FormatId;
  if constexpr (F::id == FormatId::q8_0) {
    const float d = f16_at(block);
    spread(values, load_bytes(block + 2), d);
    spread(values + 16, load_bytes(block + 18), d);
  } else if constexpr (F::id == FormatId::q4_0) {
    const float d = f16_at(block);
    const Bytes codes = load_bytes(block + 2);
    spread(values, low_halves(codes) - 8, d);
    spread(values + 16, high_halves(codes) - 8, d);
  } else if constexpr (F::id == FormatId::q4_1) {
    const float d = f16_at(block), m = f16_at(block + 2);
    const Bytes codes = load_bytes(block + 4);
    spread(values, low_halves(codes), d, m);
    spread(values + 16, high_halves(codes), d, m);
  } else if constexpr (F::id == FormatId::q5_0) {
    const float d = f16_at(block);
    const Bytes codes = load_bytes(block + 6);
    spread(values, (low_halves(codes) | fifth_bits(block + 2)) - 16, d);
    spread(values + 16, (high_halves(codes) | fifth_bits(block + 4)) - 16, d);
  } else if constexpr (F::id == FormatId::q5_1) {
    const float d = f16_at(block), m = f16_at(block + 2);
    const Bytes codes = load_bytes(block + 8);
    spread(values, low_halves(codes) | fifth_bits(block + 4), d, m);
    spread(values + 16, high_halves(codes) | fifth_bits(block + 6), d, m);
  } else if constexpr (F::id == FormatId::q4_k || F::id == FormatId::q5_k) {
    const float d = f16_at(block), dmin = f16_at(block + 2);
    const uint8_t* codes = block + F::block_bytes - 128;
    for (int g = 0; g < 8; ++g) {
      int scale, min;
      formats::k_scale_min(block + 4, g, &scale, &min);
      const float step = d * static_cast<float>(scale), offset = -(dmin * static_cast<float>(min));
      for (int s = 0; s < 32; s += 16) {
        const Bytes pair = load_bytes(codes + 32 * (g / 2) + s);
        Bytes code = g % 2 == 0 ? low_halves(pair) : high_halves(pair);
        if constexpr (F::id == FormatId::q5_k) code |= ((load_bytes(block + 16 + s) >> g) & 1) << 4;
        spread(values + 32 * g + s, code, step, offset);
      }
    }
  } else if constexpr (F::id == FormatId::q6_k) {
    const float d = f16_at(block + 208);
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        for (int s = 0; s < 2; ++s) {
          const Bytes low = load_bytes(block + 64 * half + 32 * (r % 2) + 16 * s);
          const Bytes upper = (load_bytes(block + 128 + 32 * half + 16 * s) >> (2 * r)) & 3;
          const Bytes code = ((r < 2 ? low_halves(low) : high_halves(low)) | (upper << 4)) - 32;
          const auto scale = static_cast<int8_t>(block[192 + 8 * half + 2 * r + s]);
          spread(values + 128 * half + 32 * r + 16 * s, code, d * static_cast<float>(scale));
        }
      }
    }
  } else if constexpr (F::id == FormatId::iq4_nl) {
    constexpr Bytes kLevels = {129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113};  // mod 256
    const float d = f16_at(block);
    const Bytes codes = load_bytes(block + 2);
    spread(values, look_up(kLevels, low_halves(codes)), d);
    spread(values + 16, look_up(kLevels, high_halves(codes)), d);
  } else {
    F::decode(block, values);
  }
}

}  // namespace
}  // namespace gemmantle::cpu
