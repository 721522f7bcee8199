#include "engine/text_flow.h"

#include <gtest/gtest.h>

#include "engine/generation.h"

namespace gemmantle {
namespace {

enum Id : int32_t {
  kEos,
  kCall,
  kCallEnd,
  kQuote,
  kChannel,
  kChannelEnd,
  kThought,
  kNewline,
  kE1,
  kE2,
  kHello,
  kWorld,
  kStop,
  kBrace
};

std::shared_ptr<const Vocabulary> words() {
  const std::vector<std::string> pieces = {"<eos>",      "<|tool_call>", "<tool_call|>", "<|\"|>",  "<|channel>",
                                           "<channel|>", "thought",      "\n",           "\xC3",    "\xA9",
                                           "Hello",      " world",       "STOP",         "call:f{}"};
  return std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{},
                                            SpecialIds{{"<eos>", kEos},
                                                       {"<|tool_call>", kCall},
                                                       {"<tool_call|>", kCallEnd},
                                                       {"<|\"|>", kQuote},
                                                       {"<|channel>", kChannel},
                                                       {"<channel|>", kChannelEnd}});
}

struct Result {
  std::vector<Piece> pieces;
  std::vector<Channel> channels;
  std::string stop;
  bool stopped = false;
};

Result feed(TextFlow flow, const std::vector<int32_t>& ids) {
  Result result;
  Delta all;
  for (const int32_t id : ids) {
    TextFlow::Step step = flow.feed(id, id == kEos, true);
    for (Piece& piece : step.pieces) all.append(std::move(piece));
    result.channels.push_back(step.channel);
    if (step.stop != nullptr) result.stop = *step.stop;
    if (step.stopped) {
      result.stopped = true;
      break;
    }
  }
  if (!result.stopped) {
    for (Piece& piece : flow.finish()) all.append(std::move(piece));
  }
  result.pieces = std::move(all.pieces);
  return result;
}

Piece content(const char* text) { return {Channel::content, text}; }
Piece thought(const char* text) { return {Channel::thought, text}; }

TEST(TextFlow, plain_text_is_content_and_control_ids_say_nothing) {
  const Result result = feed(TextFlow(words(), {}), {kHello, kChannel, kWorld, kEos});
  EXPECT_EQ(result.pieces, std::vector<Piece>{content("Hello world")});
}

TEST(TextFlow, characters_are_held_back_until_they_are_whole) {
  TextFlow flow(words(), {});
  EXPECT_TRUE(flow.feed(kE1, false, true).pieces.empty());
  EXPECT_EQ(flow.feed(kE2, false, true).pieces, std::vector<Piece>{content("\xC3\xA9")});
  EXPECT_TRUE(flow.feed(kE1, false, true).pieces.empty());
  EXPECT_EQ(flow.finish(), std::vector<Piece>{content("\xEF\xBF\xBD")});
}

TEST(TextFlow, a_stop_string_cuts_the_text_and_is_kept_on_request) {
  SamplingParams params;
  params.stop = {"orldST", "zzz"};
  Result result = feed(TextFlow(words(), params), {kHello, kWorld, kStop, kHello});
  EXPECT_EQ(result.pieces, std::vector<Piece>{content("Hello w")});
  EXPECT_EQ(result.stop, "orldST");
  params.include_stop = true;
  result = feed(TextFlow(words(), params), {kHello, kWorld, kStop, kHello});
  EXPECT_EQ(result.pieces, std::vector<Piece>{content("Hello worldST")});
}

TEST(TextFlow, what_might_have_been_a_stop_string_comes_at_the_end) {
  SamplingParams params;
  params.stop = {"STOP!"};
  TextFlow flow(words(), params);
  EXPECT_TRUE(flow.feed(kStop, false, true).pieces.empty());
  EXPECT_EQ(flow.finish(), std::vector<Piece>{content("STOP")});
}

TEST(TextFlow, stop_strings_do_not_count_in_thoughts_and_calls) {
  SamplingParams params;
  params.channels = true;
  params.stop = {"STOP", "call:"};
  const Result result = feed(TextFlow(words(), params), {kChannel, kThought, kNewline, kStop, kChannelEnd, kHello,
                                                         kCall, kBrace, kCallEnd, kWorld, kStop, kHello});
  EXPECT_EQ(result.stop, "STOP");
  const std::vector<Piece> wanted = {
      thought("STOP"), content("Hello"), {Channel::call, "call:f{}"}, {Channel::call_end, ""}, content(" world")};
  EXPECT_EQ(result.pieces, wanted);
}

TEST(TextFlow, tokens_belong_to_the_channel_they_open_or_close) {
  SamplingParams params;
  params.channels = true;
  const Result result = feed(TextFlow(words(), params), {kChannel, kThought, kNewline, kHello, kChannelEnd, kWorld,
                                                         kCall, kBrace, kCallEnd, kEos});
  using enum Channel;
  EXPECT_EQ(result.channels,
            (std::vector<Channel>{Channel::thought, Channel::thought, Channel::thought, Channel::thought,
                                  Channel::thought, Channel::content, call, call, call, Channel::content}));
}

TEST(TextFlow, held_text_is_let_go_in_its_own_channel) {
  SamplingParams params;
  params.channels = true;
  params.stop = {"worldly"};
  params.start_in_thought = true;
  const Result result = feed(TextFlow(words(), params), {kE1, kChannelEnd, kWorld, kCall, kBrace});
  const std::vector<Piece> wanted = {thought("\xEF\xBF\xBD"), content(" world"), {Channel::call, "call:f{}"}};
  EXPECT_EQ(result.pieces, wanted);
}

TEST(TextFlow, a_single_call_is_the_end) {
  SamplingParams params;
  params.channels = true;
  params.single_call = true;
  const Result result = feed(TextFlow(words(), params), {kCall, kBrace, kCallEnd, kCall, kBrace});
  EXPECT_TRUE(result.stopped);
  const std::vector<Piece> wanted = {{Channel::call, "call:f{}"}, {Channel::call_end, ""}};
  EXPECT_EQ(result.pieces, wanted);
}

TEST(TextFlow, ids_that_the_vocabulary_lacks_say_nothing) {
  EXPECT_TRUE(feed(TextFlow(words(), {}), {1000, -1}).pieces.empty());
  EXPECT_TRUE(feed(TextFlow(nullptr, {}), {kHello}).pieces.empty());
}

}  // namespace
}  // namespace gemmantle
