#include "model/activations.h"

#include <algorithm>

namespace gemmantle {

void Activations::cut(int64_t rows, int64_t logit_rows, std::byte* base, int64_t& used) {
  used = 0;
  auto take = [&](int64_t n, int64_t cols, DType dtype = DType::f32) {
    Tensor t{base == nullptr ? nullptr : base + used, dtype, n, cols, cols};
    constexpr int64_t kAlign = 64;
    used += (n * cols * size_bytes(dtype) + kAlign - 1) / kAlign * kAlign;
    return t;
  };
  int64_t q_dim = 0, kv_dim = 0, ffn_dim = 0;
  for (const LayerSpec& s : config_.layers) {
    q_dim = std::max(q_dim, s.heads.q_dim());
    kv_dim = std::max(kv_dim, s.heads.kv_dim());
    ffn_dim = std::max(ffn_dim, s.ffn);
  }
  const int64_t packed = static_cast<int64_t>(config_.layers.size()) * config_.per_layer;
  x = take(rows, config_.hidden);
  normed = take(rows, config_.hidden);
  y = take(rows, config_.hidden);
  branch = take(config_.has_moe() ? rows : 0, config_.hidden);
  q = take(rows, q_dim);
  k = take(rows, kv_dim);
  v = take(rows, kv_dim);
  attended = take(rows, q_dim);
  ffn = take(rows, 2 * ffn_dim);
  per_layer = take(rows, packed);
  context = take(rows, packed);
  gate = take(rows, config_.per_layer);
  router = take(rows, config_.experts);
  routing.experts = take(rows, config_.experts_used, DType::i32);
  routing.weights = take(rows, config_.experts_used);
  expert_scratch = take(rows * config_.experts_used, 3 * config_.expert_ffn);
  x_tail = take(logit_rows, config_.hidden);
  per_layer_tail = take(logit_rows, packed);
  logits = take(logit_rows, config_.vocab);
}

int64_t Activations::bytes_for(int64_t rows, int64_t logit_rows) {
  int64_t used = 0;
  cut(rows, logit_rows, nullptr, used);
  return used;
}

void Activations::reserve(int64_t rows, int64_t logit_rows, Backend& backend) {
  if (rows <= rows_ && logit_rows <= logit_rows_) return;
  rows_ = std::max(rows, rows_);
  logit_rows_ = std::max(logit_rows, logit_rows_);
  buffer_ = {};  // the old buffers first: both together may not fit
  buffer_ = backend.allocate(static_cast<size_t>(bytes_for(rows_, logit_rows_)));
}

void Activations::begin(int64_t rows) {
  int64_t used = 0;
  cut(rows_, logit_rows_, buffer_.data, used);
  for (Tensor* t : {&x, &normed, &y, &q, &k, &v, &attended, &ffn, &per_layer, &context, &gate, &router,
                    &routing.experts, &routing.weights}) {
    t->rows = rows;
  }
  branch.rows = config_.has_moe() ? rows : 0;
  expert_scratch.rows = rows * config_.experts_used;
}

void Activations::begin_tail(int64_t rows) {
  begin(rows);
  x_tail.rows = per_layer_tail.rows = logits.rows = rows;
  x = x_tail;
  per_layer = per_layer_tail;
}

}  // namespace gemmantle
