// sequence.h: one request inside the engine: its tokens, how far they are computed, its blocks, its end.
//
// Owned by the engine's worker and touched by nobody else; the consumer sees the Mailbox only.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/ops.h"
#include "engine/generation.h"
#include "engine/sampling.h"
#include "engine/text_flow.h"

namespace gemmantle {

// What is kept of the logits of a sequence, besides what is drawn from them.
struct LogitsSink {
  std::shared_ptr<float[]> values;  // [rows, vocabulary]
  bool last_only = false;
};

class Sequence {
 public:
  // `eos`: ids that end the output. The params are valid for the model, the prompt is not empty.
  Sequence(std::vector<int32_t> prompt, SamplingParams params, const std::vector<int32_t>& eos, int64_t max_context,
           std::shared_ptr<const Vocabulary> vocabulary, std::shared_ptr<Mailbox> mailbox);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t prompt_size() const { return prompt_size_; }
  int64_t output_size() const { return size() - prompt_size_; }
  int64_t pending() const { return size() - computed; }
  // Rows that may run now: the last one, which draws, may have to wait.
  int64_t computable() const { return pending() - (is_held_up() ? 1 : 0); }
  int32_t token(int64_t position) const { return tokens_[static_cast<size_t>(position)]; }
  std::span<const int32_t> tokens() const { return tokens_; }
  const SamplingParams& params() const { return params_; }
  Mailbox& mailbox() const { return *mailbox_; }

  // Whether the logits of a position are wanted when it is computed, and for what.
  bool draws_at(int64_t position) const { return position + 1 == size() && limit_ > output_size(); }
  bool scores_at(int64_t position) const;  // the log-probability of the prompt's next token
  bool keeps_at(int64_t position) const { return sink && (!sink->last_only || position + 1 == size()); }
  // How many of the next `rows` rows have their logits wanted for the prompt or the sink, and how many rows are within
  // `most` of those.
  int64_t logit_rows(int64_t rows) const;
  int64_t rows_within(int64_t rows, int64_t most) const;
  // Positions before this one may come from kept blocks: no logits of theirs are wanted.
  int64_t reusable() const;

  // Whether the next token is drawn only after a hand-in. Thoughts run free, and forced ids need no mask.
  bool awaits_mask() const {
    return params_.constrained && !has_mask_ && limit_ > output_size() && forced_.empty() && !text_.in_thought();
  }
  // Whether the next draw waits for what its consumer has to do.
  bool is_held_up() const { return awaits_mask() || paused_since.has_value(); }
  std::chrono::steady_clock::duration held_up_for(std::chrono::steady_clock::time_point now) const;
  void set_mask(TokenMask mask);

  // The row for the sampler; its views live until the next token.
  SampleRow sample_row(int64_t position) const;
  SampleRow score_row(int64_t position) const;

  void set_score(int64_t position, const SampledToken& token);
  // A drawn token: its text, and whether the output ends with it. Returns the delta; finish says the end.
  Delta accept(const SampledToken& token);
  // The end without a further token.
  Delta end(FinishReason reason);
  PromptLogprobs take_prompt_logprobs() { return std::move(prompt_logprobs_); }
  bool is_complete() const { return pending() == 0 && limit_ == output_size(); }

  // Memory for all tokens and blocks that it will ever have, so that its steps ask for none.
  void make_room(int64_t block_size);

  int64_t computed = 0;  // positions whose K and V are stored
  int64_t furthest = 0;  // the most that were ever computed
  int64_t cached = 0;    // positions of the prompt that were not computed but found
  std::optional<std::chrono::steady_clock::time_point> waits_since;   // for its mask
  std::optional<std::chrono::steady_clock::time_point> paused_since;  // too much of it is unread
  bool is_slow = false;                                               // others may have its place

  // Physical block of each logical block, -1 where it was given back; `first` is the first that is held.
  struct Blocks {
    std::vector<int32_t> table;
    int64_t first = 0;
  };
  std::array<Blocks, kKvGroups> blocks;

  // Of the scheduler: the nodes of the full blocks, and how many of those are stored there; a node of somebody else's
  // that this sequence waits for.
  struct Prefix {
    std::vector<int32_t> nodes;
    int64_t stored = 0;
    int32_t awaited = -1;
    uint64_t awaited_serial = 0;
  } prefix;
  bool was_admitted = false;
  int overtaken = 0;  // how many of a higher priority were put before it

  using Clock = std::chrono::steady_clock;
  Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> admitted, last_token;

  std::vector<int64_t> chunk_ends;  // positions where a chunk of the prompt has to end; empty: anywhere
  int64_t largest_chunk() const;    // 0 where they are free
  std::optional<LogitsSink> sink;
  bool reuse = true;  // false: every position is computed

 private:
  TokenInfo token_info(const SampledToken& token, Channel channel) const;
  int64_t first_logits() const;  // from computed on
  void count(int32_t id);
  bool close_thought_at_budget();  // true when its end is forced from now on
  Usage usage() const;

  std::vector<int32_t> tokens_;  // prompt, then output
  int64_t prompt_size_;
  SamplingParams params_;
  int64_t limit_;                      // most tokens of output
  std::vector<int32_t> eos_;           // empty with ignore_eos
  std::vector<int32_t> banned_[2][2];  // [in a thought][while the output is shorter than min_tokens]
  std::vector<int32_t> forced_;        // ids that come next whatever the model says, last first
  bool has_mask_ = false;
  TokenMask mask_;
  std::vector<TokenBias> bias_;
  std::vector<TokenCount> seen_;  // kept where a penalty needs it
  std::unordered_map<int32_t, size_t> seen_index_;
  TextFlow text_;
  int64_t reasoning_ = 0;
  PromptLogprobs prompt_logprobs_;
  std::shared_ptr<Mailbox> mailbox_;
};

}  // namespace gemmantle
