// sample.h: one row of logits to one token: the definition of sampling, and its implementation on the host.
//
// Sums and weights are doubles; only the few largest logits are ever sorted. Logits that are not numbers count as
// minus infinity and an infinite one as the largest f32, so that no result is ever NaN. With temperature 0, or when
// one token is left, no random number is used. Survivors of top_k or top_p are walked from the most probable down,
// otherwise in the order of their ids; the draw takes the first whose cumulative weight exceeds uniform * total.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/common/philox.h"
#include "kernels/common/sampling.h"

namespace gemmantle::reference {

// Bytes of scratch that sample_row needs, aligned to 8.
inline size_t sample_scratch_bytes(int64_t vocab) noexcept {
  return static_cast<size_t>(vocab) * (sizeof(float) + sizeof(int32_t));
}

namespace sampling {

constexpr float kNever = -std::numeric_limits<float>::infinity();

inline float as_number(float logit) noexcept {
  if (logit != logit) return kNever;
  return logit > FLT_MAX ? FLT_MAX : logit;
}

// A logit that bias and penalties have moved: it stays a number, so that no penalty works as a mask.
inline float moved(float from, float to) noexcept { return from > kNever ? std::clamp(to, -FLT_MAX, FLT_MAX) : kNever; }

// The order of candidates: larger first, ties to the lower id.
struct Before {
  const float* z;
  bool operator()(int32_t a, int32_t b) const noexcept { return z[a] > z[b] || (z[a] == z[b] && a < b); }
};

// The largest of z[0, n) that is a number, by lanes that compilers turn into vectors.
inline float largest_of(const float* z, int64_t n) noexcept {
  constexpr int64_t kAtOnce = 32;
  float largest[kAtOnce];
  std::fill(largest, largest + kAtOnce, kNever);
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) {
    for (int64_t l = 0; l < kAtOnce; ++l) largest[l] = z[i + l] > largest[l] ? z[i + l] : largest[l];
  }
  for (; i < n; ++i) largest[0] = z[i] > largest[0] ? z[i] : largest[0];
  return as_number(*std::max_element(largest, largest + kAtOnce));
}

inline int64_t argmax(const float* z, int64_t vocab) noexcept {
  constexpr int64_t kPiece = 4096;
  int64_t from = -1;  // the first piece that has it
  float largest = kNever;
  for (int64_t i = 0; i < vocab; i += kPiece) {
    const float value = largest_of(z + i, std::min(kPiece, vocab - i));
    if (value > largest) {
      largest = value;
      from = i;
    }
  }
  if (from < 0) return -1;
  while (!(z[from] >= largest)) ++from;
  return from;
}

// The `k` first candidates in order into `ids` (room for vocab): one pass that compacts whenever it has collected twice
// as many as needed. Returns how many there are.
inline int64_t select_top(const float* z, int64_t vocab, int64_t k, int32_t* ids) noexcept {
  const Before before{z};
  const int64_t room = 2 * k + 64;
  int64_t n = 0;
  float bar = kNever;
  for (int64_t i = 0; i < vocab; ++i) {
    if (!(z[i] > bar)) continue;  // an equal one comes later in id and loses the tie
    ids[n++] = static_cast<int32_t>(i);
    if (n == room) {
      std::nth_element(ids, ids + k - 1, ids + n, before);
      n = k;
      bar = z[ids[k - 1]];
    }
  }
  if (n > k) {
    std::nth_element(ids, ids + k - 1, ids + n, before);
    n = k;
  }
  std::sort(ids, ids + n, before);
  return n;
}

inline void log_probabilities(const float* logits, int64_t vocab, const SampleRow& row, SampledToken& token) noexcept {
  const int n = std::clamp<int>(row.top_logprobs, 0, kMaxTopLogprobs);
  float top[kMaxTopLogprobs + 1];
  token.n_top = 0;
  float largest = kNever;
  for (int64_t i = 0; i < vocab; ++i) {
    const float value = as_number(logits[i]);
    largest = std::max(largest, value);
    if (n == 0 || (token.n_top == n && !(value > top[n - 1]))) continue;
    int at = token.n_top < n ? token.n_top++ : n - 1;
    for (; at > 0 && value > top[at - 1]; --at) {
      top[at] = top[at - 1];
      token.top_ids[at] = token.top_ids[at - 1];
    }
    top[at] = value;
    token.top_ids[at] = static_cast<int32_t>(i);
  }
  double sum = 0;
  if (largest > kNever) {
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(as_number(logits[i])) - largest);
  }
  const double log_sum = largest > kNever ? largest + std::log(sum) : 0;
  for (int j = 0; j < token.n_top; ++j) token.top_logprobs[j] = static_cast<float>(top[j] - log_sum);
  token.logprob = token.id < 0 ? kNever : static_cast<float>(as_number(logits[token.id]) - log_sum);
}

// Bias, penalties and mask: `z` becomes the logits that are drawn from.
inline void process(const float* logits, int64_t vocab, const SampleRow& row, float* z) noexcept {
  for (int64_t i = 0; i < vocab; ++i) z[i] = as_number(logits[i]);
  for (int64_t j = 0; j < row.n_bias; ++j) {
    float& value = z[row.bias[j].id];
    value = moved(value, value + row.bias[j].bias);
  }
  for (int64_t j = 0; j < row.n_seen; ++j) {
    float& value = z[row.seen[j].id];
    float less = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
    less = moved(value, less) - row.frequency_penalty * static_cast<float>(row.seen[j].count);
    if (row.seen[j].count > 0) less -= row.presence_penalty;
    value = moved(value, less);
  }
  for (int64_t j = 0; j < row.n_banned; ++j) z[row.banned[j]] = kNever;
  if (row.allowed != nullptr) {
    for (int64_t i = 0; i < vocab; ++i) {
      if ((row.allowed[i / 32] >> (i % 32) & 1u) == 0) z[i] = kNever;
    }
  }
}

inline int32_t draw(const float* z, int64_t vocab, const SampleRow& row, int32_t* ids) noexcept {
  const int64_t best = argmax(z, vocab);
  if (best < 0 || !(row.temperature > 0) || row.top_k == 1) return static_cast<int32_t>(best);
  const double largest = z[best];
  const double temperature = row.temperature;
  const auto weight = [&](int64_t id) { return z[id] > kNever ? std::exp((z[id] - largest) / temperature) : 0.0; };

  const bool cut_k = row.top_k > 0 && row.top_k < vocab;
  const bool cut_p = row.top_p < 1;
  int64_t n = vocab;       // candidates
  bool is_listed = false;  // they are ids[0, n) in order; else all ids
  if (cut_k) {
    n = select_top(z, vocab, row.top_k, ids);
    is_listed = true;
  }
  if (cut_p) {
    double total = 0;
    for (int64_t j = 0; j < n; ++j) total += weight(is_listed ? ids[j] : j);
    const double wanted = static_cast<double>(row.top_p) * total;
    double sum = 0;
    int64_t kept = 0;
    if (is_listed) {
      while (kept < n && (kept == 0 || sum < wanted)) sum += weight(ids[kept++]);
    } else {
      for (int64_t k : {int64_t{256}, int64_t{8192}, vocab}) {
        k = std::min(k, vocab);
        n = select_top(z, vocab, k, ids);
        sum = 0;
        kept = 0;
        while (kept < n && (kept == 0 || sum < wanted)) sum += weight(ids[kept++]);
        if (sum >= wanted || n < k) break;
      }
      is_listed = true;
    }
    n = kept;
  }

  // The most probable token has weight 1, whatever was cut.
  const double least = std::max(static_cast<double>(row.min_p), 0.0);
  const auto survives = [&](double w) { return w > 0 && w >= least; };
  double total = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double w = weight(is_listed ? ids[j] : j);
    if (survives(w)) total += w;
  }
  const double wanted = philox_uniform(row.seed, row.choice, row.position) * total;
  double sum = 0;
  int64_t last = best;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t id = is_listed ? ids[j] : j;
    const double w = weight(id);
    if (!survives(w)) continue;
    sum += w;
    last = id;
    if (sum > wanted) break;
  }
  return static_cast<int32_t>(last);
}

}  // namespace sampling

// `scratch`: sample_scratch_bytes(vocab). Every id of `row` must lie in [0, vocab), penalties and temperature be
// finite.
inline void sample_row(const float* logits, int64_t vocab, const SampleRow& row, SampledToken& token,
                       void* scratch) noexcept {
  token.id = -1;
  token.n_top = 0;
  token.logprob = 0;
  if (row.forced >= 0) {
    token.id = row.forced;
  } else {
    const bool is_plain = row.n_bias == 0 && row.n_seen == 0 && row.n_banned == 0 && row.allowed == nullptr;
    if (is_plain && !(row.temperature > 0)) {
      token.id = static_cast<int32_t>(sampling::argmax(logits, vocab));
    } else {
      float* z = static_cast<float*>(scratch);
      int32_t* ids = reinterpret_cast<int32_t*>(z + vocab);
      sampling::process(logits, vocab, row, z);
      token.id = sampling::draw(z, vocab, row, ids);
    }
  }
  if (row.top_logprobs >= 0) sampling::log_probabilities(logits, vocab, row, token);
}

}  // namespace gemmantle::reference
