// Many at once, counted in blocks: how much memory a crowd takes, and that nothing of it is left behind.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "engine/fake_runner.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

// 64 sequences of 4,096 tokens with the window of E2B (512) and blocks of 16. Numbers only: the scheduler knows no
// model, so nothing of the true size is computed or stored.
TEST(Crowd, sliding_blocks_are_bounded_by_the_window_however_long_the_sequences) {
  constexpr int64_t kSequences = 64, kTokens = 4096, kPrompt = 3600;
  SchedulerLimits limits;
  limits.max_rows = 512;
  limits.max_logit_rows = 512;
  limits.max_sequences = kSequences;
  limits.block_size = 16;
  limits.window = 512;
  limits.blocks[kSliding] = kSequences * (512 / 16 + 1) + 512 / 16 + 2 * kSequences;
  limits.blocks[kFull] = kSequences * kTokens / 16;
  Scheduler scheduler(limits);
  std::mt19937 rng(64);
  for (int64_t s = 0; s < kSequences; ++s) {
    std::vector<int32_t> prompt(kPrompt);
    for (int32_t& id : prompt) id = static_cast<int32_t>(rng() % 1000);
    SamplingParams params;
    params.temperature = 0;
    params.ignore_eos = true;
    scheduler.add(std::make_unique<Sequence>(std::move(prompt), params, std::vector<int32_t>{}, kTokens, nullptr,
                                             std::make_shared<Mailbox>()));
  }
  const int64_t window_blocks = (limits.window + limits.block_size - 1) / limits.block_size + 1;
  int64_t longest = 0, most_running = 0;
  while (!scheduler.is_empty()) {
    const std::vector<ScheduledRows> plan = scheduler.plan();
    ASSERT_FALSE(plan.empty());
    most_running = std::max(most_running, scheduler.running());
    std::map<const Sequence*, int64_t> chunk;
    for (const ScheduledRows& entry : plan) chunk[entry.sequence] = entry.rows;
    for (const Sequence* sequence : scheduler.sequences()) {
      const Sequence::Blocks& held = sequence->blocks[kSliding];
      const int64_t in_work = (chunk[sequence] + limits.block_size - 1) / limits.block_size;
      ASSERT_LE(static_cast<int64_t>(held.table.size()) - held.first, window_blocks + in_work);
      ASSERT_LE(static_cast<int64_t>(sequence->blocks[kFull].table.size()), kTokens / limits.block_size);
      longest = std::max(longest, sequence->size());
    }
    std::vector<Sequence*> ended;
    for (const ScheduledRows& entry : plan) {
      entry.sequence->computed += entry.rows;
      if (entry.sequence->pending() > 0) continue;
      SampledToken token;
      token.id = 7;
      if (entry.sequence->accept(token).finish != FinishReason::none) ended.push_back(entry.sequence);
    }
    for (const Sequence* sequence : ended) scheduler.remove(sequence);
  }
  EXPECT_EQ(longest, kTokens - 1);
  EXPECT_EQ(most_running, kSequences);
  EXPECT_EQ(scheduler.preemptions(), 0);
  for (int g = 0; g < kKvGroups; ++g) EXPECT_EQ(scheduler.pool(g).available(), scheduler.pool(g).total());
}

TEST(Crowd, a_storm_of_cancellations_leaves_no_block_referenced) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  constexpr unsigned kSeed = 1000;
  SCOPED_TRACE(::testing::Message() << "seeds from " << kSeed);
  std::vector<std::thread> threads;
  std::atomic<int64_t> cancelled = 0, whole = 0;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 rng(kSeed + t);
      for (int i = 0; i < 250; ++i) {
        std::vector<int32_t> prompt(1 + rng() % 60, static_cast<int32_t>(rng() % 3));
        SamplingParams params;
        params.temperature = 0;
        params.max_tokens = 30;
        params.constrained = rng() % 5 == 0;
        Generation generation = engine->submit(std::move(prompt), params);
        // In the queue, while a mask is awaited, in prefill, between any two tokens, behind the last one.
        const uint64_t after = rng() % 40;
        uint64_t seen = 0;
        while (seen < after && !generation.is_over()) {
          const std::optional<Delta> delta = generation.next(params.constrained ? 0.001 : 1);
          if (params.constrained) generation.allow(std::nullopt);
          seen += delta ? delta->tokens.size() : 1;
        }
        if (rng() % 2 == 0) continue;  // dropped
        generation.cancel();
        const Delta last = read_all(generation);
        ++(last.finish == FinishReason::cancelled ? cancelled : whole);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EngineStats stats = engine->stats();
  while (stats.running + stats.queued > 0) {
    std::this_thread::yield();
    stats = engine->stats();
  }
  for (int g = 0; g < kKvGroups; ++g) EXPECT_EQ(stats.blocks_free[g], stats.blocks_total[g]);
  EXPECT_GT(cancelled, 20);
  EXPECT_EQ(model->violations, 0);
}

}  // namespace
}  // namespace gemmantle
