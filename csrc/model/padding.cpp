#include "model/padding.h"

namespace gemmantle {
namespace {

void extend(std::vector<int32_t>& to, std::span<const int32_t> from, int64_t n, int32_t value) {
  to.assign(from.begin(), from.end());
  to.resize(static_cast<size_t>(n), value);
}

}  // namespace

bool is_decode_step(const Batch& batch) {
  if (batch.ids.empty() || batch.logit_rows.size() != batch.ids.size()) return false;
  for (size_t r = 0; r < batch.sequence.size(); ++r) {
    if (batch.sequence[r] != static_cast<int32_t>(r)) return false;
  }
  return true;
}

const Batch& Padding::fill(const Batch& step, int64_t rows) {
  extend(ids_, step.ids, rows, -1);
  extend(positions_, step.positions, rows, 0);
  sequence_.resize(static_cast<size_t>(rows));
  for (size_t r = 0; r < sequence_.size(); ++r) sequence_[r] = static_cast<int32_t>(r);
  logit_rows_ = sequence_;
  batch_.ids = ids_;
  batch_.positions = positions_;
  batch_.sequence = sequence_;
  batch_.logit_rows = logit_rows_;
  for (int g = 0; g < kKvGroups; ++g) {
    const Batch::Group& from = step.groups[g];
    Group& to = groups_[g];
    extend(to.slots, from.slots, rows, -1);
    extend(to.table, from.block_table, rows * from.max_blocks, -1);
    extend(to.begin, from.kv_begin, rows, 0);
    extend(to.end, from.kv_end, rows, 0);
    batch_.groups[g] = {to.slots, to.table, from.max_blocks, to.begin, to.end};
  }
  return batch_;
}

std::span<const SampleRow> Padding::fill(std::span<const SampleRow> draws, int64_t rows) {
  draws_.assign(draws.begin(), draws.end());
  if (!draws.empty()) {
    SampleRow nothing;
    nothing.forced = 0;
    draws_.resize(static_cast<size_t>(rows), nothing);
  }
  tokens_.resize(draws_.size());
  return draws_;
}

}  // namespace gemmantle
