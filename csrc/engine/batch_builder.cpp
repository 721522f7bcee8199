#include "engine/batch_builder.h"

#include <algorithm>

namespace gemmantle {

const Batch& BatchBuilder::build(const std::vector<ScheduledRows>& plan) {
  for (auto* array : {&ids_, &positions_, &sequence_, &logit_rows_}) array->clear();
  wanted_.clear();
  sample_rows_.clear();
  bool has_samples = false;

  for (size_t s = 0; s < plan.size(); ++s) {
    Sequence& sequence = *plan[s].sequence;
    for (int64_t p = sequence.computed; p < sequence.computed + plan[s].rows; ++p) {
      ids_.push_back(sequence.token(p));
      positions_.push_back(static_cast<int32_t>(p));
      sequence_.push_back(static_cast<int32_t>(s));
      const Wanted row{&sequence, p, sequence.draws_at(p), sequence.scores_at(p), sequence.keeps_at(p)};
      if (!row.draws && !row.scores && !row.keeps) continue;
      logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      wanted_.push_back(row);
      has_samples = has_samples || row.draws || row.scores;
    }
  }
  if (has_samples) {
    for (const Wanted& row : wanted_) {
      SampleRow nothing;
      nothing.forced = 0;
      sample_rows_.push_back(row.draws    ? row.sequence->sample_row(row.position)
                             : row.scores ? row.sequence->score_row(row.position)
                                          : nothing);
    }
  }

  for (int g = 0; g < kKvGroups; ++g) {
    Group& group = groups_[g];
    const auto index = static_cast<size_t>(g);
    const bool is_used = limits_.blocks[index] > 0;
    int64_t max_blocks = 0;
    size_t room = 0;  // that the tables will grow into
    for (const ScheduledRows& entry : plan) {
      const std::vector<int32_t>& table = entry.sequence->blocks[index].table;
      max_blocks = std::max(max_blocks, static_cast<int64_t>(table.size()));
      room = std::max(room, table.capacity());
    }
    group.table.reserve(plan.size() * room);
    group.slots.assign(ids_.size(), 0);
    group.begin.assign(ids_.size(), 0);
    group.end.resize(ids_.size());
    group.table.assign(plan.size() * static_cast<size_t>(max_blocks), -1);
    for (size_t s = 0; s < plan.size(); ++s) {
      const std::vector<int32_t>& table = plan[s].sequence->blocks[index].table;
      std::copy(table.begin(), table.end(), group.table.begin() + static_cast<int64_t>(s) * max_blocks);
    }
    for (size_t r = 0; r < ids_.size(); ++r) {
      const int64_t position = positions_[r];
      const std::vector<int32_t>& table = plan[static_cast<size_t>(sequence_[r])].sequence->blocks[index].table;
      if (is_used) {
        const int64_t block = table[static_cast<size_t>(position / limits_.block_size)];
        group.slots[r] = static_cast<int32_t>(block * limits_.block_size + position % limits_.block_size);
      }
      if (g == kSliding) group.begin[r] = static_cast<int32_t>(std::max<int64_t>(0, position - limits_.window + 1));
      group.end[r] = static_cast<int32_t>(position + 1);
    }
    batch_.groups[g] = {group.slots, group.table, max_blocks, group.begin, group.end};
  }
  batch_.ids = ids_;
  batch_.positions = positions_;
  batch_.sequence = sequence_;
  batch_.logit_rows = logit_rows_;
  return batch_;
}

}  // namespace gemmantle
