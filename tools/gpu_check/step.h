// step.h: steps of a few sequences that are equally far, and the blocks of K and V behind them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "backend/batch.h"
#include "model/config.h"
#include "model/tail_batch.h"

namespace gemmantle::gpu_check {

constexpr int64_t kBlock = 16;  // positions

enum class Logits { none, last, all };  // of which rows of a sequence

// Owns the arrays of the step it made last: rows [first, first + n) of each of `sequences` sequences of `length`
// positions, read in pieces of at most `chunk`.
class Step {
 public:
  Step(const ModelConfig& config, int sequences, int64_t length, int64_t chunk)
      : config_(config), sequences_(sequences) {
    blocks_[kFull] = (length + kBlock - 1) / kBlock;
    // Behind the window blocks are used again, as the engine does.
    blocks_[kSliding] = std::min(blocks_[kFull], (config.window + chunk) / kBlock + 2);
    logical_ = blocks_[kFull];
    for (int g = 0; g < kKvGroups; ++g) {
      for (int s = 0; s < sequences; ++s) {
        for (int64_t b = 0; b < logical_; ++b) {
          tables_[g].push_back(static_cast<int32_t>(s * blocks_[g] + b % blocks_[g]));
        }
      }
    }
  }

  std::array<int64_t, kKvGroups> blocks() const {
    return {sequences_ * blocks_[kSliding], sequences_ * blocks_[kFull]};
  }

  // Row by row of one sequence after the other.
  const Batch& rows(int64_t first, int64_t n, Logits wanted) {
    for (std::vector<int32_t>* list : {&ids_, &positions_, &sequence_, &logit_rows_}) list->clear();
    for (int g = 0; g < kKvGroups; ++g) slots_[g].clear(), begin_[g].clear(), end_[g].clear();
    for (int s = 0; s < sequences_; ++s) {
      for (int64_t p = first; p < first + n; ++p) {
        add(s, p);
        const bool is_wanted = wanted == Logits::all || (wanted == Logits::last && p + 1 == first + n);
        if (is_wanted) logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      }
    }
    batch_.ids = ids_, batch_.positions = positions_, batch_.sequence = sequence_, batch_.logit_rows = logit_rows_;
    for (int g = 0; g < kKvGroups; ++g) {
      batch_.groups[g] = {slots_[g], tables_[g], logical_, begin_[g], end_[g]};
    }
    return batch_;
  }

  // The rows of a batch whose logits are wanted.
  const Batch& tail(const Batch& all) { return tail_.make(all); }

 private:
  void add(int s, int64_t p) {
    ids_.push_back(static_cast<int32_t>((p * 7919 + s) % config_.vocab));
    positions_.push_back(static_cast<int32_t>(p));
    sequence_.push_back(s);
    for (int g = 0; g < kKvGroups; ++g) {
      const int32_t block = tables_[g][static_cast<size_t>(s * logical_ + p / kBlock)];
      slots_[g].push_back(static_cast<int32_t>(block * kBlock + p % kBlock));
      begin_[g].push_back(static_cast<int32_t>(g == kSliding ? std::max<int64_t>(0, p + 1 - config_.window) : 0));
      end_[g].push_back(static_cast<int32_t>(p + 1));
    }
  }

  const ModelConfig& config_;
  int sequences_;
  int64_t logical_ = 0;
  std::array<int64_t, kKvGroups> blocks_{};
  std::vector<int32_t> ids_, positions_, sequence_, logit_rows_;
  std::vector<int32_t> tables_[kKvGroups], slots_[kKvGroups], begin_[kKvGroups], end_[kKvGroups];
  TailBatch tail_;
  Batch batch_;
};

}  // namespace gemmantle::gpu_check
