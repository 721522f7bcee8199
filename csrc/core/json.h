// json.h: JSON from files and requests nobody vouches for.
//
// Size, depth and number of values are checked by a scan before the parser sees the text, so a hostile document costs
// one pass over its bytes and no memory.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace gemmantle {

struct JsonLimits {
  size_t bytes = size_t{16} << 20;
  size_t depth = 64;
  size_t values = size_t{1} << 20;  // an upper bound on what the parsed tree may hold
  bool refuse_duplicate_keys = false;
};

// `what` names the document in messages ("config.json of '/models/x'"). Throws corrupt_file.
nlohmann::json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits = {});

// Depth of brackets and braces outside strings, and an upper bound on the number of values and keys; no validation.
struct JsonShape {
  size_t depth = 0;
  size_t values = 0;
};
JsonShape scan_json(std::string_view text) noexcept;

}  // namespace gemmantle
