// elementwise.h: the ops that treat every value by itself, over a run of values.
//
// Tails go through the same vector code as whole vectors, so a value does not depend on where a run starts.
#pragma once

#include "kernels/cpu/vec.h"

namespace gemmantle::cpu {
namespace {

// Calls body(i, read, write) for every vector of [0, n); read and write handle whole vectors or the tail.
template <class Body>
static inline void for_each_vec(int64_t n, Body&& body) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    body(
        i, [](const float* p) { return load(p); }, [](float* p, Vec v) { store(p, v); });
  }
  if (const int64_t rest = n - i; rest > 0) {
    body(
        i, [rest](const float* p) { return load_first(p, rest); },
        [rest](float* p, Vec v) { store_first(p, v, rest); });
  }
}

void add(float* y, const float* x, int64_t n, float factor) {
  const Vec f = fill(factor);
  for_each_vec(n, [=](int64_t i, auto read, auto write) { write(y + i, (read(y + i) + read(x + i)) * f); });
}

void scale(float* y, const float* x, const float* weight, int64_t n, float factor) {
  const Vec f = fill(factor);
  if (weight != nullptr) {
    for_each_vec(n, [=](int64_t i, auto read, auto write) { write(y + i, read(x + i) * f * read(weight + i)); });
  } else {
    for_each_vec(n, [=](int64_t i, auto read, auto write) { write(y + i, read(x + i) * f); });
  }
}

void gelu_mul(float* y, const float* gate, const float* up, int64_t n) {
  for_each_vec(n, [=](int64_t i, auto read, auto write) { write(y + i, gelu_tanh(read(gate + i)) * read(up + i)); });
}

void softcap(float* y, int64_t n, float cap) {
  const Vec high = fill(cap), low = fill(1.0f / cap);
  for_each_vec(n, [=](int64_t i, auto read, auto write) { write(y + i, high * vtanh(read(y + i) * low)); });
}

// v * 0 is zero, and NaN for infinities and NaN.
bool is_finite(const float* x, int64_t n) {
  Vec zero = fill(0.0f);
  for_each_vec(n, [x, &zero](int64_t i, auto read, auto) { zero = fma(read(x + i), fill(0.0f), zero); });
  return sum(zero) == 0.0f;
}

}  // namespace
}  // namespace gemmantle::cpu
