// k_quants.h: the GGUF formats with 256 values to a block, in groups of 32 or 16 with small integer scales.
//
// Q4_K and Q5_K: eight groups of 32; scale and minimum of a group are 6-bit integers times the block's f16 `d` and
// `dmin`. Q6_K: sixteen groups of 16 with signed 8-bit scales. Products are exact in f32 (at most 11 + 8 + 5 bits), so
// a value has at most one rounding and does not depend on fused multiply-add.
#pragma once

#include "kernels/common/float.h"
#include "kernels/formats/format.h"

namespace gemmantle::formats {
namespace {

// Scale and minimum of group g out of the 12 packed bytes of Q4_K and Q5_K. Bytes 0..3 and 4..7 hold the low six bits
// of scales and minima 0..3; bytes 8..11 hold four bits each of scales and minima 4..7, whose upper two bits are the
// top bits of bytes 0..3 and 4..7.
GEMMANTLE_HD static inline void k_scale_min(const uint8_t* packed, int g, int* scale, int* min) noexcept {
  if (g < 4) {
    *scale = packed[g] & 63;
    *min = packed[g + 4] & 63;
  } else {
    *scale = (packed[g + 4] & 15) | ((packed[g - 4] >> 6) << 4);
    *min = (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4);
  }
}

// d | dmin | 12 scale bytes | 128 code bytes. Each 32 code bytes hold two groups: low halves, then high halves.
struct Q4_K {
  static constexpr FormatId id = FormatId::q4_k;
  static constexpr const char* name = "q4_k";
  static constexpr int group = 256, block_bytes = 144;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const float dmin = f16_to_f32(load_u16(block + 2));
    for (int g = 0; g < 8; ++g) {
      int scale, min;
      k_scale_min(block + 4, g, &scale, &min);
      const float step = d * static_cast<float>(scale);
      const float offset = dmin * static_cast<float>(min);
      const uint8_t* codes = block + 16 + 32 * (g / 2);
      const int shift = 4 * (g % 2);
      for (int j = 0; j < 32; ++j) values[32 * g + j] = step * static_cast<float>((codes[j] >> shift) & 15) - offset;
    }
  }
};

// d | dmin | 12 scale bytes | 32 bytes of fifth bits (bit g of byte j: group g, value j) | 128 code bytes as in Q4_K
struct Q5_K {
  static constexpr FormatId id = FormatId::q5_k;
  static constexpr const char* name = "q5_k";
  static constexpr int group = 256, block_bytes = 176;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block));
    const float dmin = f16_to_f32(load_u16(block + 2));
    const uint8_t* fifth = block + 16;
    for (int g = 0; g < 8; ++g) {
      int scale, min;
      k_scale_min(block + 4, g, &scale, &min);
      const float step = d * static_cast<float>(scale);
      const float offset = dmin * static_cast<float>(min);
      const uint8_t* codes = block + 48 + 32 * (g / 2);
      const int shift = 4 * (g % 2);
      for (int j = 0; j < 32; ++j) {
        const int code = ((codes[j] >> shift) & 15) | (((fifth[j] >> g) & 1) << 4);
        values[32 * g + j] = step * static_cast<float>(code) - offset;
      }
    }
  }
};

// 128 bytes of low four bits | 64 bytes of upper two bits | 16 signed scales | d: (code - 32) * scale * d.
// Each half of the block (128 values) is four runs of 32: runs 0 and 1 are the low halves of the 64 low bytes, runs 2
// and 3 the high halves; run r finds its upper bits at bit 2r of the 32 upper bytes.
struct Q6_K {
  static constexpr FormatId id = FormatId::q6_k;
  static constexpr const char* name = "q6_k";
  static constexpr int group = 256, block_bytes = 210;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    const float d = f16_to_f32(load_u16(block + 208));
    for (int half = 0; half < 2; ++half) {
      const uint8_t* upper = block + 128 + 32 * half;
      for (int r = 0; r < 4; ++r) {
        const uint8_t* low = block + 64 * half + 32 * (r % 2);
        const uint8_t* scales = block + 192 + 8 * half + 2 * r;
        float* out = values + 128 * half + 32 * r;
        for (int j = 0; j < 32; ++j) {
          const int code = ((low[j] >> (4 * (r / 2))) & 15) | (((upper[j] >> (2 * r)) & 3) << 4);
          const float step = d * static_cast<float>(static_cast<int8_t>(scales[j / 16]));
          out[j] = step * static_cast<float>(code - 32);
        }
      }
    }
  }
};

}  // namespace
}  // namespace gemmantle::formats
