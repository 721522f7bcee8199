#include "text/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/error.h"

namespace gemmantle {
namespace {

struct Result {
  std::string text;
  int index = -1;

  bool operator==(const Result&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Result& r) { return out << '"' << r.text << "\" " << r.index; }

// The rule by brute force: the smallest end, then the smallest start.
Result expected(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (best < 0 || stops[i].size() > stops[static_cast<size_t>(best)].size()) best = static_cast<int>(i);
    }
    if (best >= 0) return {text.substr(0, end - stops[static_cast<size_t>(best)].size()), best};
  }
  return {text, -1};
}

Result run(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher(stops);
  Result result;
  for (const std::string& piece : pieces) result.text += matcher.push(piece);
  result.text += matcher.flush();
  result.index = matcher.matched_index();
  return result;
}

TEST(StopMatcher, cuts_where_the_stop_string_begins) {
  EXPECT_EQ(run({"END"}, {"one END two"}), (Result{"one ", 0}));
  EXPECT_EQ(run({"END"}, {"one E", "N", "D two", "three"}), (Result{"one ", 0}));
  EXPECT_EQ(run({"x", "\n\n"}, {"a\n", "\nb"}), (Result{"a", 1}));
  EXPECT_EQ(run({"END"}, {"no stop EN"}), (Result{"no stop EN", -1}));
  EXPECT_EQ(run({}, {"any", "thing"}), (Result{"anything", -1}));
}

TEST(StopMatcher, the_first_complete_stop_wins_and_the_longest_of_those_that_end_together) {
  EXPECT_EQ(run({"abcd", "bc"}, {"xabcd"}), (Result{"xa", 1}));
  EXPECT_EQ(run({"cd", "abcd", "d"}, {"xabcd"}), (Result{"x", 1}));
  EXPECT_EQ(run({"a", "a"}, {"ba"}), (Result{"b", 0}));
}

TEST(StopMatcher, holds_back_only_what_may_become_a_stop_string) {
  StopMatcher matcher({"</s>", "<br>"});
  EXPECT_EQ(matcher.push("a <"), "a ");
  EXPECT_EQ(matcher.push("b"), "");
  EXPECT_EQ(matcher.push("x"), "<bx");
  EXPECT_EQ(matcher.push("<<"), "<");
  EXPECT_EQ(matcher.flush(), "<");
  EXPECT_EQ(matcher.push("/s>"), "/s>") << "a flush forgets the prefix that was emitted";
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, finds_a_stop_string_that_overlaps_a_failed_start) {
  EXPECT_EQ(run({"aab"}, {"aa", "aab"}), (Result{"aa", 0}));
  EXPECT_EQ(run({"abab c"}, {"aba", "bab c"}), (Result{"ab", 0}));
}

TEST(StopMatcher, says_nothing_after_a_match) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.push("go stop go"), "go ");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.matched_stop(), "stop");
  EXPECT_EQ(matcher.push("more stop"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, refuses_an_empty_stop_string_by_name) {
  try {
    StopMatcher matcher({"a", ""});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.param(), "stop");
  }
}

TEST(StopMatcher, does_not_depend_on_how_text_is_cut) {
  constexpr unsigned kSeed = 4711;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  const auto text_of = [&](size_t size) {
    std::string text;
    for (size_t i = 0; i < size; ++i) text += "ab\xFF"[random() % 3];
    return text;
  };
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<std::string> stops;
    for (unsigned i = random() % 4; i > 0; --i) stops.push_back(text_of(1 + random() % 5));
    const std::string text = text_of(random() % 24);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size(); at += pieces.back().size()) {
      pieces.push_back(text.substr(at, 1 + random() % 5));
    }
    ASSERT_EQ(run(stops, pieces), expected(stops, text)) << "trial " << trial;
  }
}

TEST(StopMatcher, stays_linear_on_text_that_keeps_almost_matching) {
  // 4 MiB of the worst case; rescans of the held-back prefix would take minutes.
  const std::string almost(2000, 'a');
  StopMatcher matcher({almost + "b"});
  size_t out = 0;
  for (int i = 0; i < 2048; ++i) out += matcher.push(std::string(2048, 'a')).size();
  EXPECT_EQ(out, size_t{2048} * 2048 - 2000);
  EXPECT_EQ(matcher.push("b"), "");
  EXPECT_TRUE(matcher.matched());
}

}  // namespace
}  // namespace gemmantle
