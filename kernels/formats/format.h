// format.h: what the bytes of a weight mean.
//
// A format is a struct with a group of values, the bytes a group takes and how to read it; `formats.def` lists all of
// them, and every kernel, table and test loops over that list. Layouts are those of safetensors (dense) and of GGUF
// version 3 (blocks); values come out exactly as the file defines them, in f32.
//
//   struct Q8_0 {
//     static constexpr FormatId id = FormatId::q8_0;
//     static constexpr const char* name = "q8_0";
//     static constexpr int group = 32, block_bytes = 34;
//     static inline void decode(const uint8_t* block, float* values) noexcept;   // `group` values
//   };
//
// No STL and nothing of csrc: this header is compiled for every instruction set and by nvcc.
#pragma once

#include <stdint.h>

namespace gemmantle::formats {

enum class FormatId : uint8_t {
#define GEMMANTLE_FORMAT(id, type) id,
#include "kernels/formats/formats.def"
#undef GEMMANTLE_FORMAT
};

}  // namespace gemmantle::formats
