#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace gemmantle {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

std::string whole(std::string_view bytes) {
  Detokenizer detokenizer;
  std::string out = detokenizer.push(bytes);
  return out + detokenizer.flush();
}

// Table 3-7 of the Unicode standard by brute force: the length of the code point at `at`, or minus the length of its
// maximal subpart.
int code_point(std::string_view s, size_t at) {
  struct Row {
    int first, last;
    std::vector<std::pair<int, int>> rest;
  };
  static const std::vector<Row> kRows = {
      {0x00, 0x7F, {}},
      {0xC2, 0xDF, {{0x80, 0xBF}}},
      {0xE0, 0xE0, {{0xA0, 0xBF}, {0x80, 0xBF}}},
      {0xE1, 0xEC, {{0x80, 0xBF}, {0x80, 0xBF}}},
      {0xED, 0xED, {{0x80, 0x9F}, {0x80, 0xBF}}},
      {0xEE, 0xEF, {{0x80, 0xBF}, {0x80, 0xBF}}},
      {0xF0, 0xF0, {{0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {0xF1, 0xF3, {{0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {0xF4, 0xF4, {{0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}}},
  };
  const auto byte = [&](size_t i) { return static_cast<int>(static_cast<unsigned char>(s[i])); };
  for (const Row& row : kRows) {
    if (byte(at) < row.first || byte(at) > row.last) continue;
    size_t n = 1;
    for (const auto& [low, high] : row.rest) {
      if (at + n >= s.size() || byte(at + n) < low || byte(at + n) > high) return -static_cast<int>(n);
      ++n;
    }
    return static_cast<int>(n);
  }
  return -1;
}

std::string replaced(std::string_view s) {
  std::string out;
  for (size_t at = 0; at < s.size();) {
    const int n = code_point(s, at);
    out += n > 0 ? std::string(s.substr(at, static_cast<size_t>(n))) : kBad;
    at += static_cast<size_t>(n > 0 ? n : -n);
  }
  return out;
}

TEST(Detokenizer, holds_a_code_point_back_until_it_is_complete) {
  Detokenizer detokenizer;
  EXPECT_EQ(detokenizer.push("a\xF0"), "a");
  EXPECT_EQ(detokenizer.push("\x9F"), "");
  EXPECT_EQ(detokenizer.push(""), "");
  EXPECT_EQ(detokenizer.push("\x99"), "");
  EXPECT_TRUE(detokenizer.holds_bytes());
  EXPECT_EQ(detokenizer.push("\x82z"), "\xF0\x9F\x99\x82z");
  EXPECT_FALSE(detokenizer.holds_bytes());
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, flush_replaces_an_incomplete_tail_once_and_starts_afresh) {
  Detokenizer detokenizer;
  EXPECT_EQ(detokenizer.push("\xE4\xBD"), "");
  EXPECT_EQ(detokenizer.flush(), kBad);
  EXPECT_EQ(detokenizer.flush(), "");
  EXPECT_EQ(detokenizer.push("\xA0x"), kBad + "x");
}

TEST(Detokenizer, replaces_maximal_subparts) {
  // Expected values: Python's bytes.decode("utf-8", "replace").
  EXPECT_EQ(whole("\xFF"), kBad);
  EXPECT_EQ(whole("\x80\x80"), kBad + kBad);
  EXPECT_EQ(whole("\xC0\xAF"), kBad + kBad);                        // overlong
  EXPECT_EQ(whole("\xE0\x80\x80"), kBad + kBad + kBad);             // overlong
  EXPECT_EQ(whole("\xED\xA0\x80"), kBad + kBad + kBad);             // surrogate
  EXPECT_EQ(whole("\xF4\x90\x80\x80"), kBad + kBad + kBad + kBad);  // beyond U+10FFFF
  EXPECT_EQ(whole("\xF1\x80\x80\xE1\x80\xC2\x62"), kBad + kBad + kBad + "b");
  EXPECT_EQ(whole("\xE1\x80\xE1\x80\x80"), kBad + "\xE1\x80\x80");
  EXPECT_EQ(whole(std::string_view("\0a", 2)), std::string("\0a", 2));
}

TEST(Detokenizer, pieces_and_whole_agree_with_the_table_of_the_standard) {
  constexpr unsigned kSeed = 20260711;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  const std::vector<std::string> parts = {"a",    "\n",   "\xC3\xA9", "\xE4\xBD\xA0", "\xF0\x9F\x99\x82",
                                          "\xE0", "\xED", "\xA0\x80", "\xF4",         "\x90",
                                          "\x8F", "\x80", "\xC2",     "\xFE"};
  for (int trial = 0; trial < 2000; ++trial) {
    std::string bytes;
    for (unsigned i = random() % 12; i > 0; --i) {
      bytes += random() % 3 ? parts[random() % parts.size()] : std::string(1, static_cast<char>(random() % 256));
    }
    Detokenizer detokenizer;
    std::string out;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = random() % 4;
      const std::string piece = detokenizer.push(std::string_view(bytes).substr(at, n));
      EXPECT_EQ(piece, replaced(piece)) << "a piece that is no whole UTF-8";
      out += piece;
      at += n;
    }
    out += detokenizer.flush();
    ASSERT_EQ(out, replaced(bytes)) << "trial " << trial;
    ASSERT_EQ(whole(bytes), out);
  }
}

}  // namespace
}  // namespace gemmantle
