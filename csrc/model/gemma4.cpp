#include "model/gemma4.h"

#include <cmath>

namespace gemmantle {
namespace {

constexpr float kNoScale = 1.0f;

// The extra input of every layer, from token ids and from what enters layer 0. architecture 2.2.
void per_layer_inputs(Ops& ops, const ModelConfig& c, const DecoderWeights& w, Activations& a, const Batch& b) {
  ops.embed(a.per_layer, w.per_layer_embedding, b.ids, c.per_layer_scale);
  ops.linear(a.context, a.x, w.per_layer_model_projection);
  ops.scale(a.context, a.context, nullptr, 1.0f / std::sqrt(static_cast<float>(c.hidden)));
  ops.rms_norm(a.context, a.context, w.per_layer_norm, c.per_layer, c.norm_eps);
  ops.add(a.per_layer, a.context, std::sqrt(0.5f));
}

enum class Products { q, kv, qkv };

// Q of rows that attend, K and V of rows that are looked at, ready for attention. architecture 2.4 to 2.6.
void project(Ops& ops, const ModelConfig& c, const LayerSpec& s, const LayerWeights& w, Activations& a, KvView kv,
             const Batch& b, Products wanted) {
  QkvHeads heads;
  heads.dim = s.heads.dim;
  heads.q_norm = w.q_norm;
  heads.k_norm = w.k_norm;
  heads.eps = c.norm_eps;
  heads.rope = {w.rope_freq};
  if (wanted != Products::q) {
    heads.k = a.k.columns(0, s.heads.kv_dim());
    heads.v = a.v.columns(0, s.heads.kv_dim());
    ops.linear(heads.k, a.normed, w.k);
    if (s.value_is_key) {
      heads.values = QkvHeads::Values::normed_keys;
    } else {
      ops.linear(heads.v, a.normed, w.v);
      if (c.family == Family::gemma4) heads.values = QkvHeads::Values::normed;
    }
  }
  if (wanted != Products::kv) {
    heads.q = a.q.columns(0, s.heads.q_dim());
    ops.linear(heads.q, a.normed, w.q);
  }
  ops.prepare_qkv(heads, kv, b.positions, b.groups[s.group()].slots);
}

// x += norm(attention), and the norm before the MLP. architecture 2.7, 2.8.
void attention(Ops& ops, const ModelConfig& c, const LayerSpec& s, const LayerWeights& w, Activations& a, KvView kv,
               const Batch& b) {
  const Tensor q = a.q.columns(0, s.heads.q_dim());
  const Tensor attended = a.attended.columns(0, s.heads.q_dim());
  ops.attend(attended, q, s.heads, kv, b.groups[s.group()], b.sequence, c.attention_scale);
  ops.linear(a.y, attended, w.o);
  ops.add_norm(a.x, a.y, w.post_attention_norm, kNoScale, w.pre_ffn_norm, a.normed, c.norm_eps);
}

// The routed branch beside the dense one; y becomes the sum of both. architecture 2.10.
void mixture(Ops& ops, const ModelConfig& c, const LayerWeights& w, Activations& a) {
  ops.rms_norm(a.y, a.y, w.post_ffn_norm_1, c.hidden, c.norm_eps);
  ops.rms_norm(a.branch, a.x, nullptr, c.hidden, c.norm_eps);  // the router reads the residual itself
  ops.scale(a.branch, a.branch, w.router_scale, 1.0f / std::sqrt(static_cast<float>(c.hidden)));
  ops.linear(a.router, a.branch, w.router);
  ops.route(a.routing, a.router, w.expert_scale);
  ops.rms_norm(a.normed, a.x, w.pre_ffn_norm_2, c.hidden, c.norm_eps);
  ops.experts(a.branch, a.normed, a.routing, w.experts_gate_up, w.experts_up, w.experts_down, a.expert_scratch);
  ops.rms_norm(a.branch, a.branch, w.post_ffn_norm_2, c.hidden, c.norm_eps);
  ops.add(a.y, a.branch, kNoScale);
}

// x after the MLP, the per-layer branch and the layer scalar; normed by `next`. architecture 2.9 to 2.12.
void feed_forward(Ops& ops, const ModelConfig& c, int layer, const LayerWeights& w, Activations& a, const float* next) {
  ops.geglu(a.y, a.normed, w.gate, w.up, w.down, a.ffn);
  if (c.has_moe()) mixture(ops, c, w, a);
  if (c.per_layer == 0) {
    ops.add_norm(a.x, a.y, w.post_ffn_norm, w.scalar, next, a.normed, c.norm_eps);
    return;
  }
  ops.add_norm(a.x, a.y, w.post_ffn_norm, kNoScale, nullptr, a.normed, c.norm_eps);
  ops.linear(a.gate, a.x, w.per_layer_gate);
  ops.gelu_mul(a.gate, a.gate, a.per_layer.columns(layer * c.per_layer, c.per_layer));
  ops.linear(a.y, a.gate, w.per_layer_projection);
  ops.add_norm(a.x, a.y, w.post_per_layer_norm, w.scalar, next, a.normed, c.norm_eps);
}

}  // namespace

const Batch& rows_at(const ModelConfig& config, int layer, const Batch& all, const Batch& tail) {
  return layer >= config.first_shared && tail.rows() < all.rows() ? tail : all;
}

void decoder_forward(Ops& ops, const ModelConfig& c, const DecoderWeights& w, Activations& a, const KvCache& kv,
                     const Stretch& stretch, const Batch& all, const Batch& tail) {
  const Batch* batch = &rows_at(c, stretch.first, all, tail);
  a.begin(batch->rows());
  if (stretch.embeds) {
    ops.embed(a.x, w.embedding, all.ids, c.embedding_scale);
    ops.check_finite(a.x, 0);
    if (c.per_layer > 0) per_layer_inputs(ops, c, w, a, all);
    ops.rms_norm(a.normed, a.x, w.first_norm, c.hidden, c.norm_eps);
  }
  for (int l = stretch.first; l < stretch.last; ++l) {
    const LayerSpec& spec = c.layers[static_cast<size_t>(l)];
    const LayerWeights& layer = w.layers[static_cast<size_t>(l)];
    Products products = spec.kv_source == l ? Products::qkv : Products::q;
    // Nobody reads more KV of these rows, so from here on only those with wanted logits go on. architecture 1.6.
    if (l == c.first_shared - 1 && tail.rows() < all.rows()) {
      if (products == Products::qkv) project(ops, c, spec, layer, a, kv.view(l), all, Products::kv);
      products = Products::q;
      if (tail.rows() == 0) return;
      ops.copy_rows(a.x_tail.slice(0, tail.rows()), a.x, all.logit_rows);
      if (c.per_layer > 0) ops.copy_rows(a.per_layer_tail.slice(0, tail.rows()), a.per_layer, all.logit_rows);
      a.begin_tail(tail.rows());
      ops.rms_norm(a.normed, a.x, layer.input_norm, c.hidden, c.norm_eps);
      batch = &tail;
    }
    project(ops, c, spec, layer, a, kv.view(l), *batch, products);
    attention(ops, c, spec, layer, a, kv.view(l), *batch);
    feed_forward(ops, c, l, layer, a, layer.next_norm);
    ops.check_finite(a.x, l + 1);
  }
  if (!stretch.has_head) return;
  const Tensor logits = a.logits.slice(0, batch->rows());
  ops.head(logits, a.normed, w.head, c.final_softcap);
}

}  // namespace gemmantle
