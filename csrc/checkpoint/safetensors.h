// safetensors.h: the header of a .safetensors file and the index of a sharded set.
//
// A header is accepted only as a whole: tensors tile the data without a gap or an overlap, every size is that of its
// shape and dtype. dtypes other than F32, BF16 and F16 are listed as unreadable, since encoders of a model may use
// them.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "checkpoint/directory.h"

namespace gemmantle {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// `bytes`: the whole file; `path` is for messages. Throws corrupt_file.
TensorDirectory parse_safetensors(std::span<const std::byte> bytes, const std::string& path);

// model.safetensors.index.json: tensor name -> file name, a plain name in the same folder. Throws corrupt_file.
std::map<std::string, std::string, std::less<>> parse_safetensors_index(std::string_view text, const std::string& path);

}  // namespace gemmantle
