#include "engine/scheduler.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace gemmantle {
namespace {

constexpr int kMostOvertaken = 32;
constexpr int64_t kShareBelow = 8;  // one row of so many goes to prompts of lower priorities, where there are any

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits),
      pools_{BlockPool(limits.blocks[kSliding]), BlockPool(limits.blocks[kFull])},
      prefixes_(limits.block_size, limits.blocks) {}

int64_t Scheduler::blocks_needed(const SchedulerLimits& limits, int group, int64_t tokens, int64_t chunk) {
  if (limits.blocks[static_cast<size_t>(group)] == 0) return 0;
  const int64_t all = (tokens + limits.block_size - 1) / limits.block_size;
  if (group == kFull) return all;
  // A window and a chunk at most, each cutting a block at either end.
  return std::min(all, (limits.window + chunk) / limits.block_size + 2);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  auto place = waiting_.end();
  while (place != waiting_.begin()) {
    Sequence& before = **std::prev(place);
    // Whoever ran already keeps its turn.
    if (before.params().priority >= sequence->params().priority || before.was_admitted) break;
    if (before.overtaken == kMostOvertaken) break;
    ++before.overtaken;
    --place;
  }
  waiting_.insert(place, std::move(sequence));
}

const std::vector<ScheduledRows>& Scheduler::plan() {
  plan_.clear();
  rows_left_ = limits_.max_rows;
  logit_rows_left_ = limits_.max_logit_rows;
  const int64_t preempted_before = preemptions_;
  for (const auto& sequence : running_) store_computed(*sequence);

  const auto schedule_those = [&](const auto& belongs) {
    for (size_t i = 0; i < running_.size(); ++i) {
      Sequence& sequence = *running_[i];
      if (!belongs(sequence)) continue;
      const int64_t rows = prefill_rows(sequence);
      if (rows > 0 && !schedule(sequence, rows)) break;  // it was the youngest: nobody is left behind it
    }
  };
  rows_held_back_ = 0;
  schedule_those([](const Sequence& sequence) { return sequence.pending() == 1; });
  for (const int priority : priorities()) {
    rows_held_back_ = share_below(priority);
    schedule_those(
        [&](const Sequence& sequence) { return sequence.pending() > 1 && sequence.params().priority == priority; });
    while (preemptions_ == preempted_before && admit_next(priority)) {
      Sequence& sequence = *running_.back();
      if (!schedule(sequence, prefill_rows(sequence))) break;
    }
  }
  return plan_;
}

std::vector<int> Scheduler::priorities() const {
  std::vector<int> found;
  const auto note = [&](const std::unique_ptr<Sequence>& sequence) {
    const int priority = sequence->params().priority;
    if (std::find(found.begin(), found.end(), priority) == found.end()) found.push_back(priority);
  };
  for (const auto& sequence : running_) {
    if (sequence->pending() > 1) note(sequence);
  }
  for (const auto& sequence : waiting_) note(sequence);
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

int64_t Scheduler::share_below(int priority) const {
  int64_t wanted = 0;
  for (const auto& sequence : running_) {
    if (sequence->pending() > 1 && sequence->params().priority < priority) wanted += sequence->computable();
  }
  const auto next = std::find_if(waiting_.begin(), waiting_.end(),
                                 [&](const auto& sequence) { return sequence->params().priority < priority; });
  if (next != waiting_.end() && next->get() != blocked_ &&
      running() + (next - waiting_.begin()) < limits_.max_sequences) {
    wanted += (*next)->computable();
  }
  return std::min(wanted, limits_.max_rows / kShareBelow);
}

int64_t Scheduler::prefill_rows(const Sequence& sequence) const {
  int64_t rows = sequence.computable();
  const auto next = std::upper_bound(sequence.chunk_ends.begin(), sequence.chunk_ends.end(), sequence.computed);
  if (next != sequence.chunk_ends.end()) return std::min(rows, *next - sequence.computed);
  return sequence.rows_within(std::clamp<int64_t>(rows_left_ - rows_held_back_, 0, rows), logit_rows_left_);
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
  logit_rows_left_ -= std::min(sequence.logit_rows(rows), logit_rows_left_);
  return true;
}

bool Scheduler::admit_next(int priority) {
  int64_t looked_at = 0;
  for (int64_t i = 0; i < waiting() && looked_at < limits_.max_sequences; ++i) {
    Sequence& sequence = *waiting_[static_cast<size_t>(i)];
    // Those with nothing to do but to wait for their consumer hold up nobody in the queue.
    if (sequence.computable() == 0 || sequence.is_slow) continue;
    if (sequence.params().priority < priority) return false;
    ++looked_at;
    if (still_awaits(sequence)) continue;
    if (running() >= limits_.max_sequences && !evict_slow()) return false;
    if (&sequence == blocked_ && !running_.empty()) {
      bool has_more = running() < blocked_running_;
      for (int g = 0; g < kKvGroups; ++g) {
        has_more = has_more || pool(g).available() > blocked_available_[static_cast<size_t>(g)];
      }
      if (!has_more && !evict_slow()) return false;
    }
    const int64_t kept = match(sequence);
    if (sequence.prefix.awaited != PrefixTree::kNone) continue;
    sequence.computed = kept * limits_.block_size;
    if (prefill_rows(sequence) == 0) {
      const bool only_waits = sequence.computable() == 0;  // all but the row of the first draw is there
      sequence.computed = 0;
      if (only_waits) continue;
      return false;
    }
    sequence.make_room(limits_.block_size);
    take_kept(sequence, kept);
    while (!running_.empty() && !has_room(sequence)) {
      if (evict_slow()) continue;
      release(sequence);
      sequence.computed = 0;
      blocked_ = &sequence;
      blocked_running_ = running();
      for (int g = 0; g < kKvGroups; ++g) blocked_available_[static_cast<size_t>(g)] = pool(g).available();
      return false;
    }
    promise(sequence);
    if (!sequence.was_admitted) {
      sequence.was_admitted = true;
      sequence.cached = std::min(sequence.computed, sequence.prompt_size());
      cached_tokens_ += sequence.cached;
    }
    blocked_ = nullptr;
    running_.push_back(std::move(waiting_[static_cast<size_t>(i)]));
    waiting_.erase(waiting_.begin() + i);
    return true;
  }
  return false;
}

bool Scheduler::evict_slow() {
  const auto slow = std::find_if(running_.begin(), running_.end(),
                                 [](const auto& entry) { return entry->is_slow && entry->computable() == 0; });
  if (slow == running_.end()) return false;
  std::unique_ptr<Sequence> sequence = std::move(*slow);
  running_.erase(slow);
  release(*sequence);
  sequence->computed = 0;
  waiting_.push_back(std::move(sequence));  // goes to the end of the queue
  ++preemptions_;
  return true;
}

bool Scheduler::has_room(const Sequence& sequence) const {
  for (int group = 0; group < kKvGroups; ++group) {
    // Those that run keep a block each to grow into; a sequence that is alone always fits.
    const Sequence::Blocks& held = sequence.blocks[static_cast<size_t>(group)];
    const int64_t chunk = std::max(limits_.max_rows, sequence.largest_chunk());
    const int64_t needed = blocks_needed(limits_, group, sequence.size() + 1, chunk);
    const int64_t further = needed - (static_cast<int64_t>(held.table.size()) - held.first);
    if (needed > 0 && further + running() > pool(group).available()) return false;
  }
  return true;
}

std::span<const int32_t> Scheduler::block_tokens(const Sequence& sequence, int64_t block) const {
  return sequence.tokens().subspan(static_cast<size_t>(block * limits_.block_size),
                                   static_cast<size_t>(limits_.block_size));
}

int64_t Scheduler::match(Sequence& sequence) {
  const int64_t most = sequence.reusable() / limits_.block_size;
  found_.clear();
  sequence.prefix.awaited = PrefixTree::kNone;
  int64_t best = 0;
  int64_t sliding = 0;  // blocks of that group without a gap, up to here
  int32_t node = PrefixTree::kNone;
  for (int64_t i = 0; i < most; ++i) {
    node = prefixes_.find(node, block_tokens(sequence, i));
    if (node == PrefixTree::kNone) break;
    if (i == best && is_being_computed(node)) sequence.prefix.awaited = node;
    if (pool(kFull).total() > 0 && prefixes_.block(node, kFull) < 0) break;
    found_.push_back(node);
    sliding = prefixes_.block(node, kSliding) < 0 ? 0 : sliding + 1;
    const int64_t next = (i + 1) * limits_.block_size;
    const int64_t first_seen = std::max<int64_t>(0, next - limits_.window + 1) / limits_.block_size;
    if (pool(kSliding).total() == 0 || sliding >= i + 1 - first_seen) {
      best = i + 1;
      sequence.prefix.awaited = PrefixTree::kNone;
    }
  }
  if (sequence.prefix.awaited != PrefixTree::kNone) {
    sequence.prefix.awaited_serial = prefixes_.serial(sequence.prefix.awaited);
  }
  return best;
}

// Only one that is in this step: it comes nearer with every step.
bool Scheduler::is_being_computed(int32_t node) const {
  const Sequence* computer = prefixes_.computer(node);
  return computer != nullptr && std::any_of(plan_.begin(), plan_.end(),
                                            [&](const ScheduledRows& entry) { return entry.sequence == computer; });
}

bool Scheduler::still_awaits(const Sequence& sequence) const {
  const Sequence::Prefix& prefix = sequence.prefix;
  return prefix.awaited != PrefixTree::kNone && prefixes_.is_alive(prefix.awaited, prefix.awaited_serial) &&
         is_being_computed(prefix.awaited);
}

void Scheduler::take_kept(Sequence& sequence, int64_t blocks) {
  for (int64_t i = 0; i < blocks; ++i) {
    const int32_t before = i == 0 ? PrefixTree::kNone : sequence.prefix.nodes.back();
    sequence.prefix.nodes.push_back(prefixes_.hold(before, block_tokens(sequence, i)));
  }
  sequence.prefix.stored = blocks;
  for (int g = 0; g < kKvGroups; ++g) {
    BlockPool& pool = pools_[static_cast<size_t>(g)];
    if (pool.total() == 0) continue;
    Sequence::Blocks& held = sequence.blocks[static_cast<size_t>(g)];
    const int64_t first_seen = std::max<int64_t>(0, blocks * limits_.block_size - limits_.window + 1);
    held.first = g == kSliding ? std::min(blocks, first_seen / limits_.block_size) : 0;
    held.table.assign(static_cast<size_t>(blocks), -1);
    for (int64_t i = held.first; i < blocks; ++i) {
      const int32_t block = prefixes_.block(found_[static_cast<size_t>(i)], g);
      pool.share(block);
      held.table[static_cast<size_t>(i)] = block;
    }
  }
}

void Scheduler::promise(Sequence& sequence) {
  std::vector<int32_t>& nodes = sequence.prefix.nodes;
  for (int64_t i = static_cast<int64_t>(nodes.size()); (i + 1) * limits_.block_size <= sequence.size(); ++i) {
    const int32_t before = nodes.empty() ? PrefixTree::kNone : nodes.back();
    nodes.push_back(prefixes_.hold(before, block_tokens(sequence, i)));
    if (prefixes_.computer(nodes.back()) == nullptr) prefixes_.set_computer(nodes.back(), &sequence);
  }
}

void Scheduler::store_computed(Sequence& sequence) {
  Sequence::Prefix& prefix = sequence.prefix;
  for (; (prefix.stored + 1) * limits_.block_size <= sequence.computed; ++prefix.stored) {
    if (static_cast<int64_t>(prefix.nodes.size()) == prefix.stored) {
      const int32_t before = prefix.nodes.empty() ? PrefixTree::kNone : prefix.nodes.back();
      prefix.nodes.push_back(prefixes_.hold(before, block_tokens(sequence, prefix.stored)));
    }
    store(sequence, prefix.stored);
  }
}

// A block whose tokens are stored already stays this sequence's own.
void Scheduler::store(Sequence& sequence, int64_t block) {
  const auto i = static_cast<size_t>(block);
  const int32_t node = sequence.prefix.nodes[i];
  for (int g = 0; g < kKvGroups; ++g) {
    const std::vector<int32_t>& table = sequence.blocks[static_cast<size_t>(g)].table;
    if (i >= table.size() || table[i] < 0 || prefixes_.block(node, g) >= 0) continue;
    prefixes_.store(node, g, table[i]);
    pools_[static_cast<size_t>(g)].keep(table[i]);
  }
  if (prefixes_.computer(node) == &sequence) prefixes_.set_computer(node, nullptr);
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
      prefixes_.forget(group, block);
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

// The last blocks first, so that they are the first to go: a chain is of use from its beginning.
void Scheduler::release(Sequence& sequence) {
  store_computed(sequence);
  for (int64_t i = 0; i < sequence.prefix.stored; ++i) store(sequence, i);  // what was forgotten meanwhile
  for (int group = 0; group < kKvGroups; ++group) {
    Sequence::Blocks& held = sequence.blocks[static_cast<size_t>(group)];
    for (auto block = held.table.rbegin(); block != held.table.rend(); ++block) {
      if (*block >= 0) pools_[static_cast<size_t>(group)].give_back(*block);
    }
    held = {};
  }
  for (const int32_t node : sequence.prefix.nodes) {
    if (prefixes_.computer(node) == &sequence) prefixes_.set_computer(node, nullptr);
    prefixes_.release(node);
  }
  sequence.prefix = {};
}

void Scheduler::preempt_youngest() {
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  const auto planned = std::find_if(plan_.begin(), plan_.end(),
                                    [&](const ScheduledRows& entry) { return entry.sequence == victim.get(); });
  if (planned != plan_.end()) {
    rows_left_ += planned->rows;
    logit_rows_left_ += victim->logit_rows(planned->rows);
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
  if (out.get() == blocked_) blocked_ = nullptr;
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
