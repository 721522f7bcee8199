// The hand-in of masks and the budgets of thoughts, from outside the engine.
#include <gtest/gtest.h>

#include <thread>

#include "engine/fake_runner.h"

namespace gemmantle {
namespace {

using namespace gemmantle::testing;

SamplingParams constrained(int64_t max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  params.constrained = true;
  return params;
}

SamplingParams greedy(int64_t max_tokens) {
  SamplingParams params = constrained(max_tokens);
  params.constrained = false;
  return params;
}

std::vector<uint32_t> only(std::initializer_list<int32_t> ids) {
  std::vector<uint32_t> words(2);
  for (const int32_t id : ids) words[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
  return words;
}

// The one token of a hand-in.
Delta hand_in(Generation& generation, TokenMask mask) {
  generation.allow(std::move(mask));
  std::optional<Delta> delta = generation.next(60.0);
  EXPECT_TRUE(delta) << "nothing came within a minute";
  return delta ? std::move(*delta) : Delta();
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Masks, each_token_is_one_of_its_mask_and_the_first_one_waits_too) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  Generation generation =
      engine->submit({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, constrained(4));
  EXPECT_FALSE(generation.next(0.02));  // and would not come later either
  for (const int32_t id : {63, 31, 32}) {
    const Delta delta = hand_in(generation, only({id}));
    EXPECT_EQ(ids_of(delta), std::vector<int32_t>{id});
    EXPECT_TRUE(delta.awaits_mask);
  }
  const Delta last = hand_in(generation, only({0}));
  EXPECT_EQ(last.finish, FinishReason::length);
  EXPECT_FALSE(last.awaits_mask);
  EXPECT_EQ(model->violations, 0);
}

TEST(Masks, no_mask_is_everything) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  const std::vector<int32_t> prompt{3, 1, 4};
  Generation generation = engine->submit(prompt, constrained(6));
  std::vector<int32_t> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(hand_in(generation, std::nullopt).tokens.at(0).id);
  EXPECT_EQ(ids, expected_ids(*model, prompt, 6));
}

TEST(Masks, others_go_on_and_are_admitted_while_one_waits) {
  EngineLimits limits = small_limits();
  limits.scheduler.max_sequences = 2;
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model);
  std::vector<Generation> silent;  // hold every place, and would hold up the queue
  for (int i = 0; i < 3; ++i)
    silent.push_back(engine->submit(std::vector<int32_t>(static_cast<size_t>(1 + 4 * i), 2), constrained(3)));
  std::vector<Generation> others;
  for (int32_t i = 0; i < 4; ++i) others.push_back(engine->submit({1, i}, greedy(30)));
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(ids_of(read_all(others[static_cast<size_t>(i)])), expected_ids(*model, {1, i}, 30));
  }
  for (size_t i = 0; i < silent.size(); ++i) {  // those whose place was given away begin again, with the same tokens
    const std::vector<int32_t> prompt(1 + 4 * i, 2);
    for (const int32_t id : expected_ids(*model, prompt, 3)) {
      EXPECT_EQ(ids_of(hand_in(silent[i], std::nullopt)), std::vector<int32_t>{id});
    }
  }
  EXPECT_EQ(model->violations, 0);
}

TEST(Masks, a_crowd_under_masks_gives_what_each_gives_alone) {
  EngineLimits limits = small_limits();
  limits.scheduler.blocks[kFull] = 30;  // sequences are preempted and computed again
  const auto model = fake_model(limits);
  const auto engine = fake_engine(model);
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      const std::vector<int32_t> prompt(static_cast<size_t>(3 + 5 * t), t);
      Generation generation = engine->submit(prompt, constrained(30));
      for (int i = 0; i < 30; ++i) {
        const Delta delta = hand_in(generation, i % 3 == 0 ? TokenMask(only({i, t + 40})) : std::nullopt);
        ASSERT_EQ(delta.tokens.size(), 1u);
        const int32_t id = delta.tokens[0].id;
        EXPECT_TRUE(i % 3 != 0 || id == i || id == t + 40) << id;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(model->violations, 0);
}

TEST(Masks, wrong_hand_ins_are_refused_in_words) {
  const auto engine = fake_engine(fake_model());
  Generation free = engine->submit({1}, greedy(1));
  EXPECT_NE(message_of([&] { free.allow(std::nullopt); }).find("constrained"), std::string::npos);
  Generation generation = engine->submit({1}, constrained(1));
  const std::string message = message_of([&] { generation.allow(std::vector<uint32_t>(3)); });
  EXPECT_NE(message.find("3 words"), std::string::npos) << message;
  EXPECT_NE(message.find("64 ids takes 2"), std::string::npos) << message;
  EXPECT_EQ(hand_in(generation, only({9})).tokens.at(0).id, 9);  // and it lives on
}

TEST(Masks, a_mask_that_allows_nothing_ends_its_own_sequence_only) {
  const auto model = fake_model();
  const auto engine = fake_engine(model);
  Generation other = engine->submit({1, 2}, greedy(60));
  Generation generation = engine->submit({5}, constrained(5));
  generation.allow(only({}));
  EXPECT_NE(message_of([&] { read_all(generation); }).find("no token may be drawn"), std::string::npos);
  EXPECT_EQ(ids_of(read_all(other)), expected_ids(*model, {1, 2}, 60));
}

TEST(Masks, cancelling_and_closing_work_while_all_wait) {
  const auto engine = fake_engine(fake_model());
  Generation cancelled = engine->submit({1}, constrained(5));
  Generation started = engine->submit({1, 2}, constrained(5));
  hand_in(started, std::nullopt);
  Generation left = engine->submit({1, 2, 3}, constrained(5));
  cancelled.cancel();
  EXPECT_EQ(read_all(cancelled).finish, FinishReason::cancelled);
  started.cancel();
  EXPECT_EQ(read_all(started).finish, FinishReason::cancelled);
  engine->close();
  EXPECT_NE(message_of([&] { read_all(left); }).find("closed"), std::string::npos);
  left.allow(std::nullopt);  // too late, and no harm
}

// Ids of a vocabulary for thoughts: letters, a newline and the markers of channels.
constexpr int32_t kNewline = 10, kOpen = 60, kClose = 61, kEnd = 62;

std::shared_ptr<const Vocabulary> thinker() {
  std::vector<std::string> pieces;
  for (int i = 0; i < 60; ++i) pieces.push_back(str("w", i, " "));
  pieces[kNewline] = "\n";
  pieces[11] = "thought";
  for (const char* text : {"<|channel>", "<channel|>", "<turn|>", "<eos>"}) pieces.emplace_back(text);
  return std::make_shared<const Vocabulary>(
      pieces, std::vector<int32_t>{kOpen, kClose, kEnd, 63},
      SpecialIds{{"<|channel>", kOpen}, {"<channel|>", kClose}, {"<turn|>", kEnd}, {"<eos>", 63}});
}

SamplingParams thinking(SamplingParams params, int64_t budget) {
  params.channels = true;
  params.thinking_budget = budget;
  params.thought_end = {kNewline, kClose};
  return params;
}

TEST(Thoughts, a_budget_closes_them_and_the_answer_goes_on) {
  const auto model = fake_model();
  model->next_id = [](const std::vector<int32_t>& ids) {
    const std::vector<int32_t> script{kOpen, 11, kNewline};
    return ids.size() < 5 ? script[ids.size() - 2] : static_cast<int32_t>(20 + ids.size() % 8);
  };
  const auto engine = fake_engine(model, thinker());
  for (const int64_t budget : {3, 7, 12}) {
    Generation generation = engine->submit({1, 2}, thinking(greedy(20), budget));
    const Delta all = read_all(generation);
    const std::vector<int32_t> ids = ids_of(all);
    ASSERT_EQ(ids.size(), 20u);
    EXPECT_EQ(ids[static_cast<size_t>(budget)], kNewline) << budget;
    EXPECT_EQ(ids[static_cast<size_t>(budget) + 1], kClose) << budget;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), kClose), 1);
    EXPECT_TRUE(all.thought_cut);
    EXPECT_EQ(all.usage->reasoning, budget + 2);
    EXPECT_FALSE(text_of(all).empty());
  }
  Generation free = engine->submit({1, 2}, thinking(greedy(20), -1));
  const Delta all = read_all(free);
  EXPECT_FALSE(all.thought_cut);
  EXPECT_EQ(text_of(all), "");
}

TEST(Thoughts, one_that_the_prompt_opened_counts_from_the_first_token) {
  const auto engine = fake_engine(fake_model(), thinker());
  SamplingParams params = thinking(greedy(6), 0);
  params.start_in_thought = true;
  Generation generation = engine->submit({1, 2}, params);
  const std::vector<int32_t> ids = ids_of(read_all(generation));
  EXPECT_EQ(ids[0], kNewline);
  EXPECT_EQ(ids[1], kClose);
}

TEST(Thoughts, they_run_free_and_masks_begin_behind_them) {
  const auto model = fake_model();
  model->next_id = [](const std::vector<int32_t>& ids) { return ids.size() < 20 ? kEnd : kClose; };
  EngineOptions options;
  options.eos_ids = {kEnd};
  const auto engine = fake_engine(model, thinker(), options);
  SamplingParams params = thinking(constrained(40), -1);
  params.suppress_in_thought = {kEnd, kOpen};
  Generation generation = engine->submit({1, 2}, params);
  for (const int32_t id : {kOpen, 11}) EXPECT_EQ(ids_of(hand_in(generation, only({id}))), std::vector<int32_t>{id});
  generation.allow(only({kNewline}));
  Delta all;
  while (!all.awaits_mask) {
    std::optional<Delta> delta = generation.next(60.0);
    ASSERT_TRUE(delta);
    all.append(std::move(*delta));
  }
  EXPECT_EQ(all.tokens.back().id, kClose);  // what ends a reply was drawn at no place inside
  EXPECT_EQ(std::count_if(all.tokens.begin(), all.tokens.end(), [](const TokenInfo& t) { return t.id == kEnd; }), 0);
  EXPECT_EQ(ids_of(hand_in(generation, only({21}))), std::vector<int32_t>{21});
  const Delta last = hand_in(generation, only({kEnd}));
  EXPECT_EQ(last.finish, FinishReason::stop);
  EXPECT_EQ(text_of(last), "");
}

TEST(Thoughts, a_budget_needs_channels_and_the_ids_that_close) {
  const auto engine = fake_engine(fake_model(), thinker());
  SamplingParams params = thinking(greedy(5), 3);
  params.thought_end.clear();
  EXPECT_NE(message_of([&] { engine->submit({1}, params); }).find("thought_end"), std::string::npos);
  params = thinking(greedy(5), 3);
  params.channels = false;
  EXPECT_NE(message_of([&] { engine->submit({1}, params); }).find("channels"), std::string::npos);
}

}  // namespace
}  // namespace gemmantle
