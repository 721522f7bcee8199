// Sampling on the device: the ids and log-probabilities of the reference, for every rule of kernels/common/sampling.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda/device_rows.h"
#include "kernels/reference/sample.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::in_every_order;
using test::Random;

constexpr float kNever = -std::numeric_limits<float>::infinity();

// A row's rules with the lists they point to, which live on host and device alike.
struct Rules {
  SampleRow row;
  std::vector<TokenCount> seen;
  std::vector<TokenBias> bias;
  std::vector<int32_t> banned;
  std::vector<uint32_t> allowed;

  SampleRow pointing_at(const TokenCount* s, const TokenBias* b, const int32_t* n, const uint32_t* a) const {
    SampleRow out = row;
    out.seen = s;
    out.n_seen = static_cast<int64_t>(seen.size());
    out.bias = b;
    out.n_bias = static_cast<int64_t>(bias.size());
    out.banned = n;
    out.n_banned = static_cast<int64_t>(banned.size());
    out.allowed = allowed.empty() ? nullptr : a;
    return out;
  }
  SampleRow on_host() const { return pointing_at(seen.data(), bias.data(), banned.data(), allowed.data()); }
};

struct OnDevice {
  DeviceArray<TokenCount> seen;
  DeviceArray<TokenBias> bias;
  DeviceArray<int32_t> banned;
  DeviceArray<uint32_t> allowed;
  SampleRow row;

  explicit OnDevice(const Rules& r)
      : seen(r.seen),
        bias(r.bias),
        banned(r.banned),
        allowed(r.allowed),
        row(r.pointing_at(seen.data(), bias.data(), banned.data(), allowed.data())) {}
};

std::vector<SampledToken> on_device(const std::vector<float>& logits, int vocabulary, int stride,
                                    const std::vector<Rules>& rules) {
  const int rows = static_cast<int>(rules.size());
  std::vector<OnDevice> kept;
  std::vector<SampleRow> device_rows;
  kept.reserve(rules.size());
  for (const Rules& r : rules) {
    kept.emplace_back(r);
    device_rows.push_back(kept.back().row);
  }
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<SampleRow> sample_rows(device_rows);
  const DeviceArray<SampledToken> tokens(rules.size());
  const DeviceArray<uint8_t> scratch(sample_scratch_bytes(rows, vocabulary));
  sample(nullptr, tokens.data(), {device_logits.data(), rows, vocabulary, stride}, sample_rows.data(), scratch.data());
  return tokens.values();
}

void expect_as_reference(const std::vector<float>& logits, int vocabulary, int stride, const std::vector<Rules>& rules,
                         const std::string& what) {
  const std::vector<SampledToken> found = on_device(logits, vocabulary, stride, rules);
  std::vector<double> scratch(reference::sample_scratch_bytes(vocabulary) / sizeof(double) + 1);
  for (size_t r = 0; r < rules.size(); ++r) {
    SampledToken wanted;
    reference::sample_row(logits.data() + r * static_cast<size_t>(stride), vocabulary, rules[r].on_host(), wanted,
                          scratch.data());
    const SampledToken& token = found[r];
    EXPECT_EQ(token.id, wanted.id) << what << ", row " << r;
    ASSERT_EQ(token.n_top, wanted.n_top) << what << ", row " << r;
    if (std::isinf(wanted.logprob)) {
      EXPECT_EQ(token.logprob, wanted.logprob) << what << ", row " << r;
    } else {
      EXPECT_NEAR(token.logprob, wanted.logprob, 1e-5) << what << ", row " << r;
    }
    for (int j = 0; j < wanted.n_top; ++j) {
      EXPECT_EQ(token.top_ids[j], wanted.top_ids[j]) << what << ", row " << r << ", alternative " << j;
      if (std::isinf(wanted.top_logprobs[j])) {
        EXPECT_EQ(token.top_logprobs[j], wanted.top_logprobs[j]) << what << ", row " << r;
      } else {
        EXPECT_NEAR(token.top_logprobs[j], wanted.top_logprobs[j], 1e-5) << what << ", row " << r;
      }
    }
  }
}

class Scene {
 public:
  Scene(uint64_t seed, int vocabulary, float deviation)
      : random_(seed), vocabulary_(vocabulary), stride_(vocabulary + 5), deviation_(deviation) {}

  // One row more with these rules; its random numbers differ from those of all others.
  Rules& add(SampleRow row) {
    for (int i = 0; i < stride_; ++i) {
      float logit = deviation_ * random_.normal();
      if (i % 5 == 0) logit = std::round(logit);  // many are equal
      logits_.push_back(logit);
    }
    row.seed = 77 + rules_.size();
    row.position = 3 * rules_.size() + (uint64_t{1} << 33);
    row.choice = static_cast<uint32_t>(rules_.size() % 3);
    rules_.push_back({row, {}, {}, {}, {}});
    return rules_.back();
  }
  float& logit(int id) { return logits_[(rules_.size() - 1) * static_cast<size_t>(stride_) + static_cast<size_t>(id)]; }
  Random& random() { return random_; }

  void check(const std::string& what) const { expect_as_reference(logits_, vocabulary_, stride_, rules_, what); }
  void check_in_every_order() const {
    in_every_order([&](const std::string& order) { check(order); });
  }

 private:
  Random random_;
  int vocabulary_, stride_;
  float deviation_;
  std::vector<float> logits_;
  std::vector<Rules> rules_;
};

SampleRow with(float temperature, int32_t top_k, float top_p, float min_p) {
  SampleRow row;
  row.temperature = temperature;
  row.top_k = top_k;
  row.top_p = top_p;
  row.min_p = min_p;
  return row;
}

TEST(CudaSample, every_filter_at_every_temperature) {
  for (const int vocabulary : {1, 37, 700}) {
    Scene scene(51, vocabulary, 3.0f);
    for (const float temperature : {0.0f, 0.3f, 5.0f}) {
      for (const int32_t top_k : {0, 1, 20}) {
        for (const float top_p : {1.0f, 0.9f, 0.0f}) {
          for (const float min_p : {0.0f, 0.1f}) scene.add(with(temperature, top_k, top_p, min_p));
        }
      }
    }
    scene.check("vocabulary " + std::to_string(vocabulary));
  }
}

TEST(CudaSample, in_every_order_of_threads) {
  Scene scene(52, 300, 2.0f);
  scene.add(with(1, 0, 1, 0)).row.top_logprobs = 5;
  scene.add(with(1, 40, 0.9f, 0.02f)).row.top_logprobs = 0;
  scene.add(with(0, 0, 1, 0));
  scene.check_in_every_order();
}

// All that a row may ask for, at the least cost: what the thread sanitizer runs.
TEST(CudaSample, one_row_with_everything) {
  Scene scene(60, 130, 2.0f);
  Rules& r = scene.add(with(0.8f, 40, 0.9f, 0.02f));
  r.row.repetition_penalty = 1.3f;
  r.row.top_logprobs = 2;
  r.seen = {{3, 1}, {70, 2}};
  r.bias = {{9, 1.0f}};
  r.banned = {5, 129};
  r.allowed = {0x0fffffffu, ~0u, ~0u, ~0u, ~0u};
  scene.check("one row");
}

TEST(CudaSample, penalties_bias_bans_and_masks) {
  constexpr int kVocabulary = 400;
  Scene scene(53, kVocabulary, 3.0f);
  for (int i = 0; i < 12; ++i) {
    Rules& r = scene.add(with(i % 3 == 0 ? 0.0f : 0.8f, i % 2 * 30, i % 4 == 0 ? 0.9f : 1.0f, 0));
    r.row.repetition_penalty = 1.3f;
    r.row.presence_penalty = 0.5f;
    r.row.frequency_penalty = 0.25f;
    for (int32_t id = i; id < kVocabulary; id += 3) r.seen.push_back({id, id % 4});
    for (int32_t id = 2 * i; id < kVocabulary; id += 7) r.bias.push_back({id, 2.0f * scene.random().normal()});
    for (int32_t id = 5; id < kVocabulary; id += 11) r.banned.push_back(id);
    if (i % 2 == 0) {
      for (int w = 0; w < (kVocabulary + 31) / 32; ++w) r.allowed.push_back(0x55aa0ff0u << i);
    }
    r.row.top_logprobs = i;
  }
  scene.check("all rules");
}

TEST(CudaSample, nothing_left_is_no_id) {
  Scene scene(54, 64, 1.0f);
  scene.add(with(1, 0, 1, 0)).allowed = {0, 0};
  scene.add(with(0, 0, 1, 0)).allowed = {0, 0};
  Rules& one = scene.add(with(1, 8, 0.5f, 0.5f));
  one.allowed = {0, 8};
  one.row.top_logprobs = 3;
  scene.check("masks");
}

TEST(CudaSample, log_probabilities_are_of_the_logits_as_they_came) {
  Scene scene(55, 90, 4.0f);
  Rules& forced = scene.add(with(1, 0, 1, 0));
  forced.row.forced = 17;
  forced.row.top_logprobs = 20;
  forced.bias = {{17, 5.0f}};
  Rules& drawn = scene.add(with(0.5f, 3, 1, 0));
  drawn.row.top_logprobs = 20;
  drawn.bias = {{18, 50.0f}};
  scene.check("log-probabilities");
  Scene few(56, 7, 4.0f);
  few.add(with(1, 0, 1, 0)).row.top_logprobs = 20;
  few.check("fewer ids than alternatives");
}

TEST(CudaSample, logits_that_are_no_numbers) {
  Scene scene(57, 50, 1.0f);
  for (const int32_t top_k : {0, 1, 5}) {
    Rules& r = scene.add(with(1, top_k, 1, 0));
    r.row.top_logprobs = 4;
    scene.logit(3) = std::nanf("");
    scene.logit(10) = kNever;
    scene.logit(20) = 100.0f;
    if (top_k == 5) scene.logit(30) = std::numeric_limits<float>::infinity();
  }
  scene.add(with(0, 0, 1, 0)).row.top_logprobs = 60;
  for (int i = 0; i < 50; ++i) scene.logit(i) = kNever;
  scene.check("not numbers");
}

// More candidates than are sorted in shared memory, all of one bin or spread out; and both zeros.
TEST(CudaSample, flat_distributions) {
  for (const float deviation : {0.0f, 1.0f}) {
    Scene scene(58, 5003, deviation);
    scene.add(with(1, 3001, 1, 0));
    scene.add(with(1, 0, 0.95f, 0));
    scene.add(with(100, 4000, 0.9f, 0.5f));
    scene.logit(4000) = -0.0f;
    scene.check("deviation " + std::to_string(deviation));
  }
}

TEST(CudaSample, far_below_the_maximum_weighs_nothing) {
  Scene scene(59, 200, 1.0f);
  scene.add(with(1, 100, 0.999f, 0));
  scene.logit(77) = 90.0f;
  scene.add(with(1e-30f, 0, 1, 0));
  scene.add(with(1e-30f, 5, 0.5f, 0));
  scene.check("peaked");
}

}  // namespace
}  // namespace gemmantle::cuda
