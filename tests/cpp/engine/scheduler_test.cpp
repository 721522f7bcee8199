#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "engine/batch_builder.h"

namespace gemmantle {
namespace {

SchedulerLimits limits_of(int64_t full_blocks = 100, int64_t sliding_blocks = 100) {
  SchedulerLimits limits;
  limits.max_rows = 8;
  limits.max_logit_rows = 8;
  limits.max_sequences = 3;
  limits.block_size = 4;
  limits.window = 6;
  limits.blocks[kSliding] = sliding_blocks;
  limits.blocks[kFull] = full_blocks;
  return limits;
}

std::unique_ptr<Sequence> sequence_of(int64_t prompt, int64_t max_tokens = 100) {
  static int32_t next_id = 0;  // no two prompts begin alike, so that nothing is found that was not meant
  SamplingParams params;
  params.max_tokens = max_tokens;
  return std::make_unique<Sequence>(std::vector<int32_t>(static_cast<size_t>(prompt), ++next_id), params,
                                    std::vector<int32_t>{}, 1000, nullptr, std::make_shared<Mailbox>());
}

SampledToken token_of(int32_t id) {
  SampledToken token;
  token.id = id;
  return token;
}

// What the engine does with a step.
void run(const std::vector<ScheduledRows>& plan) {
  for (const ScheduledRows& entry : plan) {
    entry.sequence->computed += entry.rows;
    if (entry.sequence->pending() == 0) entry.sequence->accept(token_of(5));
  }
}

std::vector<int64_t> rows_of(const std::vector<ScheduledRows>& plan) {
  std::vector<int64_t> rows;
  for (const ScheduledRows& entry : plan) rows.push_back(entry.rows);
  return rows;
}

TEST(Scheduler, a_prompt_runs_in_chunks_of_the_budget_and_then_decodes) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(19));
  for (const int64_t rows : {8, 8, 3, 1, 1}) {
    const auto plan = scheduler.plan();
    EXPECT_EQ(rows_of(plan), std::vector<int64_t>{rows});
    run(plan);
  }
}

TEST(Scheduler, decode_rows_come_first_and_prompts_fill_the_rest) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(3));
  run(scheduler.plan());
  scheduler.add(sequence_of(20));
  scheduler.add(sequence_of(2));
  const auto plan = scheduler.plan();
  EXPECT_EQ(rows_of(plan), (std::vector<int64_t>{1, 7}));  // the third finds no rows left
  EXPECT_EQ(scheduler.waiting(), 1);
}

TEST(Scheduler, no_more_sequences_run_than_allowed) {
  Scheduler scheduler(limits_of());
  for (int i = 0; i < 5; ++i) scheduler.add(sequence_of(1));
  run(scheduler.plan());
  EXPECT_EQ(scheduler.running(), 3);
  EXPECT_EQ(scheduler.waiting(), 2);
  scheduler.remove(scheduler.sequences().front());
  run(scheduler.plan());
  EXPECT_EQ(scheduler.running(), 3);
  EXPECT_EQ(scheduler.waiting(), 1);
}

TEST(Scheduler, explicit_chunks_are_obeyed_even_beyond_the_budget) {
  Scheduler scheduler(limits_of());
  auto sequence = sequence_of(16, 0);
  sequence->chunk_ends = {2, 3, 14, 16};
  scheduler.add(std::move(sequence));
  for (const int64_t rows : {2, 1, 11, 2}) {
    const auto plan = scheduler.plan();
    EXPECT_EQ(rows_of(plan), std::vector<int64_t>{rows});
    for (const ScheduledRows& entry : plan) entry.sequence->computed += entry.rows;
  }
}

TEST(Scheduler, rows_whose_logits_are_all_wanted_have_a_budget_of_their_own) {
  SchedulerLimits limits = limits_of();
  limits.max_logit_rows = 3;
  Scheduler scheduler(limits);
  auto all = sequence_of(7, 0);
  all->sink = LogitsSink{nullptr, false};
  scheduler.add(std::move(all));
  auto last = sequence_of(5, 0);
  last->sink = LogitsSink{nullptr, true};
  scheduler.add(std::move(last));
  EXPECT_EQ(rows_of(scheduler.plan()), (std::vector<int64_t>{3, 5}));
}

TEST(Scheduler, sliding_blocks_are_given_back_behind_the_window) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(1));
  for (int i = 0; i < 60; ++i) {
    run(scheduler.plan());
    const int64_t held = scheduler.pool(kSliding).total() - scheduler.pool(kSliding).available();
    EXPECT_LE(held, 3);  // a window of 6 touches at most 3 blocks of 4
  }
  const Sequence& sequence = *scheduler.sequences().front();
  EXPECT_EQ(sequence.blocks[kSliding].table.front(), -1);
  EXPECT_EQ(sequence.blocks[kFull].table.size(), 15u);
}

TEST(Scheduler, the_youngest_gives_its_blocks_back_and_returns) {
  Scheduler scheduler(limits_of(6));
  scheduler.add(sequence_of(8));
  scheduler.add(sequence_of(4));
  Sequence* const oldest = scheduler.sequences()[0];
  Sequence* const youngest = scheduler.sequences()[1];
  run(scheduler.plan());
  run(scheduler.plan());
  ASSERT_EQ(scheduler.running(), 2);
  while (scheduler.preemptions() == 0) {
    const auto plan = scheduler.plan();
    ASSERT_FALSE(plan.empty());
    run(plan);
    ASSERT_LT(oldest->size(), 30);
  }
  EXPECT_EQ(youngest->computed, 0);
  EXPECT_EQ(scheduler.waiting(), 1);
  const int64_t kept = youngest->size();
  scheduler.remove(oldest);
  const auto plan = scheduler.plan();
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].sequence, youngest);
  // Its full blocks were kept, those that the oldest did not need meanwhile.
  EXPECT_EQ(youngest->computed % 4, 0);
  EXPECT_EQ(plan[0].rows, std::min<int64_t>(kept - youngest->computed, 8));
}

TEST(Scheduler, a_removed_sequence_leaves_no_block_behind) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(30));
  run(scheduler.plan());
  scheduler.remove(scheduler.sequences().front());
  EXPECT_TRUE(scheduler.is_empty());
  EXPECT_EQ(scheduler.pool(kFull).available(), 100);
  EXPECT_EQ(scheduler.pool(kSliding).available(), 100);
}

// Random arrivals, lengths and ends on a pool that is too small for all: every block has one holder, ranges are
// covered, everybody finishes, nothing leaks.
TEST(Scheduler, random_load_keeps_its_invariants) {
  const unsigned seed = 31337;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const SchedulerLimits limits = limits_of(12, 13);
  Scheduler scheduler(limits);
  BatchBuilder builder(limits);
  const auto upto = [&](int n) { return static_cast<int64_t>(rng() % static_cast<unsigned>(n)); };
  int added = 0, finished = 0, steps = 0;
  while (added < 200 || !scheduler.is_empty()) {
    ASSERT_LT(++steps, 20000);
    if (added < 200 && upto(3) == 0) {
      ++added;
      scheduler.add(sequence_of(1 + upto(24), 1 + upto(20)));
    }
    if (scheduler.is_empty()) continue;
    const std::vector<ScheduledRows> plan = scheduler.plan();
    ASSERT_FALSE(plan.empty());
    const Batch& batch = builder.build(plan);
    ASSERT_LE(batch.rows(), limits.max_rows);
    for (int g = 0; g < kKvGroups; ++g) {
      std::set<int32_t> blocks, slots;
      size_t held = 0;
      for (const Sequence* sequence : scheduler.sequences()) {
        for (const int32_t block : sequence->blocks[static_cast<size_t>(g)].table) {
          if (block < 0) continue;
          ++held;
          blocks.insert(block);
        }
      }
      ASSERT_EQ(blocks.size(), held);
      ASSERT_EQ(static_cast<int64_t>(held), scheduler.pool(g).total() - scheduler.pool(g).available());
      const Batch::Group& group = batch.groups[g];
      for (size_t r = 0; r < batch.ids.size(); ++r) {
        slots.insert(group.slots[r]);
        for (int32_t p = group.kv_begin[r]; p < group.kv_end[r]; ++p) {
          ASSERT_GE(
              group.block_table[static_cast<size_t>(batch.sequence[r] * group.max_blocks + p / limits.block_size)], 0);
        }
      }
      ASSERT_EQ(slots.size(), batch.ids.size());
    }
    for (const ScheduledRows& entry : plan) {
      entry.sequence->computed += entry.rows;
      if (entry.sequence->pending() > 0) continue;
      if (entry.sequence->accept(token_of(1)).finish == FinishReason::none && upto(40) != 0) continue;
      scheduler.remove(entry.sequence);
      ++finished;
    }
  }
  EXPECT_EQ(finished, 200);
  EXPECT_GT(scheduler.preemptions(), 0);
  EXPECT_EQ(scheduler.pool(kFull).available(), 12);
  EXPECT_EQ(scheduler.pool(kSliding).available(), 13);
}

TEST(BatchBuilder, ranges_slots_and_wanted_rows_are_right) {
  const SchedulerLimits limits = limits_of();
  Scheduler scheduler(limits);
  BatchBuilder builder(limits);
  scheduler.add(sequence_of(9));
  scheduler.plan();
  run(scheduler.plan());
  const std::vector<ScheduledRows> plan = scheduler.plan();
  const Batch& batch = builder.build(plan);
  ASSERT_EQ(batch.rows(), 1);
  EXPECT_EQ(batch.positions[0], 8);
  EXPECT_EQ(batch.groups[kFull].kv_begin[0], 0);
  EXPECT_EQ(batch.groups[kFull].kv_end[0], 9);
  EXPECT_EQ(batch.groups[kSliding].kv_begin[0], 3);
  EXPECT_EQ(batch.groups[kSliding].kv_end[0], 9);
  EXPECT_EQ(batch.groups[kFull].slots[0], plan[0].sequence->blocks[kFull].table[2] * 4);
  ASSERT_EQ(batch.logit_rows.size(), 1u);
  EXPECT_TRUE(builder.wanted()[0].draws);
  EXPECT_EQ(builder.sample_rows()[0].position, 9u);
}

}  // namespace
}  // namespace gemmantle
