// float.h: bfloat16 and IEEE half precision to and from f32, in integer code.
//
// The same bits on every compiler, instruction set and device. Widening is exact; narrowing rounds to nearest, ties to
// even. A NaN stays a NaN (made quiet) and keeps its sign.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/common/macros.h"

namespace gemmantle {

GEMMANTLE_HD static inline uint32_t f32_bits(float value) noexcept {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

GEMMANTLE_HD static inline float f32_from_bits(uint32_t bits) noexcept {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GEMMANTLE_HD static inline float bf16_to_f32(uint16_t half) noexcept {
  return f32_from_bits(static_cast<uint32_t>(half) << 16);
}

GEMMANTLE_HD static inline uint16_t f32_to_bf16(float value) noexcept {
  const uint32_t bits = f32_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

GEMMANTLE_HD static inline float f16_to_f32(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1fu) {
    return f32_from_bits(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
  }
  if (exponent != 0) return f32_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24, exact in f32 as an integer below 2^10 times a power of two.
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
  return f32_from_bits(sign | f32_bits(magnitude));
}

GEMMANTLE_HD static inline uint16_t f32_to_f16(float value) noexcept {
  const uint32_t bits = f32_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u) {                                              // 2^-14: a normal half
    const uint32_t rebased = magnitude - (112u << 23);
    return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below 2^-25: rounds to zero
  const uint32_t shift = 126u - (magnitude >> 23);                  // 14..24
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  const uint32_t tie = 1u << (shift - 1u);
  return static_cast<uint16_t>(sign | (kept + ((rest > tie || (rest == tie && (kept & 1u) != 0)) ? 1u : 0u)));
}

// Little-endian reads from packed bytes, which are not aligned.
GEMMANTLE_HD static inline uint16_t load_u16(const uint8_t* bytes) noexcept {
  return static_cast<uint16_t>(bytes[0] | (bytes[1] << 8));
}

GEMMANTLE_HD static inline uint32_t load_u32(const uint8_t* bytes) noexcept {
  return static_cast<uint32_t>(load_u16(bytes)) | (static_cast<uint32_t>(load_u16(bytes + 2)) << 16);
}

}  // namespace gemmantle
