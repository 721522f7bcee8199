#include "backend/ops.h"

namespace gemmantle {

void Ops::add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) {
  rms_norm(y, y, post, y.cols, eps);
  add(h, y, scale);
  if (next != nullptr) rms_norm(x, h, next, h.cols, eps);
}

void Ops::prepare_qkv(const QkvHeads& heads, KvView kv, std::span<const int32_t> positions,
                      std::span<const int32_t> slots) {
  const auto& [q, k, v, dim, q_norm, k_norm, values, eps, turn] = heads;
  if (q.cols > 0) {
    rms_norm(q, q, q_norm, dim, eps);
    rope(q, dim, turn, positions);
  }
  if (k.cols == 0) return;
  if (values != QkvHeads::Values::given) {
    rms_norm(v, values == QkvHeads::Values::normed ? v : k, nullptr, dim, eps);  // before K's own norm and rotation
  }
  rms_norm(k, k, k_norm, dim, eps);
  rope(k, dim, turn, positions);
  store_kv(kv, k, v, slots);
}

void Ops::head(Tensor y, Tensor x, const Weight& w, float cap) {
  linear(y, x, w);
  if (cap > 0) softcap(y, cap);
}

void Ops::geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) {
  const Tensor g = scratch.columns(0, gate.rows);
  const Tensor u = scratch.columns(gate.rows, up.rows);
  linear(g, x, gate);
  linear(u, x, up);
  gelu_mul(g, g, u);
  linear(y, g, down);
}

}  // namespace gemmantle
