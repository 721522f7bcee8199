// Reuse of kept blocks: what is found, what is computed, who waits for whom.
#include <gtest/gtest.h>

#include <numeric>

#include "engine/fake_runner.h"
#include "engine/prefix_tree.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

constexpr int64_t kBlock = 4;

SchedulerLimits limits_of(int64_t full_blocks = 100, int64_t sliding_blocks = 100) {
  SchedulerLimits limits;
  limits.max_rows = 8;
  limits.max_logit_rows = 8;
  limits.max_sequences = 3;
  limits.block_size = kBlock;
  limits.window = 6;
  limits.blocks[kSliding] = sliding_blocks;
  limits.blocks[kFull] = full_blocks;
  return limits;
}

std::vector<int32_t> ids_from(int32_t first, int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::unique_ptr<Sequence> sequence_of(std::vector<int32_t> prompt, SamplingParams params = {}) {
  return std::make_unique<Sequence>(std::move(prompt), params, std::vector<int32_t>{}, 1000, nullptr,
                                    std::make_shared<Mailbox>());
}

// One step as the engine does it; how many rows each sequence had.
std::vector<int64_t> step(Scheduler& scheduler) {
  std::vector<int64_t> rows;
  for (const ScheduledRows& entry : scheduler.plan()) {
    rows.push_back(entry.rows);
    entry.sequence->computed += entry.rows;
    SampledToken token;
    token.id = 1;
    if (entry.sequence->draws_at(entry.sequence->computed - 1)) entry.sequence->accept(token);
  }
  return rows;
}

using Rows = std::vector<int64_t>;

TEST(PrefixTree, a_node_is_found_by_its_tokens_and_everything_before_them) {
  PrefixTree tree(2, {4, 4});
  const std::vector<int32_t> a = {1, 2}, b = {3, 4};
  const int32_t first = tree.hold(PrefixTree::kNone, a);
  const int32_t second = tree.hold(first, b);
  EXPECT_EQ(tree.find(PrefixTree::kNone, a), first);
  EXPECT_EQ(tree.find(first, b), second);
  EXPECT_EQ(tree.find(PrefixTree::kNone, b), PrefixTree::kNone);
  EXPECT_EQ(tree.find(first, a), PrefixTree::kNone);
  EXPECT_EQ(tree.hold(first, b), second);
  EXPECT_EQ(tree.size(), 2);
}

TEST(PrefixTree, a_chain_whose_beginning_was_lost_is_never_found_again) {
  PrefixTree tree(2, {4, 4});
  const std::vector<int32_t> a = {1, 2}, b = {3, 4};
  const int32_t first = tree.hold(PrefixTree::kNone, a);
  const int32_t second = tree.hold(first, b);
  tree.store(first, kFull, 0);
  tree.store(second, kFull, 1);
  tree.release(first);
  tree.release(second);
  EXPECT_EQ(tree.size(), 2);
  tree.forget(kFull, 0);
  EXPECT_EQ(tree.size(), 1);
  const int32_t again = tree.hold(PrefixTree::kNone, a);
  EXPECT_EQ(tree.find(again, b), PrefixTree::kNone);
  tree.forget(kFull, 1);
  tree.forget(kFull, 1);
  EXPECT_EQ(tree.size(), 1);
  tree.release(again);
  EXPECT_EQ(tree.size(), 0);
}

TEST(Scheduler, a_prompt_that_was_computed_is_found_up_to_its_last_full_block) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(ids_from(0, 18)));
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(step(scheduler), Rows{2});
  scheduler.remove(scheduler.sequences().front());
  EXPECT_EQ(scheduler.pool(kFull).available(), 100);
  EXPECT_EQ(scheduler.pool(kFull).kept(), 4);

  scheduler.add(sequence_of(ids_from(0, 18)));
  Sequence* again = scheduler.sequences().front();
  EXPECT_EQ(step(scheduler), Rows{2});
  EXPECT_EQ(again->cached, 16);
  // Of the sliding group only what the row at 16 sees: positions 11 to 15.
  EXPECT_EQ(again->blocks[kSliding].table[0], -1);
  EXPECT_EQ(again->blocks[kSliding].table[1], -1);
  EXPECT_GE(again->blocks[kSliding].table[2], 0);
  scheduler.remove(again);

  auto other = ids_from(0, 18);
  other[9] = 99;  // in the third block
  scheduler.add(sequence_of(other));
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(scheduler.sequences().front()->cached, 8);
}

TEST(Scheduler, one_row_at_least_is_computed) {
  Scheduler scheduler(limits_of());
  for (const int64_t rows : {8, 4}) {
    scheduler.add(sequence_of(ids_from(0, 8)));
    EXPECT_EQ(step(scheduler), Rows{rows});
    scheduler.remove(scheduler.sequences().front());
  }
}

TEST(Scheduler, choices_of_one_prompt_wait_for_the_first_and_share_its_blocks) {
  Scheduler scheduler(limits_of());
  for (int i = 0; i < 3; ++i) scheduler.add(sequence_of(ids_from(0, 18)));
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(step(scheduler), (Rows{2, 2, 2}));
  const std::vector<Sequence*> all = scheduler.sequences();
  for (const size_t block : {0u, 1u, 2u, 3u}) {
    EXPECT_EQ(scheduler.pool(kFull).holders(all[0]->blocks[kFull].table[block]), 3);
  }
  EXPECT_NE(all[0]->blocks[kFull].table[4], all[1]->blocks[kFull].table[4]);
  EXPECT_EQ(scheduler.cached_tokens(), 32);
}

TEST(Scheduler, who_shares_nothing_goes_before_who_waits_for_a_prefix) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(ids_from(0, 5)));
  scheduler.add(sequence_of(ids_from(0, 6)));
  scheduler.add(sequence_of({77}));
  EXPECT_EQ(step(scheduler), (Rows{5, 1}));
  EXPECT_EQ(step(scheduler), (Rows{1, 1, 2}));
}

TEST(Scheduler, who_waits_goes_on_alone_when_the_other_is_cancelled) {
  Scheduler scheduler(limits_of());
  for (int i = 0; i < 2; ++i) scheduler.add(sequence_of(ids_from(0, 30)));
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(scheduler.waiting(), 1);
  scheduler.remove(scheduler.sequences().front());
  EXPECT_EQ(step(scheduler), Rows{8});
  EXPECT_EQ(scheduler.sequences().front()->computed, 16);
  EXPECT_EQ(scheduler.sequences().front()->cached, 8);
}

TEST(Scheduler, the_prompt_and_the_answer_are_found_by_the_next_turn) {
  Scheduler scheduler(limits_of());
  scheduler.add(sequence_of(ids_from(0, 6)));
  for (int i = 0; i < 7; ++i) step(scheduler);
  const Sequence& sequence = *scheduler.sequences().front();
  std::vector<int32_t> turn(sequence.tokens().begin(), sequence.tokens().end());
  ASSERT_EQ(turn.size(), 13u);
  scheduler.remove(&sequence);
  turn.push_back(50);
  scheduler.add(sequence_of(turn));
  EXPECT_EQ(step(scheduler), Rows{2});
  EXPECT_EQ(scheduler.sequences().front()->cached, 12);
}

TEST(Scheduler, kept_blocks_go_when_others_need_them_the_oldest_first) {
  Scheduler scheduler(limits_of(8, 100));
  const auto visit = [&](int32_t first) {
    scheduler.add(sequence_of(ids_from(first, 9)));
    Sequence* sequence = scheduler.sequences().front();
    while (sequence->pending() != 1 || sequence->output_size() == 0) step(scheduler);
    const int64_t cached = sequence->cached;
    scheduler.remove(sequence);
    return cached;
  };
  EXPECT_EQ(visit(0), 0);  // two blocks each are kept
  EXPECT_EQ(visit(100), 0);
  EXPECT_EQ(visit(200), 0);
  EXPECT_EQ(visit(300), 0);  // needs a third block: the last of the first prompt goes
  EXPECT_EQ(visit(100), 8);
  EXPECT_EQ(visit(0), 4);
  EXPECT_LE(scheduler.prefixes().size(), 108);
}

TEST(Scheduler, a_hit_needs_the_window_before_it) {
  Scheduler scheduler(limits_of(100, 7));
  scheduler.add(sequence_of(ids_from(0, 60)));
  while (scheduler.sequences().front()->pending() > 1) step(scheduler);
  scheduler.remove(scheduler.sequences().front());
  // The sliding blocks of the first half were given to the second: a prompt that ends there finds nothing.
  scheduler.add(sequence_of(ids_from(0, 13)));
  step(scheduler);
  EXPECT_EQ(scheduler.sequences().front()->cached, 0);
  scheduler.remove(scheduler.sequences().front());
}

TEST(Scheduler, positions_whose_logits_are_wanted_are_computed) {
  Scheduler scheduler(limits_of());
  const auto visit = [&](int64_t start) {
    SamplingParams params;
    params.max_tokens = 0;
    params.prompt_logprobs = start < 0 ? -1 : 0;
    params.prompt_logprobs_start = std::max<int64_t>(0, start);
    scheduler.add(sequence_of(ids_from(0, 18), params));
    Sequence* sequence = scheduler.sequences().front();
    int64_t rows = 0;
    while (!sequence->is_complete()) {
      const Rows step_rows = step(scheduler);
      rows += std::accumulate(step_rows.begin(), step_rows.end(), int64_t{0});
    }
    scheduler.remove(sequence);
    return rows;
  };
  EXPECT_EQ(visit(-1), 18);
  EXPECT_EQ(visit(-1), 2);
  EXPECT_EQ(visit(0), 18);
  EXPECT_EQ(visit(1), 18);
  EXPECT_EQ(visit(5), 14);
  EXPECT_EQ(visit(8), 14);
  EXPECT_EQ(visit(9), 10);
  EXPECT_EQ(visit(18), 2);
}

TEST(Scheduler, a_higher_priority_is_admitted_first_and_nobody_is_overtaken_for_ever) {
  Scheduler scheduler(limits_of());
  const auto add = [&](int priority, int32_t id) {
    SamplingParams params;
    params.max_tokens = 0;
    params.priority = priority;
    scheduler.add(sequence_of({id}, params));
  };
  const auto order = [&] {
    std::vector<int32_t> ids;
    for (const Sequence* sequence : scheduler.sequences()) ids.push_back(sequence->token(0));
    return ids;
  };
  add(0, 1);
  add(-1, 2);
  add(1, 3);
  add(0, 4);
  EXPECT_EQ(order(), (std::vector<int32_t>{3, 1, 4, 2}));
  for (int32_t i = 0; i < 200; ++i) add(1, 100 + i);
  const std::vector<int32_t> crowd = order();
  const auto flex = std::find(crowd.begin(), crowd.end(), 2) - crowd.begin();
  EXPECT_GT(flex, 20);
  EXPECT_LT(flex, 40);
}

TEST(Engine, choices_of_a_request_pay_for_one_prompt) {
  EngineLimits limits = small_limits();
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model);
  const std::vector<int32_t> prompt = ids_from(0, 50);
  std::vector<Generation> choices;
  SamplingParams params;
  params.max_tokens = 5;
  params.temperature = 0;
  for (uint32_t choice = 0; choice < 4; ++choice) {
    params.choice = choice;
    choices.push_back(engine->submit(prompt, params));
  }
  int64_t cached = 0;
  for (Generation& choice : choices) {
    const Delta all = read_all(choice);
    EXPECT_EQ(ids_of(all), expected_ids(*model, prompt, 5));
    ASSERT_TRUE(all.usage);
    EXPECT_GE(all.usage->queue_ms, 0);
    cached += all.usage->cached;
  }
  EXPECT_EQ(cached, 3 * 48);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prompt_tokens, 50 + 3 * 2);
  EXPECT_EQ(stats.cached_tokens, cached);
  EXPECT_EQ(stats.decode_rows, 4 * 4);
  EXPECT_EQ(stats.repeated_rows, 0);
  EXPECT_EQ(stats.logit_rows, 4 * 5);
  EXPECT_EQ(stats.time_to_first_token.count(), 4);
  EXPECT_EQ(stats.time_between_tokens.count(), 16);
  EXPECT_EQ(stats.queue_time.count(), 4);
  EXPECT_GT(stats.blocks_kept[kFull], 0);
  EXPECT_EQ(stats.blocks_free[kFull], stats.blocks_total[kFull]);
  EXPECT_EQ(model->violations, 0);
}

TEST(Engine, a_shared_prefix_is_computed_once_for_many_requests) {
  EngineLimits limits = small_limits();
  limits.max_context = 2100;
  limits.scheduler.max_rows = 64;
  limits.scheduler.max_sequences = 8;
  limits.scheduler.blocks[kSliding] = 8 * 24;
  limits.scheduler.blocks[kFull] = 2 * 525;
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model);
  std::vector<Generation> requests;
  SamplingParams params;
  params.max_tokens = 2;
  params.temperature = 0;
  int64_t tails = 0;
  for (int32_t i = 0; i < 32; ++i) {
    std::vector<int32_t> prompt(2000, 7);
    for (int32_t j = 0; j <= i % 5; ++j) prompt.push_back(i);
    tails += i % 5 + 1;
    requests.push_back(engine->submit(prompt, params));
  }
  for (Generation& request : requests) read_all(request);
  EXPECT_LE(engine->stats().prompt_tokens, 2000 * 11 / 10 + tails);
  EXPECT_EQ(model->violations, 0);
}

TEST(Engine, the_last_logits_may_start_from_kept_blocks_or_not) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  const std::vector<int32_t> ids = ids_from(0, 50);
  const auto last = [&](bool reuse) {
    LogitsRequest request = engine->logits(ids, {}, true, reuse);
    read_all(request.generation);
    return std::vector<float>(request.values.get(), request.values.get() + request.cols);
  };
  const std::vector<float> first = last(false);
  EXPECT_EQ(last(false), first);
  EXPECT_EQ(engine->stats().prompt_tokens, 100);
  EXPECT_EQ(last(true), first);
  EXPECT_EQ(engine->stats().prompt_tokens, 102);
}

}  // namespace
}  // namespace gemmantle
