// What becomes of small lists of merges; tests/python/test_merges.py compares the ids of both libraries.
#include "text/merge_model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace gemmantle {
namespace {

class Words {
 public:
  Words() {
    add("<unk>", PieceKind::unknown);
    for (int byte = 0; byte < 256; ++byte) {
      constexpr const char* kHex = "0123456789ABCDEF";
      add(std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">", PieceKind::byte);
    }
    for (const char* piece : {"a", "b", "c", "ab", "bc", "abc"}) add(piece, PieceKind::normal);
  }

  Words& add(const std::string& piece, PieceKind kind) {
    pieces_.push_back(piece);
    kinds_.push_back(kind);
    return *this;
  }
  std::optional<std::string> model(const std::vector<std::string_view>& merges) const {
    return model_of_merges(std::vector<std::string_view>(pieces_.begin(), pieces_.end()), kinds_, merges);
  }

 private:
  std::vector<std::string> pieces_;
  std::vector<PieceKind> kinds_;
};

const std::vector<std::string_view> kMerges = {"a b", "b c", "ab c", "a bc"};

// The score that the serialised model gives a piece: field 2, a float, behind the text.
float score(const std::string& model, const std::string& piece) {
  const std::string text = {'\x0a', static_cast<char>(piece.size())};
  const size_t at = model.find(text + piece + '\x15');
  if (at == std::string::npos) return 1;
  float value = 0;
  std::memcpy(&value, model.data() + at + text.size() + piece.size() + 1, sizeof value);
  return value;
}

TEST(MergeModel, ranks_pieces_by_the_first_of_their_merges) {
  const auto model = Words().model(kMerges);
  ASSERT_TRUE(model);
  EXPECT_GT(score(*model, "ab"), score(*model, "bc"));
  EXPECT_GT(score(*model, "bc"), score(*model, "abc"));
  EXPECT_GT(score(*model, "abc"), score(*model, "a"));
}

TEST(MergeModel, ranks_pieces_with_scattered_merges_by_the_one_that_makes_them) {
  const auto late = Words().model({"a bc", "b c", "a b", "ab c"});  // abc comes of a and bc
  ASSERT_TRUE(late);
  EXPECT_GT(score(*late, "abc"), score(*late, "bc"));
  const auto early = Words().model({"ab c", "b c", "a b", "a bc"});
  ASSERT_TRUE(early);
  EXPECT_GT(score(*early, "ab"), score(*early, "abc"));
}

TEST(MergeModel, leaves_lists_alone_that_ranks_of_pieces_cannot_stand_for) {
  EXPECT_FALSE(Words().model({"a b", "b c", "ab c"})) << "abc is a and bc, too";
  EXPECT_FALSE(Words().model({})) << "ab is a and b";
  EXPECT_FALSE(Words().model({"a b", "b c", "ab c", "a bc", "a b"}));
  EXPECT_FALSE(Words().model({"a b", "b c", "ab c", "abc"}));
  EXPECT_FALSE(Words().model({"a b", "b c", "ab c", "a bc", "a c"})) << "no piece is ac";
  EXPECT_FALSE(Words().model({"a b", "b c", "ab c", " abc"}));
}

TEST(MergeModel, leaves_vocabularies_alone_that_sentencepiece_reads_otherwise) {
  EXPECT_TRUE(Words().add("<bos>", PieceKind::control).model(kMerges));
  EXPECT_FALSE(Words().add("d", PieceKind::control).model(kMerges)) << "text may hold a d";
  EXPECT_FALSE(Words().add("abc", PieceKind::normal).model(kMerges));
  EXPECT_FALSE(Words().add("", PieceKind::normal).model(kMerges));
  EXPECT_FALSE(Words().add("\xFF", PieceKind::normal).model(kMerges));
  EXPECT_FALSE(Words().add("<0x4>", PieceKind::byte).model(kMerges));
  EXPECT_FALSE(Words().add("<none>", PieceKind::unknown).model(kMerges));
  EXPECT_FALSE(Words().add(std::string(256, 'x'), PieceKind::normal).model(kMerges));
}

}  // namespace
}  // namespace gemmantle
