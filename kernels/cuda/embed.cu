// embed.cu: rows of a table by token id, of any plane.
// budget: embed_kernel 48
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(Rows y, const __grid_constant__ Matrix table, const int32_t* ids, float scale) {
  begin_in_order();
  const int64_t row = ids[blockIdx.x];
  float* to = y.data + blockIdx.x * y.stride;
  for (int c = static_cast<int>(blockIdx.y * kThreads + threadIdx.x); c < y.cols;
       c += static_cast<int>(gridDim.y) * kThreads) {
    to[c] = row < 0 ? 0.0f : weight_value(table, row, c) * scale;
  }
}

}  // namespace

void embed(Stream stream, Rows y, const Matrix& table, const int32_t* ids, float scale) {
  if (y.rows == 0) return;
  constexpr int kPerThread = 4;
  const dim3 grid(static_cast<unsigned>(y.rows), blocks_for(y.cols, kThreads * kPerThread));
  simt::launch(embed_kernel, grid, kThreads, 0, as_stream(stream), y, table, ids, scale);
}

}  // namespace gemmantle::cuda
