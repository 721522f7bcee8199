// elementwise.cu: what happens to each value by itself, and copies of rows.
// budget: add_kernel 48
// budget: scale_kernel 48
// budget: gelu_mul_kernel 48
// budget: softcap_kernel 48
// budget: copy_rows_kernel 48
// budget: round_rows_kernel 48
// budget: check_finite_kernel 48
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kThreads = 256;

// y[r, c] = f(r, c): a thread takes every (gridDim.y * kThreads)-th column of one row.
template <class F>
__device__ __forceinline__ void for_columns(int cols, F&& f) {
  const int step = static_cast<int>(gridDim.y) * kThreads;
  for (int c = static_cast<int>(blockIdx.y * kThreads + threadIdx.x); c < cols; c += step) f(c);
}

dim3 grid_for(int rows, int cols) {
  constexpr int kPerThread = 4;
  return dim3(static_cast<unsigned>(rows), blocks_for(cols, kThreads * kPerThread));
}

__global__ void __launch_bounds__(kThreads) add_kernel(Rows y, ConstRows x, float scale) {
  begin_in_order();
  float* to = y.data + blockIdx.x * y.stride;
  const float* from = x.data + blockIdx.x * x.stride;
  for_columns(y.cols, [&](int c) { to[c] = (to[c] + from[c]) * scale; });
}

__global__ void __launch_bounds__(kThreads) scale_kernel(Rows y, ConstRows x, const float* weight, float scale) {
  begin_in_order();
  float* to = y.data + blockIdx.x * y.stride;
  const float* from = x.data + blockIdx.x * x.stride;
  for_columns(y.cols, [&](int c) { to[c] = from[c] * scale * (weight == nullptr ? 1.0f : weight[c]); });
}

__global__ void __launch_bounds__(kThreads) gelu_mul_kernel(Rows y, ConstRows gate, ConstRows up) {
  begin_in_order();
  float* to = y.data + blockIdx.x * y.stride;
  const float* g = gate.data + blockIdx.x * gate.stride;
  const float* u = up.data + blockIdx.x * up.stride;
  for_columns(y.cols, [&](int c) { to[c] = gelu_tanh(g[c]) * u[c]; });
}

__global__ void __launch_bounds__(kThreads) softcap_kernel(Rows y, float cap) {
  begin_in_order();
  float* to = y.data + blockIdx.x * y.stride;
  for_columns(y.cols, [&](int c) { to[c] = capped(to[c], cap); });
}

__global__ void __launch_bounds__(kThreads) copy_rows_kernel(Rows y, ConstRows x, const int32_t* source) {
  begin_in_order();
  float* to = y.data + blockIdx.x * y.stride;
  const float* from = x.data + source[blockIdx.x] * x.stride;
  for_columns(y.cols, [&](int c) { to[c] = from[c]; });
}

__global__ void __launch_bounds__(kThreads) round_rows_kernel(View<Bf16> y, ConstRows x) {
  begin_in_order();
  Bf16* to = y.data + blockIdx.x * y.stride;
  const float* from = x.data + blockIdx.x * x.stride;
  for_columns(y.cols, [&](int c) { to[c] = c < x.cols ? to_bf16(from[c]) : Bf16{0}; });
}

__global__ void __launch_bounds__(kThreads) check_finite_kernel(ConstRows x, int tag, int32_t* smallest) {
  begin_in_order();
  const float* from = x.data + blockIdx.x * x.stride;
  bool bad = false;
  for_columns(x.cols, [&](int c) { bad |= !(fabsf(from[c]) <= 3.402823466e38f); });
  if (bad) atomicMin(smallest, static_cast<int32_t>(tag));
}

}  // namespace

void add(Stream stream, Rows y, ConstRows x, float scale) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(add_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, x, scale);
}

void scale(Stream stream, Rows y, ConstRows x, const float* weight, float factor) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(scale_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, x, weight, factor);
}

void gelu_mul(Stream stream, Rows y, ConstRows gate, ConstRows up) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(gelu_mul_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, gate, up);
}

void softcap(Stream stream, Rows y, float cap) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(softcap_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, cap);
}

void copy_rows(Stream stream, Rows y, ConstRows x, const int32_t* source) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(copy_rows_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, x, source);
}

void round_rows(Stream stream, View<Bf16> y, ConstRows x) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(round_rows_kernel, grid_for(y.rows, y.cols), kThreads, 0, as_stream(stream), y, x);
}

void check_finite(Stream stream, ConstRows x, int tag, int32_t* smallest) {
  if (x.rows == 0 || x.cols == 0) return;
  simt::launch(check_finite_kernel, grid_for(x.rows, x.cols), kThreads, 0, as_stream(stream), x, tag, smallest);
}

}  // namespace gemmantle::cuda
