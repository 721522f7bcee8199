// sampling.h: what a request asks of the sampler and of the end of its text, and the checks of every field.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gemmantle {

struct SamplingParams {
  int priority = 0;         // the higher is admitted first
  int64_t max_tokens = -1;  // -1: up to the context; 0: prompt work only
  double temperature = 1;   // 0: greedy
  double top_p = 1;
  int64_t top_k = 0;  // 0: off
  double min_p = 0;
  double repetition_penalty = 1;  // over ids of prompt and output
  double presence_penalty = 0;    // over ids of the output
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // each id once
  uint64_t seed = 0;
  uint32_t choice = 0;            // index of the choice: draws differ between choices of one seed
  std::vector<std::string> stop;  // UTF-8, matched in content only
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int64_t min_tokens = 0;             // until then neither an end token nor a stop ends the output
  int logprobs = -1;                  // -1: off; else how many alternatives
  int prompt_logprobs = -1;           // the same for the tokens of the prompt
  int64_t prompt_logprobs_start = 0;  // the first of them; tokens before it may come from kept blocks
  std::vector<int32_t> suppress;      // ids that are never drawn
  bool include_stop = false;          // keep the stop string, or the text of the stop id
  bool channels = false;              // follow the control ids; false: every token is content
  bool start_in_thought = false;      // the prompt ended inside an open thought
  bool single_call = false;           // end after the first complete call

  bool constrained = false;                  // every token outside thoughts waits for Generation::allow
  std::vector<int32_t> suppress_in_thought;  // ids that are never drawn inside a thought, besides `suppress`
  int64_t thinking_budget = -1;              // tokens of thoughts; -1: as many as the model likes
  std::vector<int32_t> thought_end;          // ids that close a thought whose budget is used up

  // Throws invalid_argument with the field as param.
  void validate() const;
  // What can be checked only when the model is known: ids lie in its vocabulary.
  void validate(int64_t vocabulary) const;
};

}  // namespace gemmantle
