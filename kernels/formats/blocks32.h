// blocks32.h: the GGUF formats with 32 values to a block and one f16 scale `d` (and minimum `m`).
//
// In the 4- and 5-bit formats byte j of the codes holds value j in its low half and value j + 16 in its high half;
// fifth bits are bit j of a little-endian word. Every product below is exact in f32 (11-bit scale times at most 8-bit
// code), so a value has at most one rounding and does not depend on fused multiply-add.
#pragma once

#include "kernels/common/float.h"
#include "kernels/formats/format.h"

namespace gemmantle::formats {
namespace {

// d | 16 code bytes: (code - 8) * d
struct Q4_0 {
  static constexpr FormatId id = FormatId::q4_0;
  static constexpr const char* name = "q4_0";
  static constexpr int group = 32, block_bytes = 18;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const uint8_t* codes = block + 2;
    for (int j = 0; j < 16; ++j) {
      values[j] = d * static_cast<float>((codes[j] & 15) - 8);
      values[j + 16] = d * static_cast<float>((codes[j] >> 4) - 8);
    }
  }
};

// d | m | 16 code bytes: code * d + m
struct Q4_1 {
  static constexpr FormatId id = FormatId::q4_1;
  static constexpr const char* name = "q4_1";
  static constexpr int group = 32, block_bytes = 20;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const float m = f16_to_f32(load_u16(block + 2));
    const uint8_t* codes = block + 4;
    for (int j = 0; j < 16; ++j) {
      values[j] = d * static_cast<float>(codes[j] & 15) + m;
      values[j + 16] = d * static_cast<float>(codes[j] >> 4) + m;
    }
  }
};

// d | 4 bytes of fifth bits | 16 code bytes: (code - 16) * d
struct Q5_0 {
  static constexpr FormatId id = FormatId::q5_0;
  static constexpr const char* name = "q5_0";
  static constexpr int group = 32, block_bytes = 22;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const uint32_t fifth = load_u32(block + 2);
    const uint8_t* codes = block + 6;
    for (int j = 0; j < 16; ++j) {
      const int low = (codes[j] & 15) | static_cast<int>(((fifth >> j) & 1u) << 4);
      const int high = (codes[j] >> 4) | static_cast<int>(((fifth >> (j + 16)) & 1u) << 4);
      values[j] = d * static_cast<float>(low - 16);
      values[j + 16] = d * static_cast<float>(high - 16);
    }
  }
};

// d | m | 4 bytes of fifth bits | 16 code bytes: code * d + m
struct Q5_1 {
  static constexpr FormatId id = FormatId::q5_1;
  static constexpr const char* name = "q5_1";
  static constexpr int group = 32, block_bytes = 24;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const float m = f16_to_f32(load_u16(block + 2));
    const uint32_t fifth = load_u32(block + 4);
    const uint8_t* codes = block + 8;
    for (int j = 0; j < 16; ++j) {
      const int low = (codes[j] & 15) | static_cast<int>(((fifth >> j) & 1u) << 4);
      const int high = (codes[j] >> 4) | static_cast<int>(((fifth >> (j + 16)) & 1u) << 4);
      values[j] = d * static_cast<float>(low) + m;
      values[j + 16] = d * static_cast<float>(high) + m;
    }
  }
};

// d | 32 signed bytes: code * d
struct Q8_0 {
  static constexpr FormatId id = FormatId::q8_0;
  static constexpr const char* name = "q8_0";
  static constexpr int group = 32, block_bytes = 34;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    for (int j = 0; j < 32; ++j) values[j] = d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
  }
};

// d | 16 code bytes: level[code] * d, sixteen fixed levels, denser around zero
struct IQ4_NL {
  static constexpr FormatId id = FormatId::iq4_nl;
  static constexpr const char* name = "iq4_nl";
  static constexpr int group = 32, block_bytes = 18;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    constexpr int8_t level[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const float d = f16_to_f32(load_u16(block));
    const uint8_t* codes = block + 2;
    for (int j = 0; j < 16; ++j) {
      values[j] = d * static_cast<float>(level[codes[j] & 15]);
      values[j + 16] = d * static_cast<float>(level[codes[j] >> 4]);
    }
  }
};

}  // namespace
}  // namespace gemmantle::formats
