// Random work on pools that are too small for it: submit, share, cancel, preempt, fail, finish.
//
// GEMMANTLE_RANDOM_STEPS, GEMMANTLE_RANDOM_SECONDS and GEMMANTLE_RANDOM_SEED make the runs longer and other ones.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "engine/batch_builder.h"
#include "engine/fake_runner.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

int64_t setting(const char* name, int64_t usual) {
  const char* value = std::getenv(name);
  return value == nullptr ? usual : std::atoll(value);
}

EngineLimits tiny_limits() {
  EngineLimits limits;
  limits.vocabulary = 16;
  limits.max_context = 64;
  limits.max_queue = 64;
  limits.scheduler.max_rows = 8;
  limits.scheduler.max_logit_rows = 5;
  limits.scheduler.max_sequences = 4;
  limits.scheduler.block_size = 4;
  limits.scheduler.window = 10;
  limits.scheduler.blocks[kSliding] = 9;
  limits.scheduler.blocks[kFull] = 19;
  return limits;
}

// Prompts that often begin alike, and often do not.
class Prompts {
 public:
  explicit Prompts(unsigned seed) : rng_(seed) {}
  int64_t upto(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
  std::vector<int32_t> next() {
    std::vector<int32_t> ids;
    for (int64_t stem = upto(4), n = upto(40); n > 0; --n) ids.push_back(static_cast<int32_t>((stem * 5 + n) % 16));
    std::reverse(ids.begin(), ids.end());
    if (upto(4) == 0 && !ids.empty()) ids[static_cast<size_t>(upto(static_cast<int64_t>(ids.size())))] = 3;
    for (int64_t n = 1 + upto(6); n > 0; --n) ids.push_back(static_cast<int32_t>(upto(16)));
    return ids;
  }

 private:
  std::mt19937 rng_;
};

class Simulation {
 public:
  explicit Simulation(unsigned seed)
      : model_(fake_model(tiny_limits())),
        limits_(model_->limits.scheduler),
        scheduler_(limits_),
        builder_(limits_),
        runner_(model_),
        prompts_(seed) {}

  void run(int64_t steps) {
    for (now_ = 0; now_ < steps || !scheduler_.is_empty(); ++now_) {
      if (now_ < steps) {
        if (scheduler_.waiting() < 12 && upto(3) == 0) submit();
        if (upto(25) == 0) cancel();
      }
      if (!scheduler_.is_empty()) step();
      check_blocks();
      if (::testing::Test::HasFailure()) return;
      ASSERT_LT(now_, steps + 5000);
    }
    for (int g = 0; g < kKvGroups; ++g) EXPECT_EQ(scheduler_.pool(g).available(), scheduler_.pool(g).total());
    EXPECT_LE(scheduler_.prefixes().size(), scheduler_.pool(kFull).total() + scheduler_.pool(kSliding).total());
    EXPECT_EQ(model_->violations, 0);
  }

  int64_t finished = 0, cancelled = 0, failed = 0;
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Known {
    std::vector<int32_t> prompt;
    int64_t submitted = 0, number = 0;
  };

  int64_t upto(int64_t n) { return prompts_.upto(n); }

  void submit() {
    const std::vector<int32_t> prompt = prompts_.next();
    SamplingParams params;
    params.temperature = 0;
    params.priority = upto(6) == 0 ? static_cast<int>(upto(3)) - 1 : 0;
    params.max_tokens = upto(16);
    if (upto(4) == 0) {
      params.prompt_logprobs = 0;
      params.prompt_logprobs_start = upto(static_cast<int64_t>(prompt.size()) + 2);
    }
    const int64_t choices = upto(5) == 0 ? 3 : 1;
    for (int64_t i = 0; i < choices; ++i) {
      auto sequence = std::make_unique<Sequence>(prompt, params, std::vector<int32_t>{}, model_->limits.max_context,
                                                 nullptr, std::make_shared<Mailbox>());
      if (params.prompt_logprobs < 0 && upto(8) == 0) sequence->reuse = false;
      known_[sequence.get()] = {prompt, now_, ++submitted_};
      scheduler_.add(std::move(sequence));
    }
  }

  void remove(Sequence& sequence) {
    known_.erase(&sequence);
    ASSERT_TRUE(scheduler_.remove(&sequence));
  }

  void cancel() {
    const std::vector<Sequence*> all = scheduler_.sequences();
    if (all.empty()) return;
    ++cancelled;
    remove(*all[static_cast<size_t>(upto(static_cast<int64_t>(all.size())))]);
  }

  void step() {
    std::set<const Sequence*> new_before;
    for (const Sequence* sequence : scheduler_.sequences()) {
      if (!sequence->was_admitted) new_before.insert(sequence);
    }
    const std::vector<ScheduledRows> plan = scheduler_.plan();
    ASSERT_FALSE(plan.empty());
    check_order(new_before);
    const Batch& batch = builder_.build(plan);
    ASSERT_LE(batch.rows(), limits_.max_rows);
    check_slots(batch, plan);
    if (upto(200) == 0) {  // the step fails
      failed += static_cast<int64_t>(plan.size());
      for (const ScheduledRows& entry : plan) remove(*entry.sequence);
      return;
    }
    std::vector<SampledToken> sampled(builder_.sample_rows().size());
    runner_.forward(batch, builder_.sample_rows(), sampled);
    const std::vector<BatchBuilder::Wanted> wanted = builder_.wanted();
    std::vector<Sequence*> ended;
    for (const ScheduledRows& entry : plan) {
      entry.sequence->computed += entry.rows;
      if (entry.sequence->is_complete()) ended.push_back(entry.sequence);
    }
    for (size_t r = 0; r < sampled.size(); ++r) {
      Sequence& sequence = *wanted[r].sequence;
      if (wanted[r].scores) sequence.set_score(wanted[r].position, sampled[r]);
      if (wanted[r].draws && sequence.accept(sampled[r]).finish != FinishReason::none) ended.push_back(&sequence);
    }
    for (Sequence* sequence : ended) finish(*sequence);
  }

  void finish(Sequence& sequence) {
    const Known& known = known_.at(&sequence);
    EXPECT_LT(now_ - known.submitted, 2000) << "a request starves";
    const int64_t n =
        std::min(sequence.params().max_tokens, model_->limits.max_context - static_cast<int64_t>(known.prompt.size()));
    const std::vector<int32_t> output(sequence.tokens().begin() + sequence.prompt_size(), sequence.tokens().end());
    EXPECT_EQ(output, expected_ids(*model_, known.prompt, n)) << "request " << known.number;
    if (sequence.params().prompt_logprobs >= 0) {
      const PromptLogprobs scores = sequence.take_prompt_logprobs();
      for (size_t i = 0; i < scores.size(); ++i) {
        EXPECT_EQ(scores[i].has_value(), i > 0 && static_cast<int64_t>(i) >= sequence.params().prompt_logprobs_start);
        if (!scores[i]) continue;
        EXPECT_EQ(scores[i]->id, known.prompt[i]);
      }
    }
    ++finished;
    remove(sequence);
  }

  // Who was admitted in this step has no older one of its priority waiting, but for one that waits for a prefix.
  void check_order(const std::set<const Sequence*>& new_before) {
    for (const Sequence* admitted : new_before) {
      if (!admitted->was_admitted) continue;
      for (const Sequence* waiting : new_before) {
        if (waiting->was_admitted || waiting->params().priority != admitted->params().priority) continue;
        if (known_.at(waiting).number > known_.at(admitted).number) continue;
        const auto begins_alike = [&](const Sequence* other) {
          return other->was_admitted && other->size() >= 4 && waiting->size() > 4 &&
                 std::equal(other->tokens().begin(), other->tokens().begin() + 4, waiting->tokens().begin());
        };
        const std::vector<Sequence*> all = scheduler_.sequences();
        EXPECT_TRUE(std::any_of(all.begin(), all.end(), begins_alike)) << "an older request was passed over";
      }
    }
  }

  // Rows are written to slots of their own, in blocks that nobody else holds.
  void check_slots(const Batch& batch, const std::vector<ScheduledRows>& plan) {
    for (int g = 0; g < kKvGroups; ++g) {
      const Batch::Group& group = batch.groups[g];
      const std::set<int32_t> slots(group.slots.begin(), group.slots.end());
      ASSERT_EQ(slots.size(), batch.ids.size());
      for (const int32_t slot : slots) {
        ASSERT_EQ(scheduler_.pool(g).holders(slot / static_cast<int32_t>(limits_.block_size)), 1);
      }
    }
    for (const ScheduledRows& entry : plan) {
      const Sequence::Blocks& held = entry.sequence->blocks[kSliding];
      const int64_t blocks = static_cast<int64_t>(held.table.size()) - held.first;
      ASSERT_LE(blocks, Scheduler::blocks_needed(limits_, kSliding, limits_.window + 100, entry.rows));
    }
  }

  // The pool counts exactly the holders there are.
  void check_blocks() {
    for (int g = 0; g < kKvGroups; ++g) {
      std::map<int32_t, int32_t> holders;
      for (const Sequence* sequence : scheduler_.sequences()) {
        for (const int32_t block : sequence->blocks[static_cast<size_t>(g)].table) {
          if (block >= 0) ++holders[block];
        }
      }
      const BlockPool& pool = scheduler_.pool(g);
      ASSERT_EQ(pool.available(), pool.total() - static_cast<int64_t>(holders.size()));
      for (const auto& [block, count] : holders) ASSERT_EQ(pool.holders(block), count);
    }
  }

  std::shared_ptr<FakeModel> model_;
  SchedulerLimits limits_;
  Scheduler scheduler_;
  BatchBuilder builder_;
  FakeRunner runner_;
  Prompts prompts_;
  std::map<const Sequence*, Known> known_;
  int64_t now_ = 0, submitted_ = 0;
};

TEST(Random, steps_keep_every_invariant) {
  const auto seed = static_cast<unsigned>(setting("GEMMANTLE_RANDOM_SEED", 20260));
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  Simulation simulation(seed);
  simulation.run(setting("GEMMANTLE_RANDOM_STEPS", 100000));
  std::printf("seed %u: %lld requests finished, %lld cancelled, %lld failed, %lld preemptions, %lld tokens found\n",
              seed, static_cast<long long>(simulation.finished), static_cast<long long>(simulation.cancelled),
              static_cast<long long>(simulation.failed), static_cast<long long>(simulation.scheduler().preemptions()),
              static_cast<long long>(simulation.scheduler().cached_tokens()));
  EXPECT_GT(simulation.finished, 100);
  EXPECT_GT(simulation.cancelled, 10);
  EXPECT_GT(simulation.failed, 0);
  EXPECT_GT(simulation.scheduler().preemptions(), 0);
  EXPECT_GT(simulation.scheduler().cached_tokens(), 1000);
}

TEST(Random, threads_get_what_each_request_gives_alone) {
  const auto seed = static_cast<unsigned>(setting("GEMMANTLE_RANDOM_SEED", 20261));
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(setting("GEMMANTLE_RANDOM_SECONDS", 1));
  const auto model = fake_model(tiny_limits());
  const auto engine = fake_engine(model);
  std::atomic<int> finished{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Prompts prompts(seed + t);
      while (std::chrono::steady_clock::now() < end) {
        const std::vector<int32_t> prompt = prompts.next();
        SamplingParams params;
        params.temperature = 0;
        params.max_tokens = 1 + prompts.upto(16);
        params.priority = static_cast<int>(prompts.upto(3)) - 1;
        std::vector<Generation> choices;
        for (int64_t i = 1 + prompts.upto(3); i > 0; --i) choices.push_back(engine->submit(prompt, params));
        for (Generation& choice : choices) {
          switch (prompts.upto(6)) {
            case 0: choice.cancel(); break;
            case 1:
              choice.next();
              choice.cancel();
              break;
            case 2: continue;  // dropped
            default:
              EXPECT_EQ(ids_of(read_all(choice)), expected_ids(*model, prompt, params.max_tokens));
              ++finished;
              continue;
          }
          read_all(choice);
        }
        engine->stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EngineStats stats = engine->stats();
  while (stats.running + stats.queued > 0) {
    std::this_thread::yield();
    stats = engine->stats();
  }
  EXPECT_GT(finished, 10);
  EXPECT_EQ(model->violations, 0);
  for (int g = 0; g < kKvGroups; ++g) EXPECT_EQ(stats.blocks_free[g], stats.blocks_total[g]);
}

}  // namespace
}  // namespace gemmantle
