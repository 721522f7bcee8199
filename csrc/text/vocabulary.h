// vocabulary.h: what an id stands for: its bytes, whether it may become text, and which ids are control strings.
//
// The table is made by the tokenizer's library (Python side) and only read here; there is no encoder. Ids from outside
// the table are refused with words: a checkpoint whose embedding is padded must be given a padded table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gemmantle {

using SpecialIds = std::unordered_map<std::string, int32_t>;  // "<|channel>" -> id

class Vocabulary {
 public:
  Vocabulary() = default;

  // pieces[id]: the exact bytes (byte entries decoded, U+2581 already a space). control: ids that never become text.
  // special: spelling -> id of the control strings of Gemma 4 that this vocabulary has; they are control ids too.
  Vocabulary(const std::vector<std::string>& pieces, const std::vector<int32_t>& control, SpecialIds special);

  int32_t size() const { return static_cast<int32_t>(is_control_.size()); }

  std::string_view bytes(int32_t id) const;  // a control id gives its spelling
  std::string_view text(int32_t id) const;   // what the id adds to text: a control id adds nothing
  bool is_control(int32_t id) const;

  const SpecialIds& special() const { return special_; }
  std::optional<int32_t> special(const std::string& spelling) const;

 private:
  size_t checked(int32_t id) const;

  std::string arena_;            // all pieces, one after the other
  std::vector<size_t> offsets_;  // [size + 1] into arena_
  std::vector<bool> is_control_;
  SpecialIds special_;
};

}  // namespace gemmantle
