// Who gets a place, how much of a step, and for how long: priorities, waits with an end, readers that do not read.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <thread>

#include "engine/fake_runner.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

constexpr int kFlex = -1, kDefault = 0, kPriority = 1;

SchedulerLimits limits_of(int64_t max_sequences) {
  SchedulerLimits limits;
  limits.max_rows = 64;
  limits.max_logit_rows = 64;
  limits.max_sequences = max_sequences;
  limits.block_size = 16;
  limits.window = 32;
  limits.blocks[kSliding] = 1000;
  limits.blocks[kFull] = 1000;
  return limits;
}

std::unique_ptr<Sequence> prompt_of(int32_t id, int64_t tokens, int priority) {
  SamplingParams params;
  params.max_tokens = 0;
  params.priority = priority;
  return std::make_unique<Sequence>(std::vector<int32_t>(static_cast<size_t>(tokens), id), params,
                                    std::vector<int32_t>{}, 10000, nullptr, std::make_shared<Mailbox>());
}

// One step; the rows of each sequence by its first id.
std::map<int32_t, int64_t> step(Scheduler& scheduler) {
  std::map<int32_t, int64_t> rows;
  std::vector<Sequence*> ended;
  for (const ScheduledRows& entry : scheduler.plan()) {
    rows[entry.sequence->token(0)] = entry.rows;
    entry.sequence->computed += entry.rows;
    if (entry.sequence->is_complete()) ended.push_back(entry.sequence);
  }
  for (const Sequence* sequence : ended) scheduler.remove(sequence);
  return rows;
}

using Rows = std::map<int32_t, int64_t>;

TEST(Tiers, a_higher_one_takes_the_step_and_leaves_a_share) {
  Scheduler scheduler(limits_of(8));
  scheduler.add(prompt_of(1, 300, kFlex));
  EXPECT_EQ(step(scheduler), (Rows{{1, 64}}));  // alone it has everything
  scheduler.add(prompt_of(2, 100, kPriority));
  scheduler.add(prompt_of(3, 100, kDefault));
  EXPECT_EQ(step(scheduler), (Rows{{2, 56}, {1, 8}}));
  EXPECT_EQ(step(scheduler), (Rows{{2, 44}, {3, 12}, {1, 8}}));  // what the highest leaves goes down in order
  EXPECT_EQ(step(scheduler), (Rows{{3, 56}, {1, 8}}));
  EXPECT_EQ(step(scheduler), (Rows{{3, 32}, {1, 32}}));
  EXPECT_EQ(step(scheduler), (Rows{{1, 64}}));
}

TEST(Tiers, one_that_waits_gets_its_share_too) {
  Scheduler scheduler(limits_of(8));
  scheduler.add(prompt_of(1, 1000, kPriority));
  scheduler.add(prompt_of(2, 100, kFlex));
  EXPECT_EQ(step(scheduler), (Rows{{1, 56}, {2, 8}}));
}

TEST(Tiers, no_row_is_held_back_for_one_that_finds_no_place) {
  Scheduler scheduler(limits_of(1));
  scheduler.add(prompt_of(1, 100, kPriority));
  scheduler.add(prompt_of(2, 100, kFlex));
  EXPECT_EQ(step(scheduler), (Rows{{1, 64}}));
}

TEST(Tiers, a_stream_of_priority_requests_does_not_starve_a_flex_one) {
  Scheduler scheduler(limits_of(2));
  scheduler.add(prompt_of(1, 400, kFlex));
  int64_t steps = 0, computed = 0;
  for (int32_t id = 2; computed < 400; ++steps) {
    ASSERT_LT(steps, 200);
    while (scheduler.waiting() < 4) scheduler.add(prompt_of(id++, 40, kPriority));
    computed += step(scheduler)[1];
  }
  EXPECT_GT(steps, 6);
}

SamplingParams greedy(int64_t max_tokens, int priority = kDefault) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  params.priority = priority;
  return params;
}

ErrorCode end_of(Generation& generation) {
  try {
    read_all(generation);
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "it ended well";
  return ErrorCode::internal;
}

void wait_until(const std::function<bool()>& is_so) {
  while (!is_so()) std::this_thread::yield();
}

TEST(Queue, a_request_that_finds_no_place_in_time_ends_as_one_that_found_the_queue_full) {
  EngineLimits limits = small_limits();
  limits.scheduler.max_sequences = 1;
  const auto model = fake_model(limits);
  std::atomic<bool> is_open = false;
  model->on_forward = [&](const Batch&) { wait_until([&] { return is_open.load(); }); };
  const auto engine = fake_engine(model, nullptr, {.max_queue_ms = 30});
  Generation first = engine->submit({1}, greedy(3));
  const std::optional<Delta> place = first.next();  // empty: it has its place, and the step has not ended
  ASSERT_TRUE(place);
  EXPECT_TRUE(place->tokens.empty());
  EXPECT_EQ(place->finish, FinishReason::none);
  Generation second = engine->submit({2}, greedy(3));
  const auto submitted = std::chrono::steady_clock::now();
  wait_until([&] { return std::chrono::steady_clock::now() - submitted > std::chrono::milliseconds(40); });
  is_open = true;
  EXPECT_EQ(end_of(second), ErrorCode::queue_full);
  EXPECT_EQ(ids_of(read_all(first)), expected_ids(*model, {1}, 3));
  EXPECT_EQ(engine->stats().queued, 0);
}

TEST(Readers, one_that_does_not_read_holds_up_itself_only) {
  const auto model = fake_model();
  const auto engine = fake_engine(model, nullptr, {.stream_buffer = 10});
  Generation slow = engine->submit({1}, greedy(50));
  for (int32_t i = 0; i < 6; ++i) {
    Generation other = engine->submit({2, i}, greedy(60));
    EXPECT_EQ(ids_of(read_all(other)), expected_ids(*model, {2, i}, 60));
  }
  Delta all = *slow.next();
  EXPECT_LE(all.tokens.size(), 10u);
  EXPECT_EQ(all.finish, FinishReason::none);
  all.append(read_all(slow));
  EXPECT_EQ(ids_of(all), expected_ids(*model, {1}, 50));
  EXPECT_EQ(model->violations, 0);
}

TEST(Readers, one_that_stands_still_gives_its_place_away_and_goes_on_later) {
  EngineLimits limits = small_limits();
  limits.scheduler.max_sequences = 1;
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model, nullptr, {.stream_buffer = 10});
  Generation slow = engine->submit({1}, greedy(50));
  Generation other = engine->submit({2}, greedy(50));
  EXPECT_EQ(ids_of(read_all(other)), expected_ids(*model, {2}, 50));
  EXPECT_EQ(ids_of(read_all(slow)), expected_ids(*model, {1}, 50));
  EXPECT_GE(engine->stats().preemptions, 1);
}

TEST(Readers, one_that_never_reads_is_cancelled_and_its_memory_freed) {
  const auto model = fake_model();
  const auto engine = fake_engine(model, nullptr, {.stream_buffer = 10, .idle_stream_ms = 20});
  Generation left = engine->submit({1}, greedy(90));
  wait_until([&] { return engine->stats().generated_tokens > 0 && engine->stats().running == 0; });
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.blocks_free[kFull], stats.blocks_total[kFull]);
  EXPECT_EQ(stats.blocks_free[kSliding], stats.blocks_total[kSliding]);
  const Delta all = read_all(left);
  EXPECT_EQ(all.finish, FinishReason::cancelled);
  EXPECT_EQ(all.tokens.size(), 10u);
}

}  // namespace
}  // namespace gemmantle
