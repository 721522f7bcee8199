// scheduler.h: which rows run in the next step, and who holds which blocks.
//
// A step takes one row of every sequence that decodes, then as much prompt as fits the budget of rows: the higher
// priority first, the older first within one, and a share stays for the prompts of lower ones.
// A sequence is admitted when the blocks of all its tokens are free; the full group's are taken at once, the sliding
// group's as it goes, and those behind the window are given back. When blocks run out the youngest sequence gives its
// own back and waits to be computed again. A sequence that waits for its consumer stays out of the step, and leaves
// when it is slow and others need its place.
//
// Full blocks are remembered by their tokens (prefix_tree.h) and kept until the pool needs them. An admitted sequence
// starts behind the longest run of kept blocks: all of the full group's, and of the sliding group's those that the
// next row can see. Where the next block is just being computed for somebody else, it waits for that instead of
// computing it again, and those behind it may go first. Numbers only: no model, no threads.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/prefix_tree.h"
#include "engine/sequence.h"

namespace gemmantle {

struct SchedulerLimits {
  int64_t max_rows = 512;        // of a step; one explicit chunk may be larger
  int64_t max_logit_rows = 512;  // of a step, for sequences that want all of them
  int64_t max_sequences = 16;
  int64_t block_size = 16;
  int64_t window = 0;                       // of the sliding group
  std::array<int64_t, kKvGroups> blocks{};  // of each group; 0: no layer uses the group
};

struct ScheduledRows {
  Sequence* sequence;
  int64_t rows;  // positions [computed, computed + rows)
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // Behind all that wait with its priority or a higher one; nobody is overtaken for ever.
  void add(std::unique_ptr<Sequence> sequence);
  // The next step; empty only when there is nothing to do, or nothing but to wait for consumers. Valid until the next
  // call of plan or remove.
  const std::vector<ScheduledRows>& plan();
  // Takes a sequence out, wherever it is, and its blocks back.
  std::unique_ptr<Sequence> remove(const Sequence* sequence);

  bool is_empty() const { return waiting_.empty() && running_.empty(); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t preemptions() const { return preemptions_; }
  const BlockPool& pool(int group) const { return pools_[static_cast<size_t>(group)]; }
  const PrefixTree& prefixes() const { return prefixes_; }
  int64_t cached_tokens() const { return cached_tokens_; }  // of prompts, found instead of computed
  std::vector<Sequence*> sequences() const;

  // Blocks of a group that one sequence of `tokens` needs at the same time when it runs in chunks of up to `chunk`
  // rows.
  static int64_t blocks_needed(const SchedulerLimits& limits, int group, int64_t tokens, int64_t chunk);

 private:
  bool schedule(Sequence& sequence, int64_t rows);  // false when it had to give its blocks back itself
  bool allocate(Sequence& sequence, int64_t end);
  void release_behind_window(Sequence& sequence);
  void release(Sequence& sequence);
  void preempt_youngest();
  bool evict_slow();                        // one that is slow; false when there is none
  bool admit_next(int priority);            // one of this priority or a higher one
  std::vector<int> priorities() const;      // of prompts that run and of requests that wait, the highest first
  int64_t share_below(int priority) const;  // rows of a step that are left to the prompts of lower priorities
  bool has_room(const Sequence& sequence) const;

  // Finds the longest run of kept blocks, into found_; how many of them. The sequence awaits the block behind them
  // where that is being computed.
  int64_t match(Sequence& sequence);
  bool is_being_computed(int32_t node) const;
  bool still_awaits(const Sequence& sequence) const;
  void take_kept(Sequence& sequence, int64_t blocks);  // of found_
  void promise(Sequence& sequence);                    // the blocks that it is going to compute
  void store_computed(Sequence& sequence);
  void store(Sequence& sequence, int64_t block);
  std::span<const int32_t> block_tokens(const Sequence& sequence, int64_t block) const;
  int64_t prefill_rows(const Sequence& sequence) const;

  SchedulerLimits limits_;
  std::array<BlockPool, kKvGroups> pools_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  std::vector<ScheduledRows> plan_;
  int64_t rows_left_ = 0;
  int64_t rows_held_back_ = 0;  // of those, for lower priorities
  int64_t logit_rows_left_ = 0;
  int64_t preemptions_ = 0;

  PrefixTree prefixes_;
  std::vector<int32_t> found_;
  int64_t cached_tokens_ = 0;
  // The sequence that found no room, and what was to be had then: until there is more, it is not looked at again.
  const Sequence* blocked_ = nullptr;
  std::array<int64_t, kKvGroups> blocked_available_{};
  int64_t blocked_running_ = 0;
};

}  // namespace gemmantle
