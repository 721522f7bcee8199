// tail_batch.h: the rows of a batch whose logits are wanted, as a batch of their own.
//
// Slots are left out: nothing after the cut writes K and V.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/batch.h"

namespace gemmantle {

// Owns the arrays of the batch it made last.
class TailBatch {
 public:
  const Batch& make(const Batch& all) {
    batch_ = all;
    if (all.logit_rows.size() == all.ids.size()) return batch_;
    pick(positions_, all.positions, all.logit_rows);
    pick(sequence_, all.sequence, all.logit_rows);
    pick(ids_, all.ids, all.logit_rows);
    batch_.positions = positions_;
    batch_.sequence = sequence_;
    batch_.ids = ids_;
    for (size_t g = 0; g < kKvGroups; ++g) {
      pick(begin_[g], all.groups[g].kv_begin, all.logit_rows);
      pick(end_[g], all.groups[g].kv_end, all.logit_rows);
      batch_.groups[g].kv_begin = begin_[g];
      batch_.groups[g].kv_end = end_[g];
      batch_.groups[g].slots = {};
    }
    return batch_;
  }

 private:
  static void pick(std::vector<int32_t>& out, std::span<const int32_t> from, std::span<const int32_t> rows) {
    out.resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) out[i] = from[static_cast<size_t>(rows[i])];
  }

  Batch batch_;
  std::vector<int32_t> ids_, positions_, sequence_;
  std::vector<int32_t> begin_[kKvGroups], end_[kKvGroups];
};

}  // namespace gemmantle
