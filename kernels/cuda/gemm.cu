// gemm.cu: products of many rows, and low-bit rows unpacked to bf16.
//
// Large tiles are bound by tensor cores, small ones are for a step of a few dozen rows, whose cost is the weights.
// budget: gemm_kernel 128
// budget: unpack_kernel 40
#include "kernels/cuda/gemm.cuh"

namespace gemmantle::cuda {
namespace {

using Large = GemmShape<128, 128, 64, 32, 3>;
using Small = GemmShape<64, 32, 16, 16, 4>;
static_assert(sizeof(GemmShared<Large>) <= 99 * 1024 && sizeof(GemmShared<Small>) <= 48 * 1024);

// Blocks that share weights follow each other, so that they find them in L2.
template <class Shape>
__global__ void __launch_bounds__(kGemmThreads, 2)
    gemm_kernel(Rows y, View<const Bf16> x, const __grid_constant__ Matrix w, float cap) {
  begin_in_order();
  auto& s = simt::shared<GemmShared<Shape>>();
  const int x0 = static_cast<int>(blockIdx.x) * Shape::kX, w0 = static_cast<int>(blockIdx.y) * Shape::kW;
  GemmSums<Shape> sums = {};
  gemm_block<Shape, Plane::bf16>(
      s, sums, w.padded_cols, w.values, [&](int r) { return x0 + r < x.rows ? x.data + (x0 + r) * x.stride : nullptr; },
      [&](int r) {
        return w0 + r < w.rows ? MatrixRow{&w, w0 + r} : MatrixRow{};
      });
  for_each_sum<Shape>(sums, [&](int row, int column, float sum) {
    if (x0 + row < y.rows && w0 + column < y.cols) y.data[(x0 + row) * y.stride + w0 + column] = capped(sum, cap);
  });
}

constexpr int kUnpackThreads = 256;

// A thread takes a piece.
template <Plane plane>
__global__ void __launch_bounds__(kUnpackThreads) unpack_kernel(View<Bf16> out, const Matrix w, int64_t first) {
  begin_in_order();
  using P = Piece<plane>;
  const int pieces = w.padded_cols / P::kValues;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kUnpackThreads + threadIdx.x;
  if (i >= static_cast<int64_t>(out.rows) * pieces) return;
  const int64_t row = i / pieces;
  const int col = static_cast<int>(i % pieces) * P::kValues;
  const WeightRow<plane> from(w, first + row);
  uint32_t words[4];
  from.load(words, col);
  const PieceScale scale = piece_scale<plane>(w, from.groups, col);
  Bf16* to = out.data + row * out.stride + col;
#pragma unroll
  for (int chunk = 0; chunk < P::kChunks; ++chunk) {
    uint2 low, high;
    unpack_runs<plane>(low, high, words, chunk, scale);
    *reinterpret_cast<uint2*>(to + P::first_run(chunk)) = low;
    *reinterpret_cast<uint2*>(to + P::second_run(chunk)) = high;
  }
}

template <class Shape>
void start(Stream stream, Rows y, View<const Bf16> x, const Matrix& w, float cap) {
  const dim3 grid(blocks_for(x.rows, Shape::kX), blocks_for(w.rows, Shape::kW));
  simt::launch(gemm_kernel<Shape>, grid, kGemmThreads, sizeof(GemmShared<Shape>), as_stream(stream), y, x, w, cap);
}

}  // namespace

void gemm(Stream stream, Rows y, View<const Bf16> x, View<const Bf16> w, float cap) {
  if (x.rows == 0) return;
  Matrix matrix;
  matrix.rows = w.rows;
  matrix.cols = matrix.padded_cols = w.cols;
  matrix.values = reinterpret_cast<const uint8_t*>(w.data);
  x.rows <= Small::kX ? start<Small>(stream, y, x, matrix, cap) : start<Large>(stream, y, x, matrix, cap);
}

void unpack_rows(Stream stream, View<Bf16> out, const Matrix& w, int64_t first) {
  if (out.rows == 0) return;
  with_plane(w.plane, [&]<Plane plane>() {
    const int64_t pieces = static_cast<int64_t>(out.rows) * (w.padded_cols / Piece<plane>::kValues);
    simt::launch(unpack_kernel<plane>, blocks_for(pieces, kUnpackThreads), kUnpackThreads, 0, as_stream(stream), out, w,
                 first);
  });
}

}  // namespace gemmantle::cuda
