// dense.h: one value after the other, as in safetensors and in unquantised GGUF tensors.
#pragma once

#include "kernels/common/float.h"
#include "kernels/formats/format.h"

namespace gemmantle::formats {
namespace {

struct F32 {
  static constexpr FormatId id = FormatId::f32;
  static constexpr const char* name = "f32";
  static constexpr int group = 1, block_bytes = 4;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    values[0] = f32_from_bits(load_u32(block));
  }
};

struct BF16 {
  static constexpr FormatId id = FormatId::bf16;
  static constexpr const char* name = "bf16";
  static constexpr int group = 1, block_bytes = 2;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    values[0] = bf16_to_f32(load_u16(block));
  }
};

struct F16 {
  static constexpr FormatId id = FormatId::f16;
  static constexpr const char* name = "f16";
  static constexpr int group = 1, block_bytes = 2;
  GEMMANTLE_HD static inline void decode(const uint8_t* block, float* values) noexcept {
    values[0] = f16_to_f32(load_u16(block));
  }
};

}  // namespace
}  // namespace gemmantle::formats
