#include "backend/cuda/deterministic_ops.h"

#include <algorithm>

namespace gemmantle::cuda {
namespace {

// Calls part(first, n) for all rows, at most `most` at a time.
template <class Part>
void in_parts(int64_t rows, int64_t most, Part&& part) {
  for (int64_t first = 0; first < rows; first += most) part(first, std::min(most, rows - first));
}

}  // namespace

void DeterministicOps::head(Tensor y, Tensor x, const Weight& w, float cap) {
  in_parts(x.rows, kFewRows,
           [&](int64_t first, int64_t n) { CudaOps::head(y.slice(first, n), x.slice(first, n), w, cap); });
}

void DeterministicOps::experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up,
                               const Weight& down, Tensor scratch) {
  in_parts(x.rows, kFewExpertRows, [&](int64_t first, int64_t n) {
    const Routing part{routing.experts.slice(first, n), routing.weights.slice(first, n)};
    CudaOps::experts(y.slice(first, n), x.slice(first, n), part, gate_up, up, down, scratch);
  });
}

void DeterministicOps::geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down,
                             Tensor scratch) {
  in_parts(x.rows, kFewRows, [&](int64_t first, int64_t n) {
    CudaOps::geglu(y.slice(first, n), x.slice(first, n), gate, up, down, scratch.slice(first, n));
  });
}

}  // namespace gemmantle::cuda
