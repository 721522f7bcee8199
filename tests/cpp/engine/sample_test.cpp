#include "kernels/reference/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace gemmantle {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

SampledToken sample(const std::vector<float>& logits, const SampleRow& row) {
  std::vector<char> scratch(reference::sample_scratch_bytes(static_cast<int64_t>(logits.size())));
  SampledToken token;
  reference::sample_row(logits.data(), static_cast<int64_t>(logits.size()), row, token, scratch.data());
  return token;
}

std::vector<float> random_logits(std::mt19937& rng, size_t n, float spread = 2) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& value : logits) value = normal(rng);
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature = 1) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (const float value : logits) p.push_back(std::exp((value - largest) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

std::vector<int64_t> draws(const std::vector<float>& logits, SampleRow row, int n) {
  std::vector<int64_t> counts(logits.size(), 0);
  for (int i = 0; i < n; ++i) {
    row.position = static_cast<uint64_t>(i);
    const SampledToken token = sample(logits, row);
    EXPECT_GE(token.id, 0);
    if (token.id >= 0) ++counts[static_cast<size_t>(token.id)];
  }
  return counts;
}

// Pearson's statistic against `p`, over the ids with five expected draws or more; its degrees of freedom into `free`.
double chi_square(const std::vector<int64_t>& counts, const std::vector<double>& p, int n, int& free) {
  double sum = 0;
  free = -1;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * n;
    if (expected < 5) continue;
    sum += (static_cast<double>(counts[i]) - expected) * (static_cast<double>(counts[i]) - expected) / expected;
    ++free;
  }
  return sum;
}

// Mean k, variance 2k: five standard deviations.
double chi_square_bound(int free) { return free + 5 * std::sqrt(2.0 * free) + 5; }

std::set<int32_t> drawn(const std::vector<float>& logits, const SampleRow& row, int n = 2000) {
  const std::vector<int64_t> counts = draws(logits, row, n);
  std::set<int32_t> ids;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) ids.insert(static_cast<int32_t>(i));
  }
  return ids;
}

TEST(Philox, gives_the_published_vectors) {
  // Random123, kat_vectors: philox4x32 with 10 rounds.
  const auto is = [](Philox4x32 out, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return out.v[0] == a && out.v[1] == b && out.v[2] == c && out.v[3] == d;
  };
  EXPECT_TRUE(is(philox4x32_10({{0, 0, 0, 0}}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_TRUE(is(philox4x32_10({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_TRUE(is(philox4x32_10({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0), 0xd16cfe09,
                 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(Philox, uniforms_depend_on_seed_choice_and_position) {
  std::set<double> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 40}) {
    for (uint32_t choice : {0u, 1u}) {
      for (uint64_t position : {0ull, 1ull, 1ull << 33}) seen.insert(philox_uniform(seed, choice, position));
    }
  }
  EXPECT_EQ(seen.size(), 18u);
  EXPECT_GE(*seen.begin(), 0);
  EXPECT_LT(*seen.rbegin(), 1);
}

TEST(Sample, greedy_takes_the_largest_and_ties_go_to_the_lowest_id) {
  SampleRow row;
  row.temperature = 0;
  EXPECT_EQ(sample({1, 3, 2, 3}, row).id, 1);
  EXPECT_EQ(sample({-1, -1, -1}, row).id, 0);
  row.top_p = 0.1f;
  row.top_k = 3;
  row.min_p = 0.9f;
  EXPECT_EQ(sample({1, 3, 2, 3}, row).id, 1);
}

TEST(Sample, greedy_over_a_long_row_is_what_one_loop_over_it_gives) {
  SampleRow row;
  row.temperature = 0;
  std::mt19937 rng(7);
  for (const size_t n : {1u, 31u, 33u, 4095u, 4096u, 4097u, 20000u}) {
    for (int round = 0; round < 40; ++round) {
      std::vector<float> logits = random_logits(rng, n);
      const auto anywhere = [&]() -> float& { return logits[rng() % n]; };
      const float largest = round % 4 == 0 ? kInf : round % 4 == 1 ? std::numeric_limits<float>::max() : 50.0f;
      for (int ties = 0; ties < 3; ++ties) anywhere() = largest;
      for (int bad = 0; bad < 5; ++bad) anywhere() = bad % 2 == 0 ? kNaN : -kInf;
      if (round % 8 == 0) anywhere() = std::numeric_limits<float>::max();  // as large as infinity counts
      int64_t best = -1;
      double most = -kInf;
      for (size_t i = 0; i < n; ++i) {
        const double value = std::min<double>(logits[i], std::numeric_limits<float>::max());
        if (!std::isnan(logits[i]) && value > most) {
          most = value;
          best = static_cast<int64_t>(i);
        }
      }
      ASSERT_EQ(sample(logits, row).id, best) << n << " logits, round " << round << ", seed 7";
    }
  }
}

TEST(Sample, greedy_comes_after_bias_penalties_and_mask) {
  const std::vector<float> logits = {1, 3, 2, 2.5f};
  SampleRow row;
  row.temperature = 0;
  const TokenBias bias[] = {{0, 5}};
  row.bias = bias;
  row.n_bias = 1;
  EXPECT_EQ(sample(logits, row).id, 0);
  row.n_bias = 0;
  const int32_t banned[] = {1};
  row.banned = banned;
  row.n_banned = 1;
  EXPECT_EQ(sample(logits, row).id, 3);
  const uint32_t allowed[] = {0b0110};
  row.allowed = allowed;
  EXPECT_EQ(sample(logits, row).id, 2);
}

TEST(Sample, penalties_follow_their_formulas) {
  SampleRow row;
  row.temperature = 0;
  // The prompt's ids are repeated ids, but neither present nor frequent in the output.
  const TokenCount seen[] = {{0, 0}, {1, 3}};
  row.seen = seen;
  row.n_seen = 2;
  row.repetition_penalty = 2;
  EXPECT_EQ(sample({4, 3, 2.5f}, row).id, 2);     // 2, 1.5, 2.5
  EXPECT_EQ(sample({-1, -2, -3}, row).id, 0);     // -2, -4, -3
  EXPECT_EQ(sample({-2, -2, -3.5f}, row).id, 2);  // -4, -4, -3.5
  row.repetition_penalty = 1;
  row.frequency_penalty = 0.5f;
  EXPECT_EQ(sample({1, 2.6f, 1.2f}, row).id, 2);  // 2.6 - 3 * 0.5
  EXPECT_EQ(sample({1, 2.8f, 1.2f}, row).id, 1);
  row.frequency_penalty = 0;
  row.presence_penalty = 1;
  EXPECT_EQ(sample({1, 2.1f, 1.2f}, row).id, 2);
  EXPECT_EQ(sample({1, 2.3f, 1.2f}, row).id, 1);
  EXPECT_EQ(sample({5, 2.3f, 1.2f}, row).id, 0);
}

TEST(Sample, draws_follow_the_distribution) {
  const unsigned seed = 20240607;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  constexpr int kDraws = 20000;
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    const std::vector<float> logits = random_logits(rng, 97);
    SampleRow row;
    row.seed = seed;
    row.temperature = temperature;
    int free = 0;
    const double statistic = chi_square(draws(logits, row, kDraws), softmax(logits, temperature), kDraws, free);
    EXPECT_LT(statistic, chi_square_bound(free)) << "temperature " << temperature << ", " << free << " degrees";
  }
}

TEST(Sample, cuts_renormalise_what_is_left) {
  const unsigned seed = 77;
  std::mt19937 rng(seed);
  const std::vector<float> logits = random_logits(rng, 60);
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });

  SampleRow row;
  row.seed = 5;
  row.top_k = 12;
  row.top_p = 0.8f;
  row.min_p = 0.05f;
  // top_k first, then top_p of what is left of it, then min_p against the largest.
  std::vector<double> p = softmax(logits);
  std::vector<double> kept(logits.size(), 0);
  double mass = 0;
  for (int j = 0; j < 12; ++j) mass += p[order[static_cast<size_t>(j)]];
  double sum = 0;
  for (int j = 0; j < 12 && sum < static_cast<double>(row.top_p) * mass; ++j) {
    const size_t id = order[static_cast<size_t>(j)];
    sum += p[id];
    if (p[id] >= static_cast<double>(row.min_p) * p[order[0]]) kept[id] = p[id];
  }
  const double total = std::accumulate(kept.begin(), kept.end(), 0.0);
  for (double& value : kept) value /= total;

  constexpr int kDraws = 20000;
  const std::vector<int64_t> counts = draws(logits, row, kDraws);
  for (size_t i = 0; i < kept.size(); ++i) EXPECT_TRUE(kept[i] > 0 || counts[i] == 0) << "id " << i;
  int free = 0;
  EXPECT_LT(chi_square(counts, kept, kDraws, free), chi_square_bound(free)) << "seed " << seed;
}

TEST(Sample, top_k_keeps_exactly_k_and_ties_go_to_the_lower_ids) {
  SampleRow row;
  row.top_k = 2;
  EXPECT_EQ(drawn({1, 2, 1, 2, 2}, row), (std::set<int32_t>{1, 3}));
  row.top_k = 1;
  EXPECT_EQ(drawn({1, 2, 1, 2, 2}, row), (std::set<int32_t>{1}));
  row.top_k = 5;
  EXPECT_EQ(drawn({1, 2, 1, 2, 2}, row).size(), 5u);
  row.top_k = 1000;
  EXPECT_EQ(drawn({1, 2, 1, 2, 2}, row).size(), 5u);
}

TEST(Sample, top_p_keeps_the_smallest_set_that_reaches_it) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f), std::log(0.25f)};
  SampleRow row;
  row.top_p = 0.6f;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{1, 3}));
  row.top_p = 0.4f;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{1}));
  row.top_p = 0.8f;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{1, 2, 3}));
  row.top_p = 0;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{1}));
  row.top_p = std::nextafter(1.0f, 0.0f);
  EXPECT_EQ(drawn(logits, row, 20000).size(), 4u);
}

TEST(Sample, top_p_is_exact_where_many_tokens_are_needed) {
  // Nearly flat: the cut lies far beyond what the first, small selection sees.
  std::vector<float> logits(30000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -1e-5f * static_cast<float>((i * 7919) % logits.size());
  std::vector<double> p = softmax(logits);
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  SampleRow row;
  for (const float top_p : {0.2f, 0.7f}) {
    row.top_p = top_p;
    double sum = 0;
    std::set<size_t> kept;
    for (const size_t id : order) {
      if (sum >= static_cast<double>(top_p)) break;
      sum += p[id];
      kept.insert(id);
    }
    for (const int32_t id : drawn(logits, row, 300)) EXPECT_TRUE(kept.count(static_cast<size_t>(id))) << id;
  }
}

TEST(Sample, min_p_is_relative_to_the_most_probable) {
  const std::vector<float> logits = {0, std::log(0.5f), std::log(0.09f), std::log(0.11f)};
  SampleRow row;
  row.min_p = 0.1f;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{0, 1, 3}));
  row.min_p = 1;
  EXPECT_EQ(drawn(logits, row), (std::set<int32_t>{0}));
  row.temperature = 100;  // the ratio is taken after the temperature
  row.min_p = 0.9f;
  EXPECT_EQ(drawn(logits, row).size(), 4u);
}

TEST(Sample, one_token_always_survives_and_nothing_is_ever_nan) {
  const unsigned seed = 4711;
  std::mt19937 rng(seed);
  const float values[] = {0, 1, -1, 30, -30, 1e30f, -1e30f, kInf, -kInf, kNaN, 3.4e38f, -3.4e38f, 1e-40f};
  std::uniform_int_distribution<size_t> pick(0, std::size(values) - 1);
  const float temperatures[] = {0, 1e-30f, 1e-3f, 1, 100};
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<float> logits(1 + static_cast<size_t>(trial % 9));
    for (float& value : logits) value = values[pick(rng)];
    SampleRow row;
    row.temperature = temperatures[trial % 5];
    row.top_k = trial % 4;
    row.top_p = trial % 3 == 0 ? 1 : trial % 3 == 1 ? 0 : 0.5f;
    row.min_p = trial % 2 == 0 ? 0 : 1;
    row.repetition_penalty = trial % 2 == 0 ? 1 : 100;
    row.frequency_penalty = trial % 7 == 0 ? -100 : 0;
    const TokenCount seen[] = {{0, 2}};
    row.seen = seen;
    row.n_seen = trial % 2;
    row.seed = static_cast<uint64_t>(trial);
    row.top_logprobs = 20;
    const bool has_number = std::any_of(logits.begin(), logits.end(), [](float v) { return v > -kInf; });
    const SampledToken token = sample(logits, row);
    ASSERT_EQ(token.id >= 0, has_number) << "trial " << trial << ", seed " << seed;
    ASSERT_FALSE(std::isnan(token.logprob)) << "trial " << trial;
    ASSERT_EQ(token.n_top, static_cast<int>(logits.size()));
    for (int j = 0; j < token.n_top; ++j) ASSERT_FALSE(std::isnan(token.top_logprobs[j])) << "trial " << trial;
    if (has_number) {
      ASSERT_GT(logits[static_cast<size_t>(token.id)], -kInf) << "trial " << trial;
    }
  }
}

TEST(Sample, a_row_with_every_id_banned_gives_none) {
  SampleRow row;
  const int32_t banned[] = {0, 1};
  row.banned = banned;
  row.n_banned = 2;
  EXPECT_EQ(sample({1, 2}, row).id, -1);
  row.temperature = 0;
  EXPECT_EQ(sample({1, 2}, row).id, -1);
}

TEST(Sample, log_probabilities_are_raw_and_over_the_whole_vocabulary) {
  const unsigned seed = 99;
  std::mt19937 rng(seed);
  const std::vector<float> logits = random_logits(rng, 500);
  const std::vector<double> p = softmax(logits);
  SampleRow row;
  row.temperature = 0.3f;
  row.top_k = 5;
  row.top_logprobs = 7;
  const TokenBias bias[] = {{17, 50}};
  row.bias = bias;
  row.n_bias = 1;
  const SampledToken token = sample(logits, row);
  EXPECT_EQ(token.id, 17);
  EXPECT_NEAR(token.logprob, std::log(p[17]), 1e-6);
  ASSERT_EQ(token.n_top, 7);
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  for (int j = 0; j < 7; ++j) {
    EXPECT_EQ(token.top_ids[j], static_cast<int32_t>(order[static_cast<size_t>(j)]));
    EXPECT_NEAR(token.top_logprobs[j], std::log(p[order[static_cast<size_t>(j)]]), 1e-6);
  }
}

TEST(Sample, equal_log_probabilities_are_listed_by_id) {
  SampleRow row;
  row.temperature = 0;
  row.top_logprobs = 3;
  const SampledToken token = sample({1, 2, 2, 1, 2}, row);
  EXPECT_EQ(std::vector<int32_t>(token.top_ids, token.top_ids + token.n_top), (std::vector<int32_t>{1, 2, 4}));
  row.top_logprobs = 0;
  EXPECT_EQ(sample({1, 2}, row).n_top, 0);
  EXPECT_NEAR(sample({1, 2}, row).logprob, -std::log1p(std::exp(-1.0)), 1e-6);
}

TEST(Sample, a_forced_id_is_scored_and_not_drawn) {
  SampleRow row;
  row.forced = 2;
  row.top_logprobs = 1;
  const SampledToken token = sample({5, 1, 0}, row);
  EXPECT_EQ(token.id, 2);
  EXPECT_NEAR(token.logprob, std::log(softmax({5, 1, 0})[2]), 1e-6);
  EXPECT_EQ(token.top_ids[0], 0);
}

TEST(Sample, the_same_key_draws_the_same_token) {
  std::mt19937 rng(3);
  const std::vector<float> logits = random_logits(rng, 1000);
  SampleRow row;
  row.seed = 123;
  row.position = 9;
  EXPECT_EQ(sample(logits, row).id, sample(logits, row).id);
  std::set<int32_t> by_choice;
  for (row.choice = 0; row.choice < 20; ++row.choice) by_choice.insert(sample(logits, row).id);
  EXPECT_GT(by_choice.size(), 5u);
}

}  // namespace
}  // namespace gemmantle
