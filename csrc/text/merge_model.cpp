#include "text/merge_model.h"

#include <algorithm>
#include <utility>

#include "text/merge_ranks.h"

namespace gemmantle {
namespace {

// The wire format of protobuf, as far as sentencepiece_model.proto needs it.
class Message {
 public:
  explicit Message(size_t room = 0) { bytes_.reserve(room); }

  Message& number(uint32_t field, uint64_t value) {
    varint(field << 3);
    varint(value);
    return *this;
  }
  Message& real(uint32_t field, float value) {
    varint(field << 3 | 5);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Message& text(uint32_t field, std::string_view value) {
    varint(field << 3 | 2);
    varint(value.size());
    bytes_.append(value);
    return *this;
  }
  Message& message(uint32_t field, const Message& value) { return text(field, value.bytes_); }

  void clear() { bytes_.clear(); }
  std::string take() { return std::move(bytes_); }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }

  std::string bytes_;
};

}  // namespace

std::optional<std::string> model_of_merges(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds,
                                           std::span<const std::string_view> merges) {
  const auto count = [&](PieceKind kind) { return std::count(kinds.begin(), kinds.end(), kind); };
  if (kinds.size() != pieces.size() || count(PieceKind::unknown) != 1 || count(PieceKind::byte) != 256) {
    return std::nullopt;
  }
  MergeRanks ranks(pieces, kinds);
  if (!ranks.read(merges)) return std::nullopt;

  size_t bytes = 0;
  for (const std::string_view piece : pieces) bytes += piece.size() + 16;
  Message model(bytes + 128);
  Message part;
  for (size_t id = 0; id < pieces.size(); ++id) {
    part.clear();
    part.text(1, pieces[id]);                           // piece
    part.real(2, -static_cast<float>(ranks.rank(id)));  // score: the greatest goes first
    part.number(3, static_cast<uint64_t>(kinds[id]));   // type
    model.message(1, part);
  }
  constexpr uint64_t kBpe = 2;
  const auto unknown = std::find(kinds.begin(), kinds.end(), PieceKind::unknown) - kinds.begin();
  part.clear();
  part.number(3, kBpe).number(4, pieces.size());                  // model_type, vocab_size
  part.number(35, 1).number(40, static_cast<uint64_t>(unknown));  // byte_fallback, unk_id
  model.message(2, part);
  part.clear();
  part.text(1, "identity").number(3, 0);  // name, add_dummy_prefix
  part.number(4, 0).number(5, 1);         // remove_extra_whitespaces, escape_whitespaces
  model.message(3, part);
  return model.take();
}

}  // namespace gemmantle
