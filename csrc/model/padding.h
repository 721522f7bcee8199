// padding.h: a step of one row per sequence, filled up with rows of padding (batch.h), so that steps have few shapes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "backend/ops.h"

namespace gemmantle {

// One row for each sequence, in order, and the logits of all of them wanted.
bool is_decode_step(const Batch& batch);

// Owns the arrays of the step it made last.
class Padding {
 public:
  // A decode step with `rows` rows, its own ones first.
  const Batch& fill(const Batch& step, int64_t rows);
  // What the rows draw: padding draws nothing. Empty where `draws` is.
  std::span<const SampleRow> fill(std::span<const SampleRow> draws, int64_t rows);
  // Room for what they draw.
  std::span<SampledToken> tokens() { return tokens_; }

 private:
  struct Group {
    std::vector<int32_t> slots, table, begin, end;
  };

  Batch batch_;
  std::vector<int32_t> ids_, positions_, sequence_, logit_rows_;
  Group groups_[kKvGroups];
  std::vector<SampleRow> draws_;
  std::vector<SampledToken> tokens_;
};

}  // namespace gemmantle
