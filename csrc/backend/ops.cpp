#include "backend/ops.h"

namespace gemmantle {

void Ops::add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) {
  rms_norm(y, y, post, y.cols, eps);
  add(h, y, scale);
  if (next != nullptr) rms_norm(x, h, next, h.cols, eps);
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
