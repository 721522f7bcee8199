// shapes.h: the released models as configurations.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/common/float.h"
#include "model/config.h"

namespace gemmantle::gpu_check {

constexpr int64_t kVocabulary = 262144;

struct Shape {
  const char* name;
  int layers, period;  // every period-th layer is a full one
  int64_t hidden;
  int heads, kv_heads, global_kv_heads;  // global: of full layers whose values are their keys; 0: as the others
  int64_t ffn, window;
  int64_t per_layer = 0;
  int shared = 0;  // layers at the end that reuse K and V
  bool double_wide = false;
  int experts = 0, experts_used = 0;
  int64_t expert_ffn = 0;
  int64_t vocabulary = kVocabulary;
};

const Shape kShapes[] = {
    {"E2B", 35, 5, 1536, 8, 1, 0, 6144, 512, 256, 20, true},
    {"E4B", 42, 6, 2560, 8, 2, 0, 10240, 512, 256, 18},
    {"12B", 48, 6, 3840, 16, 8, 1, 15360, 1024},
    {"26B-A4B", 30, 6, 2816, 16, 8, 2, 2112, 1024, 0, 0, false, 128, 8, 704},
    {"31B", 60, 6, 5376, 32, 16, 4, 21504, 1024},
};

// A square root as the released models round it.
inline float rounded_root(int64_t n) { return bf16_to_f32(f32_to_bf16(std::sqrt(static_cast<float>(n)))); }

// The same structure at sizes that take moments to compute anywhere; with `few_heads` also of those, for fibers.
inline Shape scaled_down(Shape s, bool few_heads) {
  s.layers = s.shared > 0 ? 2 * s.period : s.period;
  s.shared = s.shared > 0 ? s.period : 0;
  s.hidden = 64, s.ffn = 64, s.window = 32, s.expert_ffn = s.experts > 0 ? 32 : 0;
  s.experts = std::min(s.experts, 16), s.experts_used = std::min(s.experts_used, 4);
  s.per_layer = std::min<int64_t>(s.per_layer, 32);
  s.vocabulary = 512;
  if (few_heads) {
    s.heads = std::max(4, s.heads / 4), s.kv_heads = std::min(s.kv_heads, 2);
    s.global_kv_heads = std::min(s.global_kv_heads, 1);
  }
  return s;
}

inline ModelConfig config_of(const Shape& s) {
  ModelConfig c;
  c.vocab = s.vocabulary;
  c.hidden = s.hidden;
  c.window = s.window;
  c.final_softcap = 30;
  c.embedding_scale = rounded_root(s.hidden);
  c.per_layer = s.per_layer;
  c.per_layer_scale = rounded_root(s.per_layer);
  c.first_shared = s.layers - s.shared;
  c.experts = s.experts, c.experts_used = s.experts_used, c.expert_ffn = s.expert_ffn;
  int last_owner[kKvGroups] = {};
  for (int l = 0; l < s.layers; ++l) {
    const bool full = (l + 1) % s.period == 0, owns = l < c.first_shared;
    LayerSpec spec;
    spec.sliding = !full;
    spec.value_is_key = full && s.global_kv_heads > 0;
    spec.heads = {s.heads, spec.value_is_key ? s.global_kv_heads : s.kv_heads, full ? 512 : 256};
    spec.window = full ? 0 : s.window;
    if (owns) last_owner[spec.group()] = l;
    spec.kv_source = last_owner[spec.group()];
    spec.rope_theta = full ? 1e6 : 1e4;
    spec.rope_fraction = full ? 0.25 : 1;
    spec.ffn = s.double_wide && !owns ? 2 * s.ffn : s.ffn;
    c.layers.push_back(spec);
  }
  return c;
}

}  // namespace gemmantle::gpu_check
