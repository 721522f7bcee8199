// random_weights.h: weights of a configuration that hold random numbers, the same ones on every backend.
//
// They are well-conditioned, so that rounding alone does not move the logits: attention scores and router logits of
// order one, other norms 1 +- 0.3, matrices of a spread that keeps rows near one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "kernels/common/float.h"
#include "kernels/formats/decode.h"
#include "model/config.h"
#include "model/rope_frequencies.h"
#include "model/weights.h"

namespace gemmantle::gpu_check {

// One format for each kind of plane that products read.
struct NamedFormat {
  formats::FormatId id;
  const char* name;
};
constexpr NamedFormat kFormats[] = {
    {formats::FormatId::bf16, "bf16"}, {formats::FormatId::q8_0, "8 bits"}, {formats::FormatId::q4_0, "4 bits"}};

// About a MiB of blocks of bf16, q8_0 or q4_0 with this standard deviation; an odd number, so that rows do not repeat.
// Every value is a bf16 number, so that kernels which take them as such round nothing.
inline std::vector<std::byte> random_blocks(formats::FormatId format, float deviation) {
  const bool of_bf16 = format == formats::FormatId::bf16, of_4_bits = format == formats::FormatId::q4_0;
  const size_t count = (of_bf16 ? size_t{1} << 20 : size_t{1} << 15) + 1;
  const auto block_bytes = static_cast<size_t>(formats::info(format).block_bytes);
  std::vector<std::byte> blocks(count * block_bytes);
  if (of_bf16) {
    static const std::vector<float> normal = [&] {
      std::mt19937 bits(1);
      std::normal_distribution<float> distribution;
      std::vector<float> values(count);
      for (float& value : values) value = distribution(bits);
      return values;
    }();
    for (size_t i = 0; i < count; ++i) {
      const uint16_t value = f32_to_bf16(deviation * normal[i]);
      std::memcpy(&blocks[2 * i], &value, 2);
    }
    return blocks;
  }
  // A scale of few bits, then codes around zero, of which each is as likely as the next.
  std::mt19937 bits(2);
  for (std::byte& code : blocks) {
    auto found = static_cast<uint8_t>(bits());
    if (of_4_bits) {  // -8 has no counterpart
      if ((found & 0x0f) == 0) found |= 0x08;
      if ((found & 0xf0) == 0) found |= 0x80;
    }
    code = static_cast<std::byte>(found);
  }
  const float of_codes = of_4_bits ? 4.18f : 73.9f;
  const float step = std::exp2(std::round(std::log2(deviation / of_codes)));
  for (size_t i = 0; i < count; ++i) {
    const float share = of_4_bits ? static_cast<float>(12 + bits() % 9) / 16 : static_cast<float>(1 + bits() % 2) / 2;
    const uint16_t scale = f32_to_f16(step * share);
    std::memcpy(&blocks[i * block_bytes], &scale, 2);
  }
  return blocks;
}

class RandomWeights {
 public:
  // Layers take turns with so many matrices of a size that they have `distinct_bytes` together: a model to be timed
  // needs the memory of a few layers and still reads past every cache.
  RandomWeights(const ModelConfig& config, Backend& backend, formats::FormatId format, size_t distinct_bytes)
      : config_(config), backend_(backend), format_(format), distinct_bytes_(distinct_bytes) {
    const int64_t h = config.hidden, layers = static_cast<int64_t>(config.layers.size());
    w_.embedding = w_.head = matrix(config.vocab, h);
    if (config.per_layer > 0) {
      w_.per_layer_embedding = matrix(config.vocab, layers * config.per_layer, 1, config.per_layer);
      w_.per_layer_model_projection = matrix(layers * config.per_layer, h);
      w_.per_layer_norm = norm(config.per_layer);
    }
    for (int l = 0; l < static_cast<int>(layers); ++l) w_.layers.push_back(layer(l));
    w_.first_norm = w_.layers.front().input_norm;
    for (size_t l = 1; l < w_.layers.size(); ++l) w_.layers[l - 1].next_norm = w_.layers[l].input_norm;
    w_.layers.back().next_norm = last_norm();
  }

  const DecoderWeights& weights() const { return w_; }

  // Bytes of matrices that a step of `rows` rows, the head of `logit_rows`, has to read; rows in `tail` of them run
  // through the layers that reuse K and V.
  double bytes(int64_t rows, int64_t tail) const {
    double sum = tail > 0 ? bytes_of(w_.head) : 0;
    if (config_.per_layer > 0) sum += bytes_of(w_.per_layer_model_projection);
    for (size_t l = 0; l < w_.layers.size(); ++l) {
      const int64_t n = static_cast<int>(l) >= config_.first_shared ? tail : rows;
      if (n == 0) break;
      const LayerWeights& w = w_.layers[l];
      for (const Weight& m : dense(w)) sum += bytes_of(m);
      sum += share_of_experts(n) * (bytes_of(w.experts_gate_up) + bytes_of(w.experts_down));
    }
    return sum;
  }

  // Multiplications and additions of the products of one row through layers [first, last).
  double operations(int first, int last) const {
    double sum = 0;
    for (int l = first; l < last; ++l) {
      const LayerWeights& w = w_.layers[static_cast<size_t>(l)];
      for (const Weight& m : dense(w)) sum += 2 * values_of(m);
      if (config_.has_moe()) {
        const double share = static_cast<double>(config_.experts_used) / config_.experts;
        sum += 2 * (values_of(w.experts_gate_up) + values_of(w.experts_down)) * share;
      }
    }
    return sum;
  }

 private:
  static std::vector<Weight> dense(const LayerWeights& w) {
    return {w.q, w.k, w.v, w.o, w.gate, w.up, w.down, w.per_layer_gate, w.per_layer_projection, w.router};
  }
  static double values_of(const Weight& m) {
    return m ? static_cast<double>(m.rows) * static_cast<double>(m.cols) * m.count : 0;
  }
  double bytes_of(const Weight& m) const {
    const formats::FormatInfo info = formats::info(format_);
    return values_of(m) * info.block_bytes / info.group;
  }

  double share_of_experts(int64_t rows) const {
    if (!config_.has_moe()) return 0;
    const double missed = 1.0 - static_cast<double>(config_.experts_used) / config_.experts;
    return 1.0 - std::pow(missed, static_cast<double>(rows));
  }

  const float* vector(const std::vector<float>& values) {
    buffers_.push_back(backend_.upload(values.data(), values.size() * sizeof(float)));
    return reinterpret_cast<const float*>(buffers_.back().data);
  }
  std::vector<float> around(int64_t n, float centre) {
    std::uniform_real_distribution<float> share(0.7f, 1.3f);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = centre * share(bits_);
    return values;
  }
  const float* norm(int64_t n, float centre = 1) { return vector(around(n, centre)); }
  // Of both signs: the table is the head, and a residual that remembers its token would predict that token for ever.
  const float* last_norm() {
    std::vector<float> values = around(config_.hidden, 1);
    for (float& value : values) value = bits_() % 2 == 0 ? value : -value;
    return vector(values);
  }

  // `fan_in`: of how many columns a product sums as many as keep its rows near one; 0: of all.
  Weight matrix(int64_t rows, int64_t cols, int count = 1, int64_t fan_in = 0) {
    std::vector<Weight>& copies = copies_[{rows, cols, count}];
    const formats::FormatInfo info = formats::info(format_);
    Weight w;
    w.format = format_;
    w.rows = rows, w.cols = cols, w.count = count;
    w.row_bytes = cols / info.group * info.block_bytes;
    const auto bytes = static_cast<size_t>(rows * w.row_bytes * count);
    if (copies.size() > distinct_bytes_ / bytes) return copies[turns_[{rows, cols, count}]++ % copies.size()];
    const float spread = 1 / std::sqrt(static_cast<float>(fan_in > 0 ? fan_in : cols));
    const std::shared_ptr<std::byte[]> host = noise(bytes, static_cast<size_t>(info.block_bytes), spread);
    w.data = host.get();
    copies.push_back(backend_.place(w, host));
    return copies.back();
  }

  // The same blocks over and over; each matrix starts with another one.
  std::shared_ptr<std::byte[]> noise(size_t bytes, size_t block_bytes, float deviation) {
    const std::vector<std::byte> blocks = random_blocks(format_, deviation);
    std::shared_ptr<std::byte[]> host(new std::byte[bytes]);
    size_t from = bits_() % (blocks.size() / block_bytes) * block_bytes;
    for (size_t at = 0; at < bytes; from = 0) {
      const size_t n = std::min(blocks.size() - from, bytes - at);
      std::memcpy(host.get() + at, &blocks[from], n);
      at += n;
    }
    return host;
  }

  LayerWeights layer(int l) {
    const LayerSpec& s = config_.layers[static_cast<size_t>(l)];
    const int64_t h = config_.hidden;
    LayerWeights w;
    for (const float** field : {&w.input_norm, &w.post_attention_norm, &w.pre_ffn_norm, &w.post_ffn_norm}) {
      *field = norm(h);
    }
    const float centre = 1 / std::sqrt(std::sqrt(static_cast<float>(s.heads.dim)));
    w.q_norm = norm(s.heads.dim, centre);
    w.rope_freq = vector(rope_frequencies(s));
    w.scalar = std::uniform_real_distribution<float>(0.4f, 1.2f)(bits_);
    w.q = matrix(s.heads.q_dim(), h);
    w.o = matrix(h, s.heads.q_dim());
    if (s.kv_source == l) {
      w.k_norm = norm(s.heads.dim, centre);
      w.k = matrix(s.heads.kv_dim(), h);
      if (!s.value_is_key) w.v = matrix(s.heads.kv_dim(), h);
    }
    w.gate = matrix(s.ffn, h);
    w.up = matrix(s.ffn, h);
    w.down = matrix(h, s.ffn);
    if (config_.per_layer > 0) {
      w.per_layer_gate = matrix(config_.per_layer, h);
      w.per_layer_projection = matrix(h, config_.per_layer);
      w.post_per_layer_norm = norm(h);
    }
    if (config_.has_moe()) {
      for (const float** field : {&w.pre_ffn_norm_2, &w.post_ffn_norm_1, &w.post_ffn_norm_2}) *field = norm(h);
      w.router_scale = norm(h, std::sqrt(static_cast<float>(h)));  // the router divides by it
      w.expert_scale = norm(config_.experts);
      w.router = matrix(config_.experts, h);
      w.experts_gate_up = matrix(2 * config_.expert_ffn, h, config_.experts);
      w.experts_down = matrix(h, config_.expert_ffn, config_.experts);
    }
    return w;
  }

  using Size = std::tuple<int64_t, int64_t, int>;

  const ModelConfig& config_;
  Backend& backend_;
  formats::FormatId format_;
  size_t distinct_bytes_;
  std::mt19937 bits_{3};
  std::map<Size, std::vector<Weight>> copies_;
  std::map<Size, size_t> turns_;
  std::vector<Buffer> buffers_;
  DecoderWeights w_;
};

}  // namespace gemmantle::gpu_check
