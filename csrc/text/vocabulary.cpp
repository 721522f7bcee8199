#include "text/vocabulary.h"

#include <utility>

#include "core/error.h"

namespace gemmantle {

Vocabulary::Vocabulary(const std::vector<std::string>& pieces, const std::vector<int32_t>& control, SpecialIds special)
    : is_control_(pieces.size()), special_(std::move(special)) {
  if (pieces.size() > size_t{INT32_MAX}) {
    throw Error(ErrorCode::invalid_argument, str("a vocabulary of ", pieces.size(), " pieces: ids are 32 bits wide"),
                "pieces");
  }
  size_t bytes = 0;
  for (const std::string& piece : pieces) bytes += piece.size();
  arena_.reserve(bytes);
  offsets_.reserve(pieces.size() + 1);
  offsets_.push_back(0);
  for (const std::string& piece : pieces) {
    arena_ += piece;
    offsets_.push_back(arena_.size());
  }
  for (int32_t id : control) is_control_[checked(id)] = true;
  for (const auto& [spelling, id] : special_) is_control_[checked(id)] = true;
}

std::string_view Vocabulary::bytes(int32_t id) const {
  const size_t i = checked(id);
  return std::string_view(arena_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

std::string_view Vocabulary::text(int32_t id) const { return is_control(id) ? std::string_view() : bytes(id); }

bool Vocabulary::is_control(int32_t id) const { return is_control_[checked(id)]; }

std::optional<int32_t> Vocabulary::special(const std::string& spelling) const {
  const auto found = special_.find(spelling);
  if (found == special_.end()) return std::nullopt;
  return found->second;
}

size_t Vocabulary::checked(int32_t id) const {
  if (id < 0 || id >= size()) {
    throw Error(
        ErrorCode::invalid_argument,
        str("token id ", id, " is outside the vocabulary of ", size(), " pieces; use ids from 0 to ", size() - 1),
        "ids");
  }
  return static_cast<size_t>(id);
}

}  // namespace gemmantle
