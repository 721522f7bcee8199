#include "engine/engine.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "engine/fake_runner.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

SamplingParams greedy(int64_t max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  return params;
}

ErrorCode code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorCode::internal;
}

// Holds the worker inside a step until it is opened.
class Gate {
 public:
  void wait() {
    std::unique_lock lock(mutex_);
    is_reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_; });
  }
  void await_reached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_reached_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_reached_ = false, is_open_ = false;
};

std::vector<int32_t> random_prompt(std::mt19937& rng, int64_t most) {
  std::vector<int32_t> ids(1 + rng() % static_cast<unsigned>(most));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 64);
  return ids;
}

TEST(Engine, a_prompt_is_continued) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  const std::vector<int32_t> prompt(37, 5);
  Generation generation = engine->submit(prompt, greedy(20));
  const Delta all = read_all(generation);
  EXPECT_EQ(ids_of(all), expected_ids(*model, prompt, 20));
  EXPECT_EQ(all.finish, FinishReason::length);
  ASSERT_TRUE(all.usage);
  EXPECT_EQ(all.usage->prompt, 37);
  EXPECT_EQ(all.usage->completion, 20);
  EXPECT_EQ(model->violations, 0);
  EXPECT_LE(model->most_rows, 16);
}

TEST(Engine, many_requests_from_many_threads_give_what_each_gives_alone) {
  const unsigned seed = 12;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  EngineLimits limits = small_limits();
  limits.scheduler.blocks[kFull] = 30;  // not enough for four: sequences are preempted and computed again
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 rng(seed + t);
      for (int i = 0; i < 12; ++i) {
        const std::vector<int32_t> prompt = random_prompt(rng, 40);
        const auto n = static_cast<int64_t>(1 + rng() % 40);
        Generation generation = engine->submit(prompt, greedy(n));
        if (i % 5 == 4) {
          generation.next();
          generation.cancel();
          read_all(generation);
          continue;
        }
        EXPECT_EQ(ids_of(read_all(generation)), expected_ids(*model, prompt, n));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(model->violations, 0);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.running + stats.queued, 0);
  EXPECT_EQ(stats.blocks_free[kFull], stats.blocks_total[kFull]);
  EXPECT_EQ(stats.blocks_free[kSliding], stats.blocks_total[kSliding]);
}

TEST(Engine, preempted_sequences_go_on_with_the_same_draws) {
  EngineLimits limits = small_limits();
  limits.scheduler.blocks[kFull] = 24;
  SamplingParams params;
  params.seed = 7;
  params.max_tokens = 40;
  params.temperature = 5;
  std::vector<std::vector<int32_t>> alone;
  for (uint32_t choice = 0; choice < 4; ++choice) {
    params.choice = choice;
    const auto engine = fake_engine(fake_model(limits));
    Generation generation = engine->submit({1, 2, 3}, params);
    alone.push_back(ids_of(read_all(generation)));
  }
  const auto engine = fake_engine(fake_model(limits));
  std::vector<Generation> crowd;
  for (uint32_t choice = 0; choice < 4; ++choice) {
    params.choice = choice;
    crowd.push_back(engine->submit({1, 2, 3}, params));
  }
  for (size_t i = 0; i < crowd.size(); ++i) EXPECT_EQ(ids_of(read_all(crowd[i])), alone[i]) << "choice " << i;
  EXPECT_GT(engine->stats().preemptions, 0);
  EXPECT_NE(alone[0], alone[1]);
}

TEST(Engine, an_end_id_is_counted_and_gives_no_text) {
  const auto model = fake_model();
  model->next_id = [](const std::vector<int32_t>& ids) { return static_cast<int32_t>(ids.size() % 8); };
  std::vector<std::string> pieces;
  for (int i = 0; i < 64; ++i) pieces.push_back(str(i, ";"));
  const auto words = std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{}, SpecialIds{});
  EngineOptions options;
  options.eos_ids = {7};
  const auto engine = fake_engine(model, words, options);
  Generation stopped = engine->submit({0, 0, 0, 0}, greedy(-1));
  const Delta all = read_all(stopped);
  EXPECT_EQ(text_of(all), "4;5;6;");
  EXPECT_EQ(ids_of(all), (std::vector<int32_t>{4, 5, 6, 7}));
  EXPECT_EQ(all.usage->completion, 4);
  EXPECT_EQ(all.finish, FinishReason::stop);
  EXPECT_EQ(std::get<int32_t>(all.stop_reason), 7);

  SamplingParams params = greedy(10);
  params.ignore_eos = true;
  Generation ignored = engine->submit({0, 0, 0, 0}, params);
  const Delta further = read_all(ignored);
  EXPECT_EQ(further.finish, FinishReason::length);
  EXPECT_EQ(text_of(further), "4;5;6;7;0;1;2;3;4;5;");

  params = greedy(10);
  params.stop = {"5;6"};
  Generation cut = engine->submit({0, 0, 0, 0}, params);
  const Delta stop = read_all(cut);
  EXPECT_EQ(text_of(stop), "4;");
  EXPECT_EQ(std::get<std::string>(stop.stop_reason), "5;6");

  params = greedy(10);
  params.stop_token_ids = {5};
  Generation by_id = engine->submit({0, 0, 0, 0}, params);
  EXPECT_EQ(text_of(read_all(by_id)), "4;");
  params.include_stop = true;
  Generation with_stop = engine->submit({0, 0, 0, 0}, params);
  EXPECT_EQ(text_of(read_all(with_stop)), "4;5;");

  params = greedy(10);
  params.min_tokens = 6;
  Generation longer = engine->submit({0, 0, 0, 0}, params);
  const Delta late = read_all(longer);
  EXPECT_GT(late.usage->completion, 6);
  EXPECT_EQ(std::count_if(late.tokens.begin(), late.tokens.begin() + 6, [](const TokenInfo& t) { return t.id == 7; }),
            0);
}

TEST(Engine, the_context_is_the_end) {
  const auto engine = fake_engine(fake_model());
  Generation generation = engine->submit(std::vector<int32_t>(90, 1), greedy(-1));
  const Delta all = read_all(generation);
  EXPECT_EQ(all.tokens.size(), 6u);
  EXPECT_EQ(all.finish, FinishReason::length);
  EXPECT_EQ(code_of([&] { engine->submit(std::vector<int32_t>(96, 1), greedy(1)); }), ErrorCode::context_length);
  Generation only_prompt = engine->submit(std::vector<int32_t>(96, 1), greedy(0));
  EXPECT_EQ(read_all(only_prompt).finish, FinishReason::length);
}

TEST(Engine, bad_requests_are_refused_by_name) {
  const auto engine = fake_engine(fake_model());
  const auto param_of = [&](std::vector<int32_t> ids, const SamplingParams& params) -> std::string {
    try {
      engine->submit(std::move(ids), params);
    } catch (const Error& error) {
      return error.param();
    }
    return "none";
  };
  SamplingParams params;
  EXPECT_EQ(param_of({}, params), "prompt");
  EXPECT_EQ(param_of({64}, params), "prompt");
  EXPECT_EQ(param_of({-1}, params), "prompt");
  params.top_p = 2;
  EXPECT_EQ(param_of({1}, params), "top_p");
  params = {};
  params.suppress = {64};
  EXPECT_EQ(param_of({1}, params), "suppress");
  params = {};
  params.stop = {"x"};
  EXPECT_EQ(param_of({1}, params), "stop");  // there is no vocabulary
}

TEST(Engine, suppressing_everything_ends_one_request_only) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  SamplingParams params = greedy(3);
  for (int32_t id = 0; id < 64; ++id) params.suppress.push_back(id);
  Generation nothing = engine->submit({1}, params);
  EXPECT_EQ(code_of([&] { read_all(nothing); }), ErrorCode::invalid_argument);
  Generation other = engine->submit({1}, greedy(3));
  EXPECT_EQ(ids_of(read_all(other)), expected_ids(*model, {1}, 3));
}

TEST(Engine, prompt_log_probabilities_are_those_of_the_next_ids) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  std::vector<int32_t> prompt = {3, 9};
  prompt.push_back(hashed_next(prompt, 64));
  prompt.resize(40, 11);
  SamplingParams params = greedy(2);
  params.prompt_logprobs = 2;
  params.logprobs = 1;
  Generation generation = engine->submit(prompt, params);
  const Delta all = read_all(generation);
  const PromptLogprobs entries = generation.prompt_logprobs();
  ASSERT_EQ(entries.size(), prompt.size());
  EXPECT_FALSE(entries[0]);
  for (size_t i = 1; i < entries.size(); ++i) {
    ASSERT_TRUE(entries[i]) << i;
    EXPECT_EQ(entries[i]->id, prompt[i]);
    EXPECT_EQ(entries[i]->top.size(), 2u);
  }
  EXPECT_EQ(entries[2]->top[0].first, prompt[2]);
  EXPECT_FLOAT_EQ(entries[2]->top[0].second, *entries[2]->logprob);
  EXPECT_GT(*entries[2]->logprob, -0.1);
  ASSERT_EQ(all.tokens.size(), 2u);
  EXPECT_EQ(all.tokens[0].top.size(), 1u);
  EXPECT_TRUE(all.tokens[0].logprob);
}

TEST(Engine, logits_are_the_same_whole_in_chunks_and_between_strangers) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  std::mt19937 rng(5);
  std::vector<int32_t> ids(50);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 64);
  const auto collect = [&](const std::vector<int64_t>& chunks, bool last_only) {
    LogitsRequest request = engine->logits(ids, chunks, last_only);
    read_all(request.generation);
    return std::vector<float>(request.values.get(), request.values.get() + request.rows * request.cols);
  };
  const std::vector<float> whole = collect({}, false);
  ASSERT_EQ(whole.size(), 50u * 64u);
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::vector<int32_t> seen(ids.begin(), ids.begin() + static_cast<int64_t>(i) + 1);
    EXPECT_EQ(whole[i * 64 + static_cast<size_t>(hashed_next(seen, 64))], 10);
  }
  std::vector<Generation> strangers;
  for (int i = 0; i < 3; ++i) strangers.push_back(engine->submit(random_prompt(rng, 30), greedy(30)));
  EXPECT_EQ(collect({}, false), whole);
  EXPECT_EQ(collect(std::vector<int64_t>(50, 1), false), whole);
  EXPECT_EQ(collect({1, 30, 19}, false), whole);
  EXPECT_EQ(collect({49, 1}, true), std::vector<float>(whole.end() - 64, whole.end()));
  EXPECT_EQ(collect({}, true), std::vector<float>(whole.end() - 64, whole.end()));
  EXPECT_EQ(model->violations, 0);
  EXPECT_EQ(code_of([&] { engine->logits(ids, {49}); }), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of([&] { engine->logits(ids, {49, 2}); }), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of([&] { engine->logits(ids, {0, 50}); }), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of([&] { engine->logits({}); }), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of([&] { engine->logits(std::vector<int32_t>(97, 1)); }), ErrorCode::context_length);
}

TEST(Engine, a_failed_step_ends_its_sequences_and_the_engine_lives_on) {
  const auto model = fake_model();
  std::atomic<bool> fails{true};
  model->on_forward = [&](const Batch&) {
    if (fails) throw Error(ErrorCode::corrupt_file, "layer 3 is not finite");
  };
  const auto engine = fake_engine(model);
  Generation first = engine->submit({1}, greedy(3));
  EXPECT_EQ(code_of([&] { read_all(first); }), ErrorCode::corrupt_file);
  EXPECT_EQ(engine->stats().blocks_free[kFull], engine->stats().blocks_total[kFull]);
  fails = false;
  Generation second = engine->submit({1}, greedy(3));
  EXPECT_EQ(ids_of(read_all(second)), expected_ids(*model, {1}, 3));
}

TEST(Engine, cancelling_works_in_the_queue_in_prefill_and_in_decode) {
  const auto model = fake_model();
  Gate gate;
  model->on_forward = [&](const Batch&) { gate.wait(); };
  const auto engine = fake_engine(model);
  std::vector<Generation> generations;
  generations.push_back(engine->submit(std::vector<int32_t>(60, 1), greedy(30)));
  gate.await_reached();  // the first is in its prefill, the others wait
  for (int i = 0; i < 5; ++i) generations.push_back(engine->submit({2}, greedy(30)));
  for (Generation& generation : generations) generation.cancel();
  gate.open();
  for (Generation& generation : generations) EXPECT_EQ(read_all(generation).finish, FinishReason::cancelled);

  model->on_forward = nullptr;
  Generation decoding = engine->submit({3}, greedy(90));
  std::optional<Delta> all = decoding.next();
  ASSERT_TRUE(all);
  decoding.cancel();
  decoding.cancel();
  all->append(read_all(decoding));
  EXPECT_TRUE(all->finish == FinishReason::cancelled || all->finish == FinishReason::length);
  Generation again = engine->submit({3}, greedy(5));
  EXPECT_EQ(ids_of(read_all(again)), expected_ids(*model, {3}, 5));
  EXPECT_EQ(model->violations, 0);
}

TEST(Engine, a_dropped_generation_frees_its_blocks) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  { Generation dropped = engine->submit({1}, greedy(90)); }
  Generation other = engine->submit({2}, greedy(90));
  read_all(other);
  EXPECT_EQ(engine->stats().blocks_free[kFull], engine->stats().blocks_total[kFull]);
}

TEST(Engine, a_full_queue_refuses) {
  EngineLimits limits = small_limits();
  limits.max_queue = 2;
  limits.scheduler.max_sequences = 1;
  const auto model = fake_model(limits);
  Gate gate;
  model->on_forward = [&](const Batch&) { gate.wait(); };
  const auto engine = fake_engine(model);
  std::vector<Generation> generations;
  generations.push_back(engine->submit({1}, greedy(2)));
  gate.await_reached();
  generations.push_back(engine->submit({1}, greedy(2)));
  EXPECT_EQ(code_of([&] {
              generations.push_back(engine->submit({1}, greedy(2)));
              generations.push_back(engine->submit({1}, greedy(2)));
            }),
            ErrorCode::queue_full);
  gate.open();
  for (Generation& generation : generations) EXPECT_EQ(read_all(generation).tokens.size(), 2u);
}

TEST(Engine, closing_ends_what_runs_and_what_waits) {
  const auto model = fake_model();
  Gate gate;
  model->on_forward = [&](const Batch&) { gate.wait(); };
  const auto engine = fake_engine(model);
  std::vector<Generation> generations;
  for (int i = 0; i < 6; ++i) generations.push_back(engine->submit({1}, greedy(50)));
  gate.await_reached();
  std::thread closer([&] { engine->close(); });
  const auto is_closing = [&] {
    try {
      engine->submit({1}, greedy(1));
    } catch (const Error& error) {
      return error.code() == ErrorCode::closed;
    }
    return false;
  };
  while (!is_closing()) std::this_thread::yield();
  gate.open();
  closer.join();
  engine->close();
  for (Generation& generation : generations) {
    EXPECT_EQ(code_of([&] { read_all(generation); }), ErrorCode::closed);
  }
  EXPECT_EQ(code_of([&] { engine->submit({1}, greedy(1)); }), ErrorCode::closed);
  EXPECT_EQ(engine->stats().running, 0);
}

TEST(Engine, a_forked_child_is_refused_and_can_leave) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer does not follow threads over fork()";
#endif
  const auto model = fake_model();
  auto engine = fake_engine(model);
  auto generation = std::make_unique<Generation>(engine->submit({1}, greedy(90)));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    bool refused = true;
    const auto is_refused = [&](const std::function<void()>& call) {
      try {
        call();
        refused = false;
      } catch (const Error& error) {
        refused = refused && error.code() == ErrorCode::forked && error.message().find("spawn") != std::string::npos;
      }
    };
    is_refused([&] { engine->submit({1}, greedy(1)); });
    is_refused([&] { engine->stats(); });
    is_refused([&] { engine->logits({1}); });
    is_refused([&] { generation->next(); });
    engine->close();
    generation->cancel();
    generation.reset();
    engine.reset();
    ::_exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_all(*generation).tokens.size(), 90u);
}

TEST(Engine, a_slow_reader_gets_everything_at_once) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  Generation slow = engine->submit({1}, greedy(40));
  Generation fast = engine->submit({2}, greedy(80));
  read_all(fast);
  const std::optional<Delta> delta = slow.try_next();
  ASSERT_TRUE(delta);
  EXPECT_EQ(ids_of(*delta), expected_ids(*model, {1}, 40));
  EXPECT_EQ(delta->finish, FinishReason::length);
}

}  // namespace
}  // namespace gemmantle
