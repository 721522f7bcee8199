// batch_builder.h: scheduled rows to the flat Batch of a step, and what each wanted row of logits is for.
//
// Owns the arrays that the Batch views; they are valid until the next build.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/batch.h"
#include "backend/ops.h"
#include "engine/scheduler.h"

namespace gemmantle {

class BatchBuilder {
 public:
  explicit BatchBuilder(const SchedulerLimits& limits) : limits_(limits) {}

  // A row whose logits are wanted; the r-th is row r of the logits.
  struct Wanted {
    Sequence* sequence;
    int64_t position;
    bool draws, scores, keeps;
  };

  const Batch& build(const std::vector<ScheduledRows>& plan);
  const std::vector<Wanted>& wanted() const { return wanted_; }
  // One sampler row per wanted row; a row that is only kept asks for nothing. Empty when no row is drawn or scored.
  const std::vector<SampleRow>& sample_rows() const { return sample_rows_; }

 private:
  struct Group {
    std::vector<int32_t> slots, table, begin, end;
  };

  void want(Sequence& sequence, int64_t position);

  SchedulerLimits limits_;
  std::vector<int32_t> ids_, positions_, sequence_, logit_rows_;
  Group groups_[kKvGroups];
  std::vector<Wanted> wanted_;
  std::vector<SampleRow> sample_rows_;
  Batch batch_;
};

}  // namespace gemmantle
