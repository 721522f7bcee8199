// activations.h: the buffers of a step, cut once from one allocation by a size table.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "model/config.h"

namespace gemmantle {

class Activations {
 public:
  explicit Activations(const ModelConfig& config) : config_(config) {}

  // Room for `rows` rows and `logit_rows` wanted ones; keeps what is there when it is enough.
  void reserve(int64_t rows, int64_t logit_rows, Backend& backend);
  // What reserve() allocates for so many rows.
  int64_t bytes_for(int64_t rows, int64_t logit_rows);
  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes); }

  // Names every tensor for a step of this many rows.
  void begin(int64_t rows);
  // The same buffers for the rows that go on, `x` and `per_layer` at their second places.
  void begin_tail(int64_t rows);

  Tensor x;               // [rows, hidden] the residual stream
  Tensor normed;          // [rows, hidden] x after the norm of the sub-layer at hand
  Tensor y;               // [rows, hidden] what a sub-layer gives back
  Tensor branch;          // [rows, hidden] the routed branch of a mixture
  Tensor q, k, v;         // [rows, heads * dim] widest layer; cut with columns()
  Tensor attended;        // [rows, query heads * dim]
  Tensor ffn;             // [rows, 2 * widest MLP]
  Tensor per_layer;       // [rows, layers * per_layer]
  Tensor context;         // [rows, layers * per_layer] scratch of the per-layer inputs
  Tensor gate;            // [rows, per_layer]
  Tensor router;          // [rows, experts]
  Routing routing;        // [rows, experts used]
  Tensor expert_scratch;  // [rows * experts used, 3 * expert width]
  Tensor logits;          // [logit rows, vocab]

  Tensor x_tail, per_layer_tail;  // where copy_rows puts the rows that go on

 private:
  void cut(int64_t rows, int64_t logit_rows, std::byte* base, int64_t& used);

  const ModelConfig& config_;
  int64_t rows_ = 0;
  int64_t logit_rows_ = 0;
  Buffer buffer_;
};

}  // namespace gemmantle
