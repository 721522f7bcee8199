#include "text/vocabulary.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace gemmantle {
namespace {

Vocabulary small() {
  return Vocabulary({"<pad>", "a", std::string("\0\xFF", 2), "<|channel>", "", "<end>"}, {0, 5}, {{"<|channel>", 3}});
}

TEST(Vocabulary, gives_exact_bytes_of_every_id) {
  const Vocabulary vocabulary = small();
  EXPECT_EQ(vocabulary.size(), 6);
  EXPECT_EQ(vocabulary.bytes(0), "<pad>");
  EXPECT_EQ(vocabulary.bytes(1), "a");
  EXPECT_EQ(vocabulary.bytes(2), std::string_view("\0\xFF", 2));
  EXPECT_EQ(vocabulary.bytes(4), "");
}

TEST(Vocabulary, control_ids_never_become_text) {
  const Vocabulary vocabulary = small();
  for (const int id : {0, 3, 5}) {
    EXPECT_TRUE(vocabulary.is_control(id)) << id;
    EXPECT_EQ(vocabulary.text(id), "") << id;
  }
  EXPECT_FALSE(vocabulary.is_control(1));
  EXPECT_EQ(vocabulary.text(1), "a");
}

TEST(Vocabulary, finds_special_ids_by_spelling) {
  const Vocabulary vocabulary = small();
  EXPECT_EQ(vocabulary.special("<|channel>"), 3);
  EXPECT_EQ(vocabulary.special("<|turn>"), std::nullopt);
  EXPECT_EQ(vocabulary.special().size(), 1u);
}

TEST(Vocabulary, refuses_ids_outside_the_table_with_words) {
  const Vocabulary vocabulary = small();
  for (const int id : {-1, 6, INT32_MAX, INT32_MIN}) {
    try {
      vocabulary.bytes(id);
      FAIL() << id;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
      EXPECT_NE(error.message().find(std::to_string(id)), std::string::npos);
      EXPECT_NE(error.message().find("6 pieces"), std::string::npos);
    }
  }
  EXPECT_THROW(Vocabulary({"a"}, {1}, {}), Error);
  EXPECT_THROW(Vocabulary({"a"}, {}, {{"<eos>", -1}}), Error);
  EXPECT_THROW(Vocabulary().bytes(0), Error);
}

}  // namespace
}  // namespace gemmantle
