// gemm.cuh: a block's tile of a product of many rows: asynchronous copies, ldmatrix, tensor cores.
//
// Both sides come in steps of 32 columns and wait in shared memory, `stages` steps deep. bf16 weights are copied
// asynchronously; low-bit ones are loaded before a step is multiplied and unpacked after it. Every element of the
// result is summed over the columns in order, so it does not depend on the tile.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace gemmantle::cuda {

constexpr int kGemmThreads = 256;
constexpr int kGemmStep = 32;

// A tile of x_rows by w_rows, of which a warp takes warp_x by warp_w.
template <int x_rows, int w_rows, int warp_x, int warp_w, int stages>
struct GemmShape {
  static constexpr int kX = x_rows, kW = w_rows, kWarpX = warp_x, kWarpW = warp_w, kStages = stages;
  static_assert(x_rows / warp_x * (w_rows / warp_w) * kWarp == kGemmThreads);
  static_assert(warp_x % 16 == 0 && warp_w % 16 == 0 && stages >= 2);
  static_assert(2 * w_rows <= kGemmThreads, "a thread takes at most one piece of low-bit weights a step");
  // Element (i, j, e) of a lane's sums is row row_of(i, e), column column_of(j, e) of the tile.
  static __device__ __forceinline__ int row_of(int i, int e) {
    const int t = static_cast<int>(threadIdx.x);
    return t / kWarp / (w_rows / warp_w) * warp_x + i * 16 + t % kWarp / 4 + e / 2 * 8;
  }
  static __device__ __forceinline__ int column_of(int j, int e) {
    const int t = static_cast<int>(threadIdx.x);
    return t / kWarp % (w_rows / warp_w) * warp_w + j * 8 + t % 4 * 2 + e % 2;
  }
};

template <class Shape>
struct GemmShared {
  static constexpr int kPadded = kGemmStep + 8;  // rows of 80 bytes: ldmatrix meets no bank twice
  Bf16 x[Shape::kStages][Shape::kX][kPadded], w[Shape::kStages][Shape::kW][kPadded];
};

template <class Shape>
using GemmSums = float[Shape::kWarpX / 16][Shape::kWarpW / 8][4];

// Row `row` of a matrix, counted through all its matrices; none: zeros.
struct MatrixRow {
  const Matrix* matrix = nullptr;
  int64_t row = 0;
};

// sums = the tile of x w^T over `cols` columns, a multiple of kGemmStep. x_row(r) is row r of the tile, [cols] bf16, or
// null for zeros; w_row(r) is a MatrixRow. Both are asked once. `anything` is mapped memory, 16-byte aligned.
template <class Shape, Plane plane, class XRow, class WRow>
__device__ __forceinline__ void gemm_block(GemmShared<Shape>& s, GemmSums<Shape>& sums, int cols, const void* anything,
                                           XRow x_row, WRow w_row) {
  using P = Piece<plane>;
  constexpr int kUnits = kGemmStep / 8;  // 16-byte units of a row's step
  constexpr int kXCopies = (Shape::kX * kUnits + kGemmThreads - 1) / kGemmThreads;
  constexpr int kWCopies = (Shape::kW * kUnits + kGemmThreads - 1) / kGemmThreads;
  constexpr int kPieces = kGemmStep / P::kValues;  // of a row's step, where weights are not bf16
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, unit = t % kUnits * 8;
  const int steps = cols / kGemmStep;

  const Bf16* x_from[kXCopies];
#pragma unroll
  for (int i = 0; i < kXCopies; ++i) {
    const int r = (t + i * kGemmThreads) / kUnits;
    x_from[i] = r < Shape::kX ? x_row(r) : nullptr;
  }
  const Bf16* w_from[kWCopies];
  MatrixRow w_piece;
  WeightRow<plane> w_from_piece;
  const int piece_row = t / kPieces, piece_col = t % kPieces * P::kValues;
  if constexpr (plane == Plane::bf16) {
#pragma unroll
    for (int i = 0; i < kWCopies; ++i) {
      const int r = (t + i * kGemmThreads) / kUnits;
      const MatrixRow from = r < Shape::kW ? w_row(r) : MatrixRow{};
      w_from[i] = from.matrix == nullptr
                      ? nullptr
                      : reinterpret_cast<const Bf16*>(from.matrix->values) + from.row * from.matrix->padded_cols;
    }
  } else if (piece_row < Shape::kW) {
    w_piece = w_row(piece_row);
    if (w_piece.matrix != nullptr) w_from_piece = WeightRow<plane>(*w_piece.matrix, w_piece.row);
  }

  uint32_t words[4];
  PieceScale scale;
  const auto fetch = [&](int step) {  // begins what can be waited for; low-bit weights stay in registers
    const int stage = step % Shape::kStages, col = step * kGemmStep;
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
        const int r = (t + i * kGemmThreads) / kUnits;
        const bool ok = x_from[i] != nullptr;
        if (r < Shape::kX) simt::copy_async(&s.x[stage][r][unit], ok ? x_from[i] + col + unit : anything, ok);
      }
      if constexpr (plane == Plane::bf16) {
#pragma unroll
        for (int i = 0; i < kWCopies; ++i) {
          const int r = (t + i * kGemmThreads) / kUnits;
          const bool ok = w_from[i] != nullptr;
          if (r < Shape::kW) simt::copy_async(&s.w[stage][r][unit], ok ? w_from[i] + col + unit : anything, ok);
        }
      } else {
        scale = {};
        words[0] = words[1] = words[2] = words[3] = 0;
        if (w_piece.matrix != nullptr) {
          w_from_piece.load(words, col + piece_col);
          scale = piece_scale<plane>(*w_piece.matrix, w_from_piece.groups, col + piece_col);
        }
      }
    }
    simt::copy_commit();
  };
  const auto unpack = [&](int step) {
    if constexpr (plane != Plane::bf16) {
      if (step >= steps || piece_row >= Shape::kW) return;
      Bf16* to = &s.w[step % Shape::kStages][piece_row][piece_col];
#pragma unroll
      for (int chunk = 0; chunk < P::kChunks; ++chunk) {
        uint2 first, second;
        unpack_runs<plane>(first, second, words, chunk, scale);
        *reinterpret_cast<uint2*>(to + P::first_run(chunk)) = first;
        *reinterpret_cast<uint2*>(to + P::second_run(chunk)) = second;
      }
    }
  };

  for (int step = 0; step < Shape::kStages - 1; ++step) {
    fetch(step);
    unpack(step);
  }
  const int x_first = Shape::row_of(0, 0) - lane / 4, w_first = Shape::column_of(0, 0) - lane % 4 * 2;
  for (int step = 0; step < steps; ++step) {
    simt::copy_wait<Shape::kStages - 2>();
    __syncthreads();  // this step has arrived, and nobody reads the one before
    fetch(step + Shape::kStages - 1);
    const int stage = step % Shape::kStages;
#pragma unroll
    for (int k = 0; k < kGemmStep; k += 16) {
      uint32_t fx[Shape::kWarpX / 16][4];
#pragma unroll
      for (int i = 0; i < Shape::kWarpX / 16; ++i) {
        simt::ldmatrix_x4(fx[i], &s.x[stage][x_first + i * 16 + lane % 16][k + lane / 16 * 8]);
      }
#pragma unroll
      for (int j = 0; j < Shape::kWarpW / 8; j += 2) {
        uint32_t fw[4];
        simt::ldmatrix_x4(fw, &s.w[stage][w_first + j * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        const uint32_t left[2] = {fw[0], fw[1]}, right[2] = {fw[2], fw[3]};
#pragma unroll
        for (int i = 0; i < Shape::kWarpX / 16; ++i) {
          simt::mma_bf16(sums[i][j], fx[i], left);
          simt::mma_bf16(sums[i][j + 1], fx[i], right);
        }
      }
    }
    unpack(step + Shape::kStages - 1);
  }
}

// Calls visit(row, column, sum) for every element of the tile that this lane holds.
template <class Shape, class Visit>
__device__ __forceinline__ void for_each_sum(const GemmSums<Shape>& sums, Visit visit) {
#pragma unroll
  for (int i = 0; i < Shape::kWarpX / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kWarpW / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) visit(Shape::row_of(i, e), Shape::column_of(j, e), sums[i][j][e]);
    }
  }
}

}  // namespace gemmantle::cuda
