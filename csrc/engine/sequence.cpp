#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace gemmantle {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

std::vector<std::pair<int32_t, float>> top_of(const SampledToken& token) {
  std::vector<std::pair<int32_t, float>> top;
  top.reserve(static_cast<size_t>(token.n_top));
  for (int j = 0; j < token.n_top; ++j) top.emplace_back(token.top_ids[j], token.top_logprobs[j]);
  return top;
}

}  // namespace

Sequence::Sequence(std::vector<int32_t> prompt, SamplingParams params, const std::vector<int32_t>& eos,
                   int64_t max_context, std::shared_ptr<const Vocabulary> vocabulary, std::shared_ptr<Mailbox> mailbox)
    : tokens_(std::move(prompt)),
      prompt_size_(static_cast<int64_t>(tokens_.size())),
      params_(std::move(params)),
      text_(std::move(vocabulary), params_),
      mailbox_(std::move(mailbox)) {
  const int64_t room = std::max<int64_t>(0, max_context - prompt_size_);
  limit_ = params_.max_tokens < 0 ? room : std::min(params_.max_tokens, room);
  if (!params_.ignore_eos) eos_ = eos;
  const auto also = [](std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
    ids.insert(ids.end(), more.begin(), more.end());
  };
  for (auto& [late, early] : banned_) {
    late = params_.suppress;
    if (&late == &banned_[true][false]) also(late, params_.suppress_in_thought);
    early = late;
    also(early, eos_);
    also(early, params_.stop_token_ids);
  }
  for (const auto& [id, bias] : params_.logit_bias) bias_.push_back({id, bias});
  for (const int32_t id : tokens_) count(id);
  for (TokenCount& entry : seen_) entry.count = 0;
  if (params_.prompt_logprobs >= 0) prompt_logprobs_.resize(static_cast<size_t>(prompt_size_));
  close_thought_at_budget();
}

void Sequence::make_room(int64_t block_size) {
  const int64_t most = prompt_size_ + limit_;
  const auto most_blocks = static_cast<size_t>(most / block_size + 1);
  tokens_.reserve(static_cast<size_t>(most));
  prefix.nodes.reserve(most_blocks);
  for (Blocks& held : blocks) held.table.reserve(most_blocks);
}

void Sequence::set_mask(TokenMask mask) {
  mask_ = std::move(mask);
  has_mask_ = true;
  waits_since.reset();
}

Sequence::Clock::duration Sequence::held_up_for(Clock::time_point now) const {
  return std::max(now - waits_since.value_or(now), now - paused_since.value_or(now));
}

// Nothing is forced while the name of the channel is still being written.
bool Sequence::close_thought_at_budget() {
  const int64_t budget = params_.thinking_budget;
  if (budget < 0 || reasoning_ < budget || !forced_.empty() || !text_.in_thought()) return false;
  forced_.assign(params_.thought_end.rbegin(), params_.thought_end.rend());
  return true;
}

// Without penalties nothing is counted.
void Sequence::count(int32_t id) {
  const bool prompt_counts = params_.repetition_penalty != 1;
  const bool output_counts = prompt_counts || params_.presence_penalty != 0 || params_.frequency_penalty != 0;
  if (output_size() == 0 ? !prompt_counts : !output_counts) return;
  const auto [entry, is_new] = seen_index_.try_emplace(id, seen_.size());
  if (is_new) seen_.push_back({id, 0});
  ++seen_[entry->second].count;
}

bool Sequence::scores_at(int64_t position) const {
  return params_.prompt_logprobs >= 0 && position + 1 >= params_.prompt_logprobs_start && position + 1 < prompt_size_ &&
         !prompt_logprobs_[static_cast<size_t>(position + 1)];
}

int64_t Sequence::logit_rows(int64_t rows) const {
  if (sink && !sink->last_only) return rows;
  if (params_.prompt_logprobs < 0) return 0;
  return std::max<int64_t>(0, std::min(computed + rows, prompt_size_ - 1) - first_logits());
}

int64_t Sequence::rows_within(int64_t rows, int64_t most) const {
  return logit_rows(rows) <= most ? rows : first_logits() - computed + most;
}

int64_t Sequence::first_logits() const {
  return sink && !sink->last_only ? computed : std::max(computed, params_.prompt_logprobs_start - 1);
}

int64_t Sequence::reusable() const {
  if (!reuse || !chunk_ends.empty() || (sink && !sink->last_only)) return 0;
  int64_t end = size() - 1;  // one row at least makes the next logits
  if (params_.prompt_logprobs >= 0) {
    int64_t first = std::max<int64_t>(0, params_.prompt_logprobs_start - 1);
    while (first < end && first + 1 < prompt_size_ && !scores_at(first)) ++first;
    if (first + 1 < prompt_size_) end = std::min(end, first);
  }
  return end;
}

SampleRow Sequence::sample_row(int64_t position) const {
  SampleRow row;
  row.temperature = static_cast<float>(params_.temperature);
  row.top_k = static_cast<int32_t>(params_.top_k);
  row.top_p = static_cast<float>(params_.top_p);
  row.min_p = static_cast<float>(params_.min_p);
  row.repetition_penalty = static_cast<float>(params_.repetition_penalty);
  row.presence_penalty = static_cast<float>(params_.presence_penalty);
  row.frequency_penalty = static_cast<float>(params_.frequency_penalty);
  row.seen = seen_.data();
  row.n_seen = static_cast<int64_t>(seen_.size());
  row.bias = bias_.data();
  row.n_bias = static_cast<int64_t>(bias_.size());
  if (!forced_.empty()) row.forced = forced_.back();
  if (has_mask_ && mask_) row.allowed = mask_->data();
  const std::vector<int32_t>& banned = banned_[text_.in_thought()][output_size() < params_.min_tokens];
  row.banned = banned.data();
  row.n_banned = static_cast<int64_t>(banned.size());
  row.seed = params_.seed;
  row.choice = params_.choice;
  row.position = static_cast<uint64_t>(position + 1);
  row.top_logprobs = params_.logprobs;
  return row;
}

SampleRow Sequence::score_row(int64_t position) const {
  SampleRow row;
  row.forced = token(position + 1);
  row.top_logprobs = params_.prompt_logprobs;
  return row;
}

int64_t Sequence::largest_chunk() const {
  int64_t largest = 0;
  int64_t begin = 0;
  for (const int64_t end : chunk_ends) {
    largest = std::max(largest, end - begin);
    begin = end;
  }
  return largest;
}

TokenInfo Sequence::token_info(const SampledToken& token, Channel channel) const {
  return {token.id, channel, std::string(text_.text(token.id)), std::nullopt, {}};
}

void Sequence::set_score(int64_t position, const SampledToken& token) {
  TokenInfo info = token_info(token, Channel::content);
  info.logprob = token.logprob;
  info.top = top_of(token);
  prompt_logprobs_[static_cast<size_t>(position + 1)] = std::move(info);
}

Delta Sequence::accept(const SampledToken& token) {
  const bool may_stop = output_size() >= params_.min_tokens;
  tokens_.push_back(token.id);
  count(token.id);
  has_mask_ = false;
  if (!forced_.empty()) forced_.pop_back();
  const bool is_eos = may_stop && contains(eos_, token.id);
  const bool is_stop_id = may_stop && contains(params_.stop_token_ids, token.id);
  const bool is_end = (is_eos || is_stop_id) && !params_.include_stop;

  Delta delta;
  TextFlow::Step step = text_.feed(token.id, is_end, may_stop);
  for (Piece& piece : step.pieces) delta.append(std::move(piece));
  TokenInfo info = token_info(token, step.channel);
  if (params_.logprobs >= 0) {
    info.logprob = token.logprob;
    info.top = top_of(token);
  }
  delta.tokens.push_back(std::move(info));
  if (step.channel == Channel::thought) ++reasoning_;

  if (step.stopped) {
    delta.finish = FinishReason::stop;
    if (step.stop != nullptr) delta.stop_reason = *step.stop;
    delta.usage = usage();
  } else if (is_eos || is_stop_id) {
    delta.stop_reason = token.id;
    delta.append(end(FinishReason::stop));
  } else if (output_size() == limit_) {
    delta.append(end(FinishReason::length));
  } else {
    delta.thought_cut = close_thought_at_budget();
    delta.awaits_mask = awaits_mask();
  }
  return delta;
}

Delta Sequence::end(FinishReason reason) {
  Delta delta;
  delta.finish = reason;
  for (Piece& piece : text_.finish()) delta.append(std::move(piece));
  delta.usage = usage();
  return delta;
}

Usage Sequence::usage() const {
  const std::chrono::duration<double, std::milli> queued = admitted.value_or(Clock::now()) - submitted;
  return {prompt_size_, output_size(), reasoning_, cached, queued.count()};
}

}  // namespace gemmantle
