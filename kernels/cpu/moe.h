// moe.h: which experts a row uses.
//
// Softmax over all experts, then the largest, then renormalised, is softmax over the chosen logits alone. Ids are valid
// whatever the logits hold: a comparison that NaN makes false leaves the lowest free id.
#pragma once

#include <stdint.h>

namespace gemmantle::cpu {
namespace {

void route(int32_t* ids, float* weights, const float* logits, const float* expert_scale, int64_t n, int64_t used) {
  double total = 0.0;
  for (int64_t j = 0; j < used; ++j) {
    int32_t best = -1;
    for (int32_t e = 0; e < n; ++e) {
      bool taken = false;
      for (int64_t i = 0; i < j; ++i) taken = taken || ids[i] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    ids[j] = best;
    total += __builtin_exp(static_cast<double>(logits[best]) - static_cast<double>(logits[ids[0]]));
  }
  for (int64_t j = 0; j < used; ++j) {
    const double p = __builtin_exp(static_cast<double>(logits[ids[j]]) - static_cast<double>(logits[ids[0]]));
    weights[j] = static_cast<float>(p / total * static_cast<double>(expert_scale[ids[j]]));
  }
}

}  // namespace
}  // namespace gemmantle::cpu
