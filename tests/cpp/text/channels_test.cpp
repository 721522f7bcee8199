#include "text/channels.h"

#include <gtest/gtest.h>

namespace gemmantle {
namespace {

// Ids of a small vocabulary on purpose: the machine goes by spelling, not by the published numbers.
enum Id : int32_t {
  kEos = 1,
  kTool,
  kCall,
  kCallEnd,
  kResponse,
  kResponseEnd,
  kQuote,
  kChannel,
  kChannelEnd,
  kTurn,
  kTurnEnd,
  kText = 100
};

const SpecialIds kSpecial = {{"<eos>", kEos},
                             {"<|tool>", kTool},
                             {"<|tool_call>", kCall},
                             {"<tool_call|>", kCallEnd},
                             {"<|tool_response>", kResponse},
                             {"<tool_response|>", kResponseEnd},
                             {"<|\"|>", kQuote},
                             {"<|channel>", kChannel},
                             {"<channel|>", kChannelEnd},
                             {"<|turn>", kTurn},
                             {"<turn|>", kTurnEnd}};

struct Fed {
  int32_t id;
  std::string text;

  Fed(Id marker) : id(marker), text("text of a marker is not looked at") {}
  Fed(const char* ordinary) : id(kText), text(ordinary) {}
};

// The reply as one line: `content[...]thought[...]call[...]call_end`, adjacent pieces of a channel joined.
std::string run(const std::vector<Fed>& fed, bool start_in_thought = false) {
  Channels channels(kSpecial, start_in_thought);
  std::vector<Piece> all;
  const auto append = [&](const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
      if (!all.empty() && all.back().channel == piece.channel && piece.channel != Channel::call_end) {
        all.back().text += piece.text;
      } else {
        all.push_back(piece);
      }
    }
  };
  for (const Fed& f : fed) append(channels.feed(f.id, f.text));
  append(channels.finish());
  std::string out;
  for (const Piece& piece : all) {
    out += name(piece.channel);
    if (piece.channel != Channel::call_end) out += "[" + piece.text + "]";
  }
  return out;
}

struct Case {
  const char* name;
  std::vector<Fed> fed;
  std::string wanted;
  bool start_in_thought = false;
};

TEST(Channels, follows_the_table_of_the_specification) {
  const std::vector<Case> cases = {
      // CONTENT
      {"plain content", {"Hello", " world", kTurnEnd}, "content[Hello world]"},
      {"stray closers", {"a", kCallEnd, kResponseEnd, kQuote, kChannelEnd, "b"}, "content[ab]"},
      {"other control strings", {"a", kTool, kTurn, "b"}, "content[ab]"},
      {"text that looks like a marker", {"<|channel>", "thought\n"}, "content[<|channel>thought\n]"},
      {"nothing", {}, ""},
      // CHANNEL_NAME
      {"thought", {kChannel, "thought", "\n", "hm", kChannelEnd, "yes"}, "thought[hm]content[yes]"},
      {"newlines merged into one token", {kChannel, "thought", "\n\n\n", "hm", kChannelEnd}, "thought[\n\nhm]"},
      {"name split over tokens", {kChannel, "th", "ough", "t\nhm", kChannelEnd}, "thought[hm]"},
      {"another name is given back", {kChannel, "ana", "lysis\nx", kChannelEnd, "y"}, "content[analysis\nxy]"},
      {"name that goes on", {kChannel, "thought", "s", "\n"}, "content[thoughts\n]"},
      {"empty channel", {kChannel, kChannelEnd, "x"}, "content[x]"},
      {"empty thought", {kChannel, "thought", "\n", kChannelEnd, "x"}, "content[x]"},
      {"closed in the name", {kChannel, "thought", kChannelEnd, "x"}, "content[x]"},
      {"call in the name", {kChannel, "thought", kCall, "c", kCallEnd}, "call[c]call_end"},
      {"opener twice", {kChannel, kChannel, "thought\n", "hm"}, "thought[hm]"},
      {"end in the name", {kChannel, "thou"}, ""},
      // THOUGHT
      {"starts in a thought", {"hm", kChannelEnd, "x"}, "thought[hm]content[x]", true},
      {"delimiter in a thought", {kChannel, "thought\n", "a", kQuote, "b", kChannelEnd}, "thought[a<|\"|>b]"},
      {"call ends a thought", {kChannel, "thought\n", "hm", kCall, "c", kCallEnd}, "thought[hm]call[c]call_end"},
      {"nested opener", {kChannel, "thought\n", "a", kChannel, "thought", "\n", "b", kChannelEnd}, "thought[ab]"},
      {"nested opener, other name", {"a", kChannel, "th", "e b", kChannelEnd, "c"}, "thought[athe b]content[c]", true},
      {"unterminated thought", {kChannel, "thought\n", "hm", kTurnEnd}, "thought[hm]"},
      {"newlines after a thought", {"hm", kChannelEnd, "\n", "\n\nx\n", "\ny"}, "thought[hm]content[x\n\ny]", true},
      {"newlines without a thought", {"\n\nx"}, "content[\n\nx]"},
      // CALL
      {"call",
       {kCall, "call:f{a:", kQuote, "x", kQuote, "}", kCallEnd, kResponse},
       "call[call:f{a:<|\"|>x<|\"|>}]call_end"},
      {"content, call", {"So: ", kCall, "c", kCallEnd}, "content[So: ]call[c]call_end"},
      {"closer inside a string",
       {kCall, "c{a:", kQuote, "x", kCallEnd, "y", kQuote, "}", kCallEnd},
       "call[c{a:<|\"|>x<tool_call|>y<|\"|>}]call_end"},
      {"closer after a lost delimiter",
       {kCall, "c{a:", kQuote, "x} ", kCallEnd, "y"},
       "call[c{a:<|\"|>x} ]call_endcontent[y]"},
      {"call without a closer, call", {kCall, "a{}", kCall, "b{}", kCallEnd}, "call[a{}]call_endcall[b{}]call_end"},
      {"call without a closer, response", {kCall, "a{}", kResponse}, "call[a{}]call_end"},
      {"opener inside a string",
       {kCall, "a{x:", kQuote, kCall, kQuote, "}", kCallEnd},
       "call[a{x:<|\"|><|tool_call><|\"|>}]call_end"},
      {"channel marker in a call is text", {kCall, "a{", kChannel, "}", kCallEnd}, "call[a{<|channel>}]call_end"},
      {"open call at the end of the turn", {kCall, "a{x:1", kTurnEnd}, "call[a{x:1]"},
      {"open call at the end of the sequence", {kCall, "a{x:1", kEos}, "call[a{x:1]"},
      {"open call, nothing more", {kCall, "a{x:1"}, "call[a{x:1]"},
      {"open string at a response", {kCall, "a{x:", kQuote, "y", kResponse}, "call[a{x:<|\"|>y]"},
      {"empty call", {kCall, kCallEnd}, "call_end"},
      // AFTER_CALL
      {"parallel calls", {kCall, "a", kCallEnd, "\n", kCall, "b", kCallEnd}, "call[a]call_endcall[b]call_end"},
      {"blanks after a call", {kCall, "a", kCallEnd, "\n ", kCallEnd, kResponseEnd, "\t"}, "call[a]call_end"},
      {"text after a call", {kCall, "a", kCallEnd, "\n", " x", " y"}, "call[a]call_endcontent[\n x y]"},
      {"thought after a call",
       {kCall, "a", kCallEnd, kChannel, "thought\n", "t", kChannelEnd, "x"},
       "call[a]call_endthought[t]content[x]"},
      // The header of a model turn may come first.
      {"turn header", {kTurn, "model", "\n", "x"}, "content[x]"},
      {"turn header, then a thought", {kTurn, "model", "\n", kChannel, "thought\n", "t", kChannelEnd}, "thought[t]"},
      {"not a header", {kTurn, "mod", "est"}, "content[modest]"},
      {"header later", {"a", kTurn, "model\n"}, "content[amodel\n]"},
  };
  for (const Case& c : cases) EXPECT_EQ(run(c.fed, c.start_in_thought), c.wanted) << c.name;
}

TEST(Channels, emits_text_at_once) {
  Channels channels(kSpecial);
  using Pieces = std::vector<Piece>;
  EXPECT_EQ(channels.feed(kText, "a"), (Pieces{{Channel::content, "a"}}));
  EXPECT_EQ(channels.feed(kCall, ""), Pieces{});
  EXPECT_TRUE(channels.call_is_open());
  EXPECT_EQ(channels.feed(kText, "f{"), (Pieces{{Channel::call, "f{"}}));
  EXPECT_EQ(channels.feed(kCall, ""), (Pieces{{Channel::call_end, ""}}));
  EXPECT_EQ(channels.feed(kCallEnd, ""), (Pieces{{Channel::call_end, ""}}));
  EXPECT_FALSE(channels.call_is_open());
  EXPECT_EQ(channels.feed(kText, "b"), (Pieces{{Channel::content, "b"}}));
}

TEST(Channels, says_where_the_next_text_belongs) {
  Channels channels(kSpecial);
  EXPECT_EQ(channels.current(), Channel::content);
  channels.feed(kChannel, "");
  EXPECT_EQ(channels.current(), Channel::thought);
  channels.feed(kText, "thought\n");
  EXPECT_EQ(channels.current(), Channel::thought);
  channels.feed(kCall, "");
  EXPECT_EQ(channels.current(), Channel::call);
  channels.feed(kCallEnd, "");
  EXPECT_EQ(channels.current(), Channel::content);
}

TEST(Channels, a_vocabulary_without_markers_has_content_only) {
  Channels channels({});
  for (const int32_t id : {1, 48, 49, 100, 101, 106, -1}) {
    EXPECT_EQ(channels.feed(id, "x"), (std::vector<Piece>{{Channel::content, "x"}})) << id;
  }
  EXPECT_TRUE(channels.finish().empty());
}

TEST(Channels, a_long_call_costs_linear_time) {
  Channels channels(kSpecial);
  channels.feed(kCall, "");
  size_t size = 0;
  for (int i = 0; i < 500'000; ++i) {
    for (const Piece& piece : channels.feed(i % 2 ? kText : kQuote, " x ")) size += piece.text.size();
  }
  EXPECT_EQ(size, 250'000u * (3 + 5));
}

}  // namespace
}  // namespace gemmantle
