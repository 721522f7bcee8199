#include "core/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "core/bytes.h"
#include "core/error.h"

namespace gemmantle {
namespace {

std::string refusal(const std::string& text, const JsonLimits& limits = {}) {
  try {
    parse_json(text, "it", limits);
  } catch (const Error& error) {
    return error.message();
  }
  return "not refused";
}

TEST(Json, depth_counts_brackets_outside_strings_only) {
  EXPECT_EQ(scan_json(R"({"a":"[[[[","b":["\"[",{"c":[]}]})").depth, 4u);
  EXPECT_EQ(scan_json("]]]][").depth, 1u);
  EXPECT_EQ(scan_json("\"\\").depth, 0u);
}

TEST(Json, limits_hold_at_their_border) {
  JsonLimits limits;
  limits.depth = 3;
  limits.values = 5;
  limits.bytes = 12;
  EXPECT_EQ(refusal("[[[]]]", limits), "not refused");
  EXPECT_EQ(refusal("[[[[]]]]", limits), "it is nested 4 levels deep; at most 3 are read");
  EXPECT_EQ(refusal("[1,2,3,4]", limits), "not refused");
  EXPECT_EQ(refusal("[1,2,3,4,5]", limits), "it holds up to 6 values; at most 5 are read");
  EXPECT_EQ(refusal("[1,         2]", limits), "it has 14 bytes; at most 12 are read");
}

TEST(Json, duplicate_keys_are_refused_where_asked_at_any_depth) {
  JsonLimits limits;
  limits.refuse_duplicate_keys = true;
  EXPECT_EQ(refusal(R"({"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]})", limits), "not refused");
  EXPECT_EQ(refusal(R"({"a":{"x":1,"\u0078":2}})", limits), "it names the key 'x' twice; every key must be there once");
  EXPECT_EQ(refusal(R"({"a":1,"a":2})"), "not refused");
}

TEST(Quote, messages_hold_valid_utf8_of_bounded_length) {
  EXPECT_EQ(quote("plain"), "'plain'");
  EXPECT_EQ(quote("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), "'\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80'");
  EXPECT_EQ(quote(std::string("a\n\0\xff", 4)), "'a\\x0a\\x00\\xff'");
  EXPECT_EQ(quote("\xc0\x80\xed\xa0\x80"), "'\\xc0\\x80\\xed\\xa0\\x80'");
  EXPECT_EQ(quote("abcdef", 3), "'abc... (6 bytes)'");
  EXPECT_TRUE(is_utf8("\xf4\x8f\xbf\xbf"));
  EXPECT_FALSE(is_utf8("\xf4\x90\x80\x80"));
  EXPECT_FALSE(is_utf8("\xe2\x82"));
}

}  // namespace
}  // namespace gemmantle
