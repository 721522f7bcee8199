#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace gemmantle {

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), pools_{BlockPool(limits.blocks[kSliding]), BlockPool(limits.blocks[kFull])} {}

int64_t Scheduler::blocks_needed(const SchedulerLimits& limits, int group, int64_t tokens, int64_t chunk) {
  if (limits.blocks[static_cast<size_t>(group)] == 0) return 0;
  const int64_t all = (tokens + limits.block_size - 1) / limits.block_size;
  if (group == kFull) return all;
  // A window and a chunk at most, each cutting a block at either end.
  return std::min(all, (limits.window + chunk) / limits.block_size + 2);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }

const std::vector<ScheduledRows>& Scheduler::plan() {
  plan_.clear();
  rows_left_ = limits_.max_rows;
  logit_rows_left_ = limits_.max_logit_rows;
  const int64_t preempted_before = preemptions_;

  for (const bool is_decode : {true, false}) {
    for (size_t i = 0; i < running_.size(); ++i) {
      Sequence& sequence = *running_[i];
      if ((sequence.pending() == 1) != is_decode) continue;
      const int64_t rows = prefill_rows(sequence);
      if (rows > 0 && !schedule(sequence, rows)) break;  // it was the youngest: nobody is left behind it
    }
  }
  while (preemptions_ == preempted_before && admit_next()) {
    Sequence& sequence = *running_.back();
    if (!schedule(sequence, prefill_rows(sequence))) break;
  }
  return plan_;
}

int64_t Scheduler::prefill_rows(const Sequence& sequence) const {
  int64_t rows = sequence.pending();
  const auto next = std::upper_bound(sequence.chunk_ends.begin(), sequence.chunk_ends.end(), sequence.computed);
  if (next != sequence.chunk_ends.end()) return std::min(rows, *next - sequence.computed);
  rows = std::min(rows, rows_left_);
  return sequence.wants_all() ? std::min(rows, logit_rows_left_) : rows;
}

bool Scheduler::schedule(Sequence& sequence, int64_t rows) {
  release_behind_window(sequence);
  while (!allocate(sequence, sequence.computed + rows)) {
    const bool is_youngest = running_.back().get() == &sequence;
    preempt_youngest();
    if (is_youngest) return false;
  }
  plan_.push_back({&sequence, rows});
  rows_left_ -= std::min(rows, rows_left_);
  if (sequence.wants_all()) logit_rows_left_ -= std::min(rows, logit_rows_left_);
  return true;
}

bool Scheduler::admit_next() {
  if (waiting_.empty() || running() >= limits_.max_sequences) return false;
  Sequence& sequence = *waiting_.front();
  if (prefill_rows(sequence) == 0) return false;
  for (int group = 0; group < kKvGroups; ++group) {
    // Those that run keep a block each to grow into; a sequence that is alone always fits.
    const int64_t spare = running_.empty() ? 0 : running();
    const int64_t chunk = std::max(limits_.max_rows, sequence.largest_chunk());
    const int64_t needed = blocks_needed(limits_, group, sequence.size() + 1, chunk);
    if (needed > 0 && !running_.empty() && needed + spare > pool(group).available()) return false;
  }
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

bool Scheduler::allocate(Sequence& sequence, int64_t end) {
  for (int group = 0; group < kKvGroups; ++group) {
    BlockPool& pool = pools_[static_cast<size_t>(group)];
    if (pool.total() == 0) continue;
    Sequence::Blocks& held = sequence.blocks[static_cast<size_t>(group)];
    const int64_t upto = group == kFull ? sequence.size() : end;
    const int64_t wanted = (upto + limits_.block_size - 1) / limits_.block_size;
    while (static_cast<int64_t>(held.table.size()) < wanted) {
      const int32_t block = pool.take();
      if (block < 0) return false;  // what was taken stays: it will be needed
      held.table.push_back(block);
    }
  }
  return true;
}

void Scheduler::release_behind_window(Sequence& sequence) {
  BlockPool& pool = pools_[kSliding];
  Sequence::Blocks& held = sequence.blocks[kSliding];
  const int64_t first_seen = sequence.computed - limits_.window + 1;  // by the next row
  const int64_t keep = std::min(first_seen / limits_.block_size, static_cast<int64_t>(held.table.size()));
  for (; held.first < keep; ++held.first) {
    int32_t& block = held.table[static_cast<size_t>(held.first)];
    pool.give_back(block);
    block = -1;
  }
}

void Scheduler::release(Sequence& sequence) {
  for (int group = 0; group < kKvGroups; ++group) {
    Sequence::Blocks& held = sequence.blocks[static_cast<size_t>(group)];
    for (const int32_t block : held.table) {
      if (block >= 0) pools_[static_cast<size_t>(group)].give_back(block);
    }
    held = {};
  }
}

void Scheduler::preempt_youngest() {
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  const auto planned = std::find_if(plan_.begin(), plan_.end(),
                                    [&](const ScheduledRows& entry) { return entry.sequence == victim.get(); });
  if (planned != plan_.end()) {
    rows_left_ += planned->rows;
    if (victim->wants_all()) logit_rows_left_ += planned->rows;
    plan_.erase(planned);
  }
  release(*victim);
  victim->computed = 0;
  waiting_.push_front(std::move(victim));
  ++preemptions_;
}

std::unique_ptr<Sequence> Scheduler::remove(const Sequence* sequence) {
  const auto is_it = [&](const std::unique_ptr<Sequence>& entry) { return entry.get() == sequence; };
  std::unique_ptr<Sequence> out;
  if (const auto at = std::find_if(running_.begin(), running_.end(), is_it); at != running_.end()) {
    out = std::move(*at);
    running_.erase(at);
  } else if (const auto queued = std::find_if(waiting_.begin(), waiting_.end(), is_it); queued != waiting_.end()) {
    out = std::move(*queued);
    waiting_.erase(queued);
  }
  if (out) release(*out);
  return out;
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  all.reserve(running_.size() + waiting_.size());
  for (const auto& entry : running_) all.push_back(entry.get());
  for (const auto& entry : waiting_) all.push_back(entry.get());
  return all;
}

}  // namespace gemmantle
