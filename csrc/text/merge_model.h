// merge_model.h: a vocabulary with a list of merges, written as a SentencePiece model that encodes every text alike.
//
// A list of merges ranks pairs, SentencePiece ranks what pairs make; docs/decisions/0023 says where that is the same.
// Other lists are not rewritten; nothing is encoded here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace gemmantle {

// Numbers are those of SentencePiece.
enum class PieceKind : uint8_t { normal = 1, unknown = 2, control = 3, byte = 6 };

// pieces[id] and kinds[id]: control pieces and the one unknown piece never come out of text; the 256 byte pieces stand
// for characters that have no piece. merges: "left right", best first.
//
// The serialised ModelProto; nothing where the two could differ on some text, or where a library would refuse.
std::optional<std::string> model_of_merges(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds,
                                           std::span<const std::string_view> merges);

}  // namespace gemmantle
