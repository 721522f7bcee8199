#include "engine/sampling.h"

#include <cmath>
#include <limits>
#include <set>

#include "backend/ops.h"
#include "core/error.h"

namespace gemmantle {
namespace {

void require(bool condition, const char* field, const std::string& found, const char* wanted) {
  if (!condition) throw Error(ErrorCode::invalid_argument, str(field, " is ", found, "; it must be ", wanted), field);
}

void require_number(double value, double least, double most, const char* field, const char* wanted) {
  require(std::isfinite(value) && value >= least && value <= most, field, str(value), wanted);
}

void require_ids(const std::vector<int32_t>& ids, int64_t vocabulary, const char* field) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < vocabulary, field, str("a list with ", id),
            str("ids of 0 to ", vocabulary - 1, ", the model's vocabulary").c_str());
  }
}

}  // namespace

void SamplingParams::validate() const {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  require(max_tokens >= -1 && max_tokens <= kMost, "max_tokens", str(max_tokens), "-1 (up to the context) or more");
  require_number(temperature, 0, 100, "temperature", "a number of 0 (greedy) to 100");
  require_number(top_p, 0, 1, "top_p", "a number of 0 to 1");
  require(top_k >= 0 && top_k <= kMost, "top_k", str(top_k), "0 (off) or a positive number");
  require_number(min_p, 0, 1, "min_p", "a number of 0 to 1");
  require_number(repetition_penalty, 0.01, 100, "repetition_penalty", "a number of 0.01 to 100; 1 is off");
  require_number(presence_penalty, -100, 100, "presence_penalty", "a number of -100 to 100; 0 is off");
  require_number(frequency_penalty, -100, 100, "frequency_penalty", "a number of -100 to 100; 0 is off");
  std::set<int32_t> biased;
  for (const auto& [id, bias] : logit_bias) {
    require(std::isfinite(bias) && std::fabs(bias) <= 100, "logit_bias", str(bias, " for id ", id),
            "a number of -100 to 100");
    require(biased.insert(id).second, "logit_bias", str("given twice for id ", id), "given once for an id");
  }
  for (const std::string& text : stop) require(!text.empty(), "stop", "an empty string", "a text of one byte or more");
  require(min_tokens >= 0 && min_tokens <= kMost, "min_tokens", str(min_tokens), "0 or more");
  require(priority >= -100 && priority <= 100, "priority", str(priority), "-100 to 100; 0 is the usual one");
  require(prompt_logprobs_start >= 0 && prompt_logprobs_start <= kMost, "prompt_logprobs_start",
          str(prompt_logprobs_start), "0 (all of them) or the index of a token of the prompt");
  require(logprobs >= -1 && logprobs <= kMaxTopLogprobs, "logprobs", str(logprobs), "-1 (off) or 0 to 20");
  require(prompt_logprobs >= -1 && prompt_logprobs <= kMaxTopLogprobs, "prompt_logprobs", str(prompt_logprobs),
          "-1 (off) or 0 to 20");
  require(thinking_budget >= -1 && thinking_budget <= kMost, "thinking_budget", str(thinking_budget),
          "-1 (free) or a number of tokens");
  require(thinking_budget < 0 || channels, "thinking_budget", str(thinking_budget),
          "-1 where channels are not followed: set channels");
  require(thinking_budget < 0 || !thought_end.empty(), "thought_end", "empty",
          "the ids that close a thought, since thinking_budget is set");
}

void SamplingParams::validate(int64_t vocabulary) const {
  validate();
  require_ids(stop_token_ids, vocabulary, "stop_token_ids");
  require_ids(suppress, vocabulary, "suppress");
  require_ids(suppress_in_thought, vocabulary, "suppress_in_thought");
  require_ids(thought_end, vocabulary, "thought_end");
  std::vector<int32_t> biased;
  biased.reserve(logit_bias.size());
  for (const auto& entry : logit_bias) biased.push_back(entry.first);
  require_ids(biased, vocabulary, "logit_bias");
}

}  // namespace gemmantle
