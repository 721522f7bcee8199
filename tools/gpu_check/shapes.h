// shapes.h: the released models as configurations, and weights of their shapes that hold random numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "kernels/common/float.h"
#include "model/config.h"
#include "model/weights.h"

namespace gemmantle::gpu_check {

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
};

constexpr int64_t kVocabulary = 262144;
const Shape kShapes[] = {
    {"E2B", 35, 5, 1536, 8, 1, 0, 6144, 512, 256, 20, true},
    {"E4B", 42, 6, 2560, 8, 2, 0, 10240, 512, 256, 18},
    {"12B", 48, 6, 3840, 16, 8, 1, 15360, 1024},
    {"26B-A4B", 30, 6, 2816, 16, 8, 2, 2112, 1024, 0, 0, false, 128, 8, 704},
    {"31B", 60, 6, 5376, 32, 16, 4, 21504, 1024},
};

// With `small` the same structure at sizes that fibers can bear.
inline ModelConfig config_of(Shape s, bool small) {
  if (small) {
    s.layers = s.shared > 0 ? 2 * s.period : s.period;
    s.shared = s.shared > 0 ? s.period : 0;
    s.hidden = 64, s.ffn = 64, s.window = 32, s.expert_ffn = s.experts > 0 ? 32 : 0;
    s.heads = std::min(s.heads, 4), s.kv_heads = std::min(s.kv_heads, 2);
    s.global_kv_heads = std::min(s.global_kv_heads, 1);
    s.experts = std::min(s.experts, 16), s.experts_used = std::min(s.experts_used, 4);
    s.per_layer = std::min<int64_t>(s.per_layer, 32);
  }
  ModelConfig c;
  c.vocab = small ? 512 : kVocabulary;
  c.hidden = s.hidden;
  c.window = s.window;
  c.final_softcap = 30;
  c.per_layer = s.per_layer;
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
    spec.ffn = s.double_wide && !owns ? 2 * s.ffn : s.ffn;
    c.layers.push_back(spec);
  }
  return c;
}

// Random weights on a backend. Layers take turns with as many copies of a matrix as exceed any cache, so a model needs
// the memory of a few layers and reads as much as a whole one.
class RandomWeights {
 public:
  RandomWeights(const ModelConfig& config, Backend& backend, bool small)
      : config_(config), backend_(backend), cache_bytes_(small ? 1 : size_t{256} << 20) {
    const int64_t h = config.hidden, width = static_cast<int64_t>(config.layers.size()) * config.per_layer;
    ones_ = vector(std::max<int64_t>(h, 512), 1.0f);
    frequencies_ = vector(256, 0.1f);
    w_.embedding = w_.head = matrix(config.vocab, h);
    w_.first_norm = ones_;
    if (config.per_layer > 0) {
      w_.per_layer_embedding = matrix(config.vocab, width);
      w_.per_layer_model_projection = matrix(width, h);
      w_.per_layer_norm = ones_;
    }
    for (size_t l = 0; l < config.layers.size(); ++l) w_.layers.push_back(layer(static_cast<int>(l)));
  }

  const DecoderWeights& weights() const { return w_; }

  // Bytes of matrices that a step of `rows` rows, the head of `logit_rows`, has to read; rows in `tail` of them run
  // through the layers that reuse K and V.
  double bytes(int64_t rows, int64_t tail) const {
    double sum = tail > 0 ? size_of(w_.head) : 0;
    if (config_.per_layer > 0) sum += size_of(w_.per_layer_model_projection);
    for (size_t l = 0; l < w_.layers.size(); ++l) {
      const int64_t n = static_cast<int>(l) >= config_.first_shared ? tail : rows;
      if (n == 0) break;
      const LayerWeights& w = w_.layers[l];
      for (const Weight& m : {w.q, w.k, w.v, w.o, w.gate, w.up, w.down, w.per_layer_gate, w.per_layer_projection,
                              w.router}) {
        sum += size_of(m);
      }
      sum += share_of_experts(n) * (size_of(w.experts_gate_up) + size_of(w.experts_down));
    }
    return sum;
  }

  // Multiplications and additions of the products of one row through layers [first, last).
  double operations(int first, int last) const {
    double sum = 0;
    for (int l = first; l < last; ++l) {
      const LayerWeights& w = w_.layers[static_cast<size_t>(l)];
      for (const Weight& m : {w.q, w.k, w.v, w.o, w.gate, w.up, w.down, w.per_layer_gate, w.per_layer_projection,
                              w.router}) {
        sum += size_of(m);
      }
      if (config_.has_moe()) {
        sum += (size_of(w.experts_gate_up) + size_of(w.experts_down)) * config_.experts_used / config_.experts;
      }
    }
    return sum;  // two operations for the two bytes of a weight
  }

 private:
  static double size_of(const Weight& m) {
    return m ? 2.0 * static_cast<double>(m.rows) * static_cast<double>(m.cols) * m.count : 0;
  }

  double share_of_experts(int64_t rows) const {
    if (!config_.has_moe()) return 0;
    const double missed = 1.0 - static_cast<double>(config_.experts_used) / config_.experts;
    return 1.0 - std::pow(missed, static_cast<double>(rows));
  }

  const float* vector(int64_t n, float value) {
    const std::vector<float> values(static_cast<size_t>(n), value);
    buffers_.push_back(backend_.upload(values.data(), values.size() * sizeof(float)));
    return reinterpret_cast<const float*>(buffers_.back().data);
  }

  Weight matrix(int64_t rows, int64_t cols, int count = 1) {
    std::vector<Weight>& copies = copies_[{rows, cols, count}];
    size_t& turn = turns_[{rows, cols, count}];
    const size_t bytes = static_cast<size_t>(rows * cols) * 2 * static_cast<size_t>(count);
    const size_t wanted = cache_bytes_ / bytes + 1;
    if (copies.size() < wanted) {
      Weight w;
      w.format = formats::FormatId::bf16;
      w.rows = rows, w.cols = cols, w.count = count;
      w.row_bytes = cols * 2;
      w.data = noise(bytes, cols);
      copies.push_back(backend_.place(w, nullptr));
      return copies.back();
    }
    return copies[turn++ % copies.size()];
  }

  // Random bf16 of a spread that keeps a row of `cols` near one, tiled from one block.
  const std::byte* noise(size_t bytes, int64_t cols) {
    static const std::vector<float> normal = [] {
      std::mt19937 bits(1);
      std::normal_distribution<float> distribution;
      std::vector<float> values((size_t{1} << 20) + 1);  // an odd length: rows do not repeat
      for (float& value : values) value = distribution(bits);
      return values;
    }();
    std::vector<uint16_t> block(normal.size());
    const float spread = 1.0f / std::sqrt(static_cast<float>(cols));
    std::transform(normal.begin(), normal.end(), block.begin(), [&](float v) { return f32_to_bf16(spread * v); });
    if (host_.size() < bytes) host_.resize(bytes);
    const size_t tile = block.size() * sizeof(uint16_t);
    for (size_t at = 0; at < bytes; at += tile) {
      std::memcpy(host_.data() + at, block.data(), std::min(tile, bytes - at));
    }
    return host_.data();
  }

  LayerWeights layer(int l) {
    const LayerSpec& s = config_.layers[static_cast<size_t>(l)];
    const int64_t h = config_.hidden;
    LayerWeights w;
    for (const float** norm : {&w.input_norm, &w.next_norm, &w.q_norm, &w.k_norm, &w.post_attention_norm,
                               &w.pre_ffn_norm, &w.post_ffn_norm, &w.pre_ffn_norm_2, &w.post_ffn_norm_1,
                               &w.post_ffn_norm_2, &w.post_per_layer_norm, &w.router_scale, &w.expert_scale}) {
      *norm = ones_;
    }
    w.rope_freq = frequencies_;
    w.q = matrix(s.heads.q_dim(), h);
    w.o = matrix(h, s.heads.q_dim());
    if (s.kv_source == l) {
      w.k = matrix(s.heads.kv_dim(), h);
      if (!s.value_is_key) w.v = matrix(s.heads.kv_dim(), h);
    }
    w.gate = matrix(s.ffn, h);
    w.up = matrix(s.ffn, h);
    w.down = matrix(h, s.ffn);
    if (config_.per_layer > 0) {
      w.per_layer_gate = matrix(config_.per_layer, h);
      w.per_layer_projection = matrix(h, config_.per_layer);
    }
    if (config_.has_moe()) {
      w.router = matrix(config_.experts, h);
      w.experts_gate_up = matrix(2 * config_.expert_ffn, h, config_.experts);
      w.experts_down = matrix(h, config_.expert_ffn, config_.experts);
    }
    return w;
  }

  using Size = std::tuple<int64_t, int64_t, int>;

  const ModelConfig& config_;
  Backend& backend_;
  size_t cache_bytes_;
  std::map<Size, std::vector<Weight>> copies_;
  std::map<Size, size_t> turns_;
  std::vector<Buffer> buffers_;
  std::vector<std::byte> host_;  // the matrix that is on its way
  const float* ones_ = nullptr;
  const float* frequencies_ = nullptr;
  DecoderWeights w_;
};

}  // namespace gemmantle::gpu_check
