#include "core/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/bytes.h"
#include "core/error.h"

namespace gemmantle {

JsonShape scan_json(std::string_view text) noexcept {
  JsonShape shape{0, 1};
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      shape.depth = std::max(shape.depth, ++depth);
      ++shape.values;
    } else if (c == ']' || c == '}') {
      depth -= depth > 0 ? 1 : 0;
    } else if (c == ',' || c == ':') {
      ++shape.values;
    }
  }
  return shape;
}

nlohmann::json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  const auto refuse = [&](const auto&... parts) { throw Error(ErrorCode::corrupt_file, str(what, " ", parts...)); };
  if (text.size() > limits.bytes) refuse("has ", text.size(), " bytes; at most ", limits.bytes, " are read");
  const JsonShape shape = scan_json(text);
  if (shape.depth > limits.depth)
    refuse("is nested ", shape.depth, " levels deep; at most ", limits.depth, " are read");
  if (shape.values > limits.values) {
    refuse("holds up to ", shape.values, " values; at most ", limits.values, " are read");
  }

  using Json = nlohmann::json;
  std::vector<std::unordered_set<std::string>> open_objects;
  const Json::parser_callback_t watch_keys = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      open_objects.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      open_objects.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) {
        refuse("names the key ", quote(key), " twice; every key must be there once");
      }
    }
    return true;
  };
  try {
    Json document = Json::parse(text, limits.refuse_duplicate_keys ? watch_keys : nullptr);
    return document;
  } catch (const Json::parse_error& error) {
    refuse("is not valid JSON (at byte ", error.byte, "); is it cut short or damaged?");
  } catch (const Json::exception& error) {
    refuse("cannot be read as JSON (", error.what(), ")");
  }
  return {};
}

}  // namespace gemmantle
