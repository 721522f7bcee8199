// attention.h: one query row over the KV of its sequence, softmax in doubles. architecture 2.8.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace gemmantle::reference {

// q, y: query_heads * dim values. k, v: matrices with `kv_stride` values a slot; position p of the sequence lies in
// slot table[p / block_size] * block_size + p % block_size. `scores` is scratch.
inline void attend(float* y, const float* q, int64_t query_heads, int64_t kv_heads, int64_t dim, const float* k,
                   const float* v, int64_t kv_stride, const int32_t* table, int64_t block_size, int32_t begin,
                   int32_t end, float scale, std::vector<double>& scores, std::vector<double>& sum) {
  const int64_t n = end - begin;
  auto slot = [&](int64_t p) { return table[p / block_size] * block_size + p % block_size; };
  scores.resize(static_cast<size_t>(n));
  sum.resize(static_cast<size_t>(dim));
  for (int64_t h = 0; h < query_heads; ++h) {
    const int64_t head = h / (query_heads / kv_heads) * dim;
    double largest = -INFINITY;
    for (int64_t p = 0; p < n; ++p) {
      const float* key = k + slot(begin + p) * kv_stride + head;
      double dot = 0;
      for (int64_t i = 0; i < dim; ++i) dot += static_cast<double>(q[h * dim + i]) * key[i];
      scores[static_cast<size_t>(p)] = dot * scale;
      largest = std::fmax(largest, dot * scale);
    }
    double total = 0;
    for (double& s : scores) total += s = std::exp(s - largest);
    for (double& x : sum) x = 0;
    for (int64_t p = 0; p < n; ++p) {
      const float* value = v + slot(begin + p) * kv_stride + head;
      for (int64_t i = 0; i < dim; ++i) sum[static_cast<size_t>(i)] += scores[static_cast<size_t>(p)] * value[i];
    }
    for (int64_t i = 0; i < dim; ++i) y[h * dim + i] = static_cast<float>(sum[static_cast<size_t>(i)] / total);
  }
}

}  // namespace gemmantle::reference
