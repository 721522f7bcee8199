// product.cuh: a block's share of a product of few rows: eight warps take the turns of the columns in rotation.
//
// The turn decides the warp, whatever the number of rows, and the eight sums are added in the order of the warps: a row
// has the same bits alone and among up to sixteen.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace gemmantle::cuda {

constexpr int kProductWarps = 8;
constexpr int kProductThreads = kProductWarps * kWarp;

// Activations of `rows` rows, some columns at a time; afterwards the sums of each warp. Rows are four units longer than
// a multiple of eight, so that two rows of four lanes meet no bank twice.
template <int rows, int tiles>
struct ProductShared {
  static constexpr int kCols = rows == 1 ? 8192 : rows == 8 ? 2048 : 1024;
  static_assert(kCols % (kProductWarps * kTurn) == 0);
  union {
    uint4 x[rows][kCols / 8 + 4];
    float sums[kProductWarps][rows][tiles * kTileRows];
  };

  __device__ float total(int row, int output) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kProductWarps; ++w) sum += sums[w][row][output];
    return sum;
  }
};

constexpr int kTurnsAhead = 4;  // of each warp that are asked for while the kernel ahead still runs

// Tile m is rows [first[m], first[m] + left[m]) of w[m]. When it returns, s.total(r, 16 * m + i) is the product of
// activation row r with row i of tile m; rows of x that do not exist count as zeros. The first weights are on their way
// before it waits for the kernel ahead.
template <Plane plane, int rows, int tiles>
__device__ __forceinline__ void product_block(ProductShared<rows, tiles>& s, const Matrix& w0, const Matrix& w1,
                                              const int64_t (&first)[tiles], const int (&left)[tiles], ConstRows x) {
  using Shared = ProductShared<rows, tiles>;
  constexpr int columns = rows > 8 ? 2 : 1;
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp, g = lane / 4;
  float sum[tiles][columns][4] = {};
  WeightTile<plane> w[tiles];
  w[0].begin(w0, first[0], left[0]);
  if constexpr (tiles == 2) w[1].begin(w1, first[1], left[1]);
  const auto load = [&](int col) {
    w[0].load(w0, col);
    if constexpr (tiles == 2) w[1].load(w1, col);
  };
  if constexpr (simt::kBeginsEarly) {
#pragma unroll 1
    for (int turn = warp + kProductWarps; turn <= warp + kTurnsAhead * kProductWarps; turn += kProductWarps) {
      prefetch_turn(w[0], w0, turn * kTurn);
      if constexpr (tiles == 2) prefetch_turn(w[1], w1, turn * kTurn);
    }
  }
  for (int base = 0; base < w0.padded_cols; base += Shared::kCols) {
    const int cols = min(Shared::kCols, w0.padded_cols - base);
    const int units = (cols + kTurn - 1) / kTurn * kTurnUnits;
    int col = warp * kTurn;
    if (col < cols) load(base + col);  // on its way while activations are staged
    if (base == 0) begin_in_order();
    for (int i = t; i < rows * units; i += kProductThreads) {
      const int r = i / units, unit = i % units;
      const bool ok = r < x.rows;
      s.x[r][unit] = stage_unit<plane>(x.data + (ok ? r : 0) * x.stride, base, unit, ok ? x.cols : 0);
    }
    __syncthreads();
    while (col < cols) {
      multiply_turn<plane, tiles, columns>(sum, w, [&](int n, int unit) {
        if (rows == 1 && g > 0) return make_uint4(0, 0, 0, 0);
        return s.x[rows == 1 ? 0 : n * 8 + g][col / 8 + unit];
      });
      col += kProductWarps * kTurn;
      if (col < cols) load(base + col);
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < tiles; ++m) {
#pragma unroll
    for (int n = 0; n < columns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = n * 8 + lane % 4 * 2 + i % 2;
        if (row < rows) s.sums[warp][row][m * kTileRows + g + i / 2 * 8] = sum[m][n][i];
      }
    }
  }
  __syncthreads();
}

}  // namespace gemmantle::cuda
