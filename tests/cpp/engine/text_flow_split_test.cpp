// text_flow_split_test.cpp: the same bytes in other tokens give the same pieces. GEMMANTLE_SPLITS says how many cuts
// are tried (20,000; a million by hand), GEMMANTLE_TEST_SEED which ones.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "engine/text_flow.h"
#include "support/random.h"

namespace gemmantle {
namespace {

const std::vector<std::string> kMarkers = {"<eos>",  "<|channel>", "<channel|>", "<|tool_call>",     "<tool_call|>",
                                           "<|\"|>", "<|turn>",    "<turn|>",    "<|tool_response>", "<|think|>"};
const std::vector<std::string> kTexts = {"thought\n", "thought", "model\n", "other\n", "call:f{a:1}", "}",
                                         "Hello",     " ",       "\n",      "\n \t",   "STOP",        "ST",
                                         "é",         "🙂",      "\xC3",    "\xFF",    "<|channel>",  "中文"};

// A run of control ids (an index into kMarkers) and of text (-1) between them.
struct Part {
  int32_t marker;
  std::string text;
};

class Splits {
 public:
  explicit Splits(uint64_t seed) : random_(static_cast<std::mt19937::result_type>(seed)) {}

  std::vector<Part> output() {
    std::vector<Part> parts;
    for (unsigned i = 1 + random_() % 12; i > 0; --i) {
      if (random_() % 3 == 0) {
        parts.push_back({static_cast<int32_t>(random_() % kMarkers.size()), {}});
        continue;
      }
      if (parts.empty() || parts.back().marker >= 0) parts.push_back({-1, {}});
      parts.back().text += kTexts[random_() % kTexts.size()];
    }
    return parts;
  }

  // The same with each text in other pieces, down to single bytes.
  std::vector<Part> cut(const std::vector<Part>& parts) {
    std::vector<Part> out;
    for (const Part& part : parts) {
      if (part.marker >= 0) {
        out.push_back(part);
        continue;
      }
      const size_t longest = 1 + random_() % 6;
      for (size_t at = 0; at < part.text.size();) {
        const size_t size = 1 + random_() % longest;
        out.push_back({-1, part.text.substr(at, size)});
        at += size;
      }
    }
    return out;
  }

  SamplingParams params() {
    SamplingParams params;
    params.channels = random_() % 8 != 0;
    params.start_in_thought = params.channels && random_() % 4 == 0;
    params.single_call = params.channels && random_() % 8 == 0;
    if (random_() % 2 == 0) params.stop = {"STOP", "o\n"};
    params.include_stop = random_() % 2 == 0;
    return params;
  }

 private:
  std::mt19937 random_;
};

// Each part is one token of a vocabulary that is made for it.
std::vector<Piece> read(const std::vector<Part>& parts, const SamplingParams& params) {
  std::vector<std::string> pieces = kMarkers;
  SpecialIds special;
  std::vector<int32_t> control;
  for (size_t i = 0; i < kMarkers.size(); ++i) {
    special[kMarkers[i]] = static_cast<int32_t>(i);
    control.push_back(static_cast<int32_t>(i));
  }
  for (const Part& part : parts) {
    if (part.marker < 0) pieces.push_back(part.text);
  }
  TextFlow flow(std::make_shared<const Vocabulary>(pieces, control, special), params);
  Delta all;
  auto next = static_cast<int32_t>(kMarkers.size());
  bool stopped = false;
  for (size_t i = 0; i < parts.size() && !stopped; ++i) {
    TextFlow::Step step = flow.feed(parts[i].marker >= 0 ? parts[i].marker : next++, false, true);
    for (Piece& piece : step.pieces) all.append(std::move(piece));
    stopped = step.stopped;
  }
  if (!stopped) {
    for (Piece& piece : flow.finish()) all.append(std::move(piece));
  }
  return std::move(all.pieces);
}

TEST(TextFlowSplits, the_same_bytes_in_other_tokens_give_the_same_pieces) {
  const char* wanted = std::getenv("GEMMANTLE_SPLITS");
  const long long count = wanted == nullptr ? 20'000 : std::atoll(wanted);
  const uint64_t seed = test::chosen_seed(29);
  SCOPED_TRACE(testing::Message() << "GEMMANTLE_TEST_SEED=" << seed);
  Splits splits(seed);
  for (long long done = 0; done < count;) {
    const std::vector<Part> output = splits.output();
    const SamplingParams params = splits.params();
    const std::vector<Piece> whole = read(output, params);
    for (int i = 0; i < 20 && done < count; ++i, ++done) ASSERT_EQ(read(splits.cut(output), params), whole) << done;
  }
}

}  // namespace
}  // namespace gemmantle
