// moe.h: which experts a row uses, and how much. architecture 2.10.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace gemmantle::reference {

// Softmax over all experts, the `used` largest in descending order (ties to the lower id), renormalised, times
// expert_scale. Softmax then top then renormalise is the softmax over the chosen ones.
inline void route(int32_t* ids, float* weights, const float* logits, int64_t experts, int64_t used,
                  const float* expert_scale, std::vector<uint8_t>& taken) {
  taken.assign(static_cast<size_t>(experts), 0);
  for (int64_t j = 0; j < used; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      if (!taken[static_cast<size_t>(e)] && (best < 0 || logits[e] > logits[best])) best = e;
    }
    taken[static_cast<size_t>(best)] = 1;
    ids[j] = static_cast<int32_t>(best);
  }
  double total = 0;
  for (int64_t j = 0; j < used; ++j) total += std::exp(static_cast<double>(logits[ids[j]]) - logits[ids[0]]);
  for (int64_t j = 0; j < used; ++j) {
    const double p = std::exp(static_cast<double>(logits[ids[j]]) - logits[ids[0]]) / total;
    weights[j] = static_cast<float>(p * expert_scale[ids[j]]);
  }
}

}  // namespace gemmantle::reference
