// sampling.h: what one row of logits needs to become a token, as plain data shared by engine and kernels.
//
// Order: logit bias and penalties, mask, temperature, top_k, top_p, min_p, draw. All pointers are views.
#pragma once

#include <stdint.h>

namespace gemmantle {

constexpr int kMaxTopLogprobs = 20;

// An id that occurs in the prompt or the output; `count` is how often it occurs in the output.
struct TokenCount {
  int32_t id;
  int32_t count;
};

struct TokenBias {
  int32_t id;
  float bias;
};

struct SampleRow {
  float temperature = 1;  // 0: arg-max, ties to the lowest id
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // 1: off
  float min_p = 0;        // 0: off

  // z > 0 ? z / p : z * p for every id of `seen`; then minus frequency * count, minus presence where count > 0.
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  const TokenCount* seen = nullptr;  // each id once
  int64_t n_seen = 0;

  const TokenBias* bias = nullptr;  // each id once
  int64_t n_bias = 0;

  const int32_t* banned = nullptr;  // ids that are never drawn
  int64_t n_banned = 0;
  const uint32_t* allowed = nullptr;  // bit i of word i / 32: id i may be drawn; null: all may

  uint64_t seed = 0;
  uint64_t position = 0;
  uint32_t choice = 0;

  int32_t forced = -1;        // an id that is already known: nothing is drawn, only log-probabilities are computed
  int32_t top_logprobs = -1;  // -1: no log-probabilities; else how many alternatives, at most kMaxTopLogprobs
};

// Log-probabilities are natural, over the whole vocabulary, of the logits as they came in: before bias, penalties, mask
// and temperature.
struct SampledToken {
  int32_t id = -1;  // -1: every id is banned
  int32_t n_top = 0;
  float logprob = 0;
  int32_t top_ids[kMaxTopLogprobs] = {};  // descending, ties to the lower id
  float top_logprobs[kMaxTopLogprobs] = {};
};

}  // namespace gemmantle
