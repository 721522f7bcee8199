// ops.h: what a machine must be able to do for the graph.
//
// Primitives are pure: a backend writes each. Fusions have a default body made of primitives, which is also their
// definition: a backend overrides one when that pays, and one test per fusion and backend compares the two.
//
// For all ops: outputs may not overlap inputs unless it says so; zero rows are allowed and do nothing; a result of a
// row depends only on that row (and the KV it may see), never on how many rows came along or on the thread count.
#pragma once

#include <cstdint>
#include <span>

#include "backend/batch.h"
#include "backend/weight.h"
#include "core/tensor.h"
#include "kernels/common/sampling.h"

namespace gemmantle {

// Which experts a row uses: [rows, used] ids and the weight of each, in descending order of router probability.
struct Routing {
  Tensor experts;  // i32 [rows, used]
  Tensor weights;  // f32 [rows, used]
};

// What the products of a layer give to its attention: rows of heads of `dim` values.
struct QkvHeads {
  enum class Values { given, normed, normed_keys };  // V as it is, normed, or K normed in its stead; without weights

  Tensor q;     // no columns: left out
  Tensor k, v;  // no columns: left out
  int64_t dim = 0;
  const float* q_norm = nullptr;  // [dim]
  const float* k_norm = nullptr;
  Values values = Values::given;
  float eps = 0;
  Rope rope;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // y[r] = table[ids[r]] * scale. architecture 2.1, 2.2.
  virtual void embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) = 0;

  // y[r, o] = sum_i x[r, i] * w[o, i].
  virtual void linear(Tensor y, Tensor x, const Weight& w) = 0;

  // Every run of `group` columns is normalised by itself: y = x / sqrt(mean(x^2) + eps) * weight. `weight` has `group`
  // values, or is null for a weightless norm. y may be x. architecture 2.3.
  virtual void rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) = 0;

  // y = (y + x) * scale.
  virtual void add(Tensor y, Tensor x, float scale) = 0;

  // y = x * scale * weight (weight per column, or null). y may be x.
  virtual void scale(Tensor y, Tensor x, const float* weight, float scale) = 0;

  // y = gelu_tanh(gate) * up. y may be gate or up. architecture 2.9.
  virtual void gelu_mul(Tensor y, Tensor gate, Tensor up) = 0;

  // y = cap * tanh(y / cap). architecture 2.13.
  virtual void softcap(Tensor y, float cap) = 0;

  // Rotates every head of x [rows, heads * head_dim] in place. architecture 2.5.
  virtual void rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) = 0;

  // kv.k[slots[r]] = k[r]; kv.v[slots[r]] = v[r].
  virtual void store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) = 0;

  // y[r] = softmax(scale * q[r] . K) V over positions [kv_begin[r], kv_end[r]) of the row's sequence. architecture 2.8.
  virtual void attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
                      std::span<const int32_t> sequence, float scale) = 0;

  // Softmax over logits [rows, experts], the `used` largest (ties to the lower id), renormalised, times
  // expert_scale[id]. architecture 2.10.
  virtual void route(Routing routing, Tensor logits, const float* expert_scale) = 0;

  // y[r] = sum_j weights[r, j] * down_e(gelu_tanh(gate_e x[r]) * (up_e x[r])), e = experts[r, j]. `gate_up` holds gate
  // rows first, then up rows, for each expert; or gate alone with `up` apart. scratch: [rows * used, 3 * expert width].
  virtual void experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
                       Tensor scratch) = 0;

  // y[r] = x[rows[r]].
  virtual void copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) = 0;

  // tokens[r] from row r of logits [rows, vocabulary], f32, which stay: the rules of kernels/common/sampling.h.
  virtual void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) = 0;

  // Remembers the smallest `tag` for which x held a value that is not finite; first_not_finite() tells after the step.
  virtual void check_finite(Tensor x, int tag) = 0;

  // Fusions.

  // h += rms_norm(y, post); h *= scale; x = rms_norm(h, next). `next` null: x is left alone. y is overwritten.
  virtual void add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps);

  // Norms and rotates every head of q in place; norms and rotates those of k, norms those of v, and writes both to
  // kv at slots[r]. k and v are overwritten.
  virtual void prepare_qkv(const QkvHeads& heads, KvView kv, std::span<const int32_t> positions,
                           std::span<const int32_t> slots);

  // linear, then softcap where cap > 0.
  virtual void head(Tensor y, Tensor x, const Weight& w, float cap);

  // y = down(gelu_tanh(gate x) * (up x)); scratch [rows, 2 * width].
  virtual void geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch);
};

}  // namespace gemmantle
