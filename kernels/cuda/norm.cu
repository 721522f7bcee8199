// norm.cu: RMS norms: of runs of columns, and the pair around the residual stream.
//
// The mean of squares is a sum of up to a few thousand f32 products, each thread's own in order, then a tree.
// budget: rms_norm_kernel 40
// budget: add_norm_kernel 40
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kThreads = 256;

struct Parts {
  float sums[kThreads / kWarp];
};

__device__ __forceinline__ float norm_factor(float squares, int n, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(n) + eps);
}

// A block takes one run of one row.
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(Rows y, ConstRows x, const float* weight, int group, float eps) {
  begin_in_order();
  auto& parts = simt::shared<Parts>();
  const int t = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * group;
  const float* from = x.data + blockIdx.x * x.stride + first;
  float* to = y.data + blockIdx.x * y.stride + first;
  float squares = 0;
  for (int i = t; i < group; i += kThreads) squares += from[i] * from[i];
  const float factor = norm_factor(block_sum<kThreads>(squares, parts.sums), group, eps);
  for (int i = t; i < group; i += kThreads) to[i] = from[i] * factor * (weight == nullptr ? 1.0f : weight[i]);
}

// A block takes a row: the norm of what a sub-layer gave, the residual sum, and the norm the next one starts with.
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(Rows h, ConstRows y, const float* post, float scale, const float* next, Rows x, float eps) {
  begin_in_order();
  auto& parts = simt::shared<Parts>();
  const int t = static_cast<int>(threadIdx.x);
  const float* given = y.data + blockIdx.x * y.stride;
  float* residual = h.data + blockIdx.x * h.stride;
  float squares = 0;
  for (int i = t; i < h.cols; i += kThreads) squares += given[i] * given[i];
  const float factor = norm_factor(block_sum<kThreads>(squares, parts.sums), h.cols, eps);
  squares = 0;
  for (int i = t; i < h.cols; i += kThreads) {  // every thread comes back to its own columns below
    const float sum = (residual[i] + given[i] * factor * post[i]) * scale;
    residual[i] = sum;
    squares += sum * sum;
  }
  if (next == nullptr) return;
  const float after = norm_factor(block_sum<kThreads>(squares, parts.sums), h.cols, eps);
  float* out = x.data + blockIdx.x * x.stride;
  for (int i = t; i < h.cols; i += kThreads) out[i] = residual[i] * after * next[i];
}

}  // namespace

void rms_norm(Stream stream, Rows y, ConstRows x, const float* weight, int group, float eps) {
  if (x.rows == 0 || x.cols == 0) return;
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(x.cols / group));
  simt::launch(rms_norm_kernel, grid, kThreads, sizeof(Parts), as_stream(stream), y, x, weight, group, eps);
}

void add_norm(Stream stream, Rows h, ConstRows y, const float* post, float scale, const float* next, Rows x,
              float eps) {
  if (h.rows == 0) return;
  simt::launch(add_norm_kernel, static_cast<unsigned>(h.rows), kThreads, sizeof(Parts), as_stream(stream), h, y, post,
               scale, next, x, eps);
}

}  // namespace gemmantle::cuda
