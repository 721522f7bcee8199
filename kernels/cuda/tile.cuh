// tile.cuh: sixteen weight rows times a few activation rows, by one warp, for every plane of weights.
//
// Weights are the left side of the tensor-core product and go from memory to registers in pieces of 16 bytes, each read
// once; activations are the right side and lie in shared memory. A sum does not care in which order its terms come, so
// lane t of a group of four takes whole pieces, and activations are staged in the order in which a piece unpacks:
//   piece   16 bytes of one row: 8 bf16, 16 8-bit or 32 4-bit values
//   chunk   8 values of a piece in four registers, as bf16 pairs; the matching activations are one 16-byte unit
//   turn    128 columns: what a warp loads before it multiplies
// Low-bit values become bf16(scale * q + offset), rounded once, with scale and offset rounded to bf16.
#pragma once

#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {

constexpr int kTileRows = 16;
constexpr int kTurn = 128;
constexpr int kTurnUnits = kTurn / 8;

// Scale and offset of one piece, each twice in a register.
struct PieceScale {
  uint32_t scale = 0;
  uint32_t offset = 0;
};

template <Plane plane>
struct Piece;

template <>
struct Piece<Plane::bf16> {
  static constexpr int kValues = 8;
  static constexpr int kChunks = 1;
  static constexpr bool kInterleaved = false;  // pairs are (0, 1), (2, 3) of each run of four
  static __device__ __forceinline__ int first_run(int) { return 0; }
  static __device__ __forceinline__ int second_run(int) { return 4; }
  static __device__ __forceinline__ void unpack(uint32_t (&pairs)[4], const uint32_t (&words)[4], int, PieceScale) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = words[i];
  }
};

constexpr uint32_t kOnes = 0x3f803f80u;
constexpr uint32_t kMinus128s = 0xc300c300u;
constexpr uint32_t k128s = 0x43004300u;  // bf16 128 has an ulp of 1: the low bits of its mantissa are an integer

template <>
struct Piece<Plane::int8> {
  static constexpr int kValues = 16;
  static constexpr int kChunks = 2;
  static constexpr bool kInterleaved = true;  // pairs are (0, 2), (1, 3) of each run of four
  static __device__ __forceinline__ int first_run(int chunk) { return 8 * chunk; }
  static __device__ __forceinline__ int second_run(int chunk) { return 8 * chunk + 4; }
  static __device__ __forceinline__ void unpack(uint32_t (&pairs)[4], const uint32_t (&words)[4], int chunk,
                                                PieceScale s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = words[2 * chunk + i / 2] >> 8 * (i % 2);
      const uint32_t low_bits = simt::and_or(bytes, 0x007f007fu, k128s);   // 128 + the low seven bits
      const uint32_t base = simt::and_or(bytes, 0x00800080u, kMinus128s);  // -128, or -256 where the sign bit is set
      pairs[i] = simt::fma_bf16x2(simt::fma_bf16x2(low_bits, kOnes, base), s.scale, s.offset);
    }
  }
};

template <>
struct Piece<Plane::int4> {
  static constexpr int kValues = 32;
  static constexpr int kChunks = 4;
  static constexpr bool kInterleaved = true;
  static __device__ __forceinline__ int first_run(int chunk) { return 4 * chunk; }
  static __device__ __forceinline__ int second_run(int chunk) { return 16 + 4 * chunk; }
  static __device__ __forceinline__ void unpack(uint32_t (&pairs)[4], const uint32_t (&words)[4], int chunk,
                                                PieceScale s) {
    constexpr uint32_t kMinus136s = 0xc308c308u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t nibbles = words[chunk] >> (8 * (i % 2) + 4 * (i / 2));
      const uint32_t q = simt::fma_bf16x2(simt::and_or(nibbles, 0x000f000fu, k128s), kOnes, kMinus136s);
      pairs[i] = simt::fma_bf16x2(q, s.scale, s.offset);
    }
  }
};

// Calls visit.operator()<plane>(): where a plane known at run time becomes a type.
template <class Visit>
void with_plane(Plane plane, Visit&& visit) {
  switch (plane) {
    case Plane::bf16: return visit.template operator()<Plane::bf16>();
    case Plane::int8: return visit.template operator()<Plane::int8>();
    case Plane::int4: return visit.template operator()<Plane::int4>();
  }
}

__device__ __forceinline__ int64_t plane_bytes(Plane plane, int64_t values) {
  return plane == Plane::bf16 ? 2 * values : plane == Plane::int8 ? values : values / 2;
}

// Scale and offset of the piece at column `col` of a row whose scales begin at `row_groups`.
template <Plane plane>
__device__ __forceinline__ PieceScale piece_scale(const Matrix& w, int64_t row_groups, int col) {
  PieceScale found;
  if constexpr (plane != Plane::bf16) {
    const int64_t at = row_groups + (col >> (plane == Plane::int8 && w.group == 16 ? 4 : 5));
    const float scale = plane_scale(w.scales, w.wide_scales, at);
    found.scale = simt::pack_bf16(scale, scale);
    if (w.offsets != nullptr) {
      const float offset = plane_scale(w.offsets, w.wide_scales, at);
      found.offset = simt::pack_bf16(offset, offset);
    }
  }
  return found;
}

// A row of a matrix, counted through all its matrices; none: nothing may be loaded.
template <Plane plane>
struct WeightRow {
  const uint8_t* values = nullptr;
  int64_t groups = 0;  // where its scales begin

  __device__ __forceinline__ WeightRow() {}
  __device__ __forceinline__ WeightRow(const Matrix& w, int64_t row)
      : values(w.values + plane_bytes(plane, row * w.padded_cols)),
        groups(plane == Plane::bf16 ? 0 : row * (w.padded_cols / (plane == Plane::int8 && w.group == 16 ? 16 : 32))) {}

  // The piece at column `col`, in four words.
  __device__ __forceinline__ void load(uint32_t (&words)[4], int col) const {
    const uint4 piece = __ldg(reinterpret_cast<const uint4*>(values + plane_bytes(plane, col)));
    words[0] = piece.x, words[1] = piece.y, words[2] = piece.z, words[3] = piece.w;
  }
};

// The eight values of a chunk in their own order: runs of four that begin at first_run(chunk) and second_run(chunk).
template <Plane plane>
__device__ __forceinline__ void unpack_runs(uint2& first, uint2& second, const uint32_t (&words)[4], int chunk,
                                            PieceScale scale) {
  uint32_t pairs[4];
  Piece<plane>::unpack(pairs, words, chunk, scale);
  if constexpr (Piece<plane>::kInterleaved) {
    first = make_uint2(simt::byte_perm(pairs[0], pairs[1], 0x5410), simt::byte_perm(pairs[0], pairs[1], 0x7632));
    second = make_uint2(simt::byte_perm(pairs[2], pairs[3], 0x5410), simt::byte_perm(pairs[2], pairs[3], 0x7632));
  } else {
    first = make_uint2(pairs[0], pairs[1]);
    second = make_uint2(pairs[2], pairs[3]);
  }
}

// What one lane holds of sixteen rows: pieces of rows lane / 4 and lane / 4 + 8, a turn at a time.
template <Plane plane>
struct WeightTile {
  static constexpr int kPieces = kTurn / (4 * Piece<plane>::kValues);
  WeightRow<plane> rows[2];
  uint32_t words[2][kPieces][4];
  PieceScale scale[2][kPieces];

  // Rows [first, first + count) of w, counted through all its matrices; those beyond are zero.
  __device__ __forceinline__ void begin(const Matrix& w, int64_t first, int count) {
    const int r = static_cast<int>(threadIdx.x) % kWarp / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      rows[h] = r + 8 * h < count ? WeightRow<plane>(w, first + r + 8 * h) : WeightRow<plane>();
  }

  // The turn that begins at column `col`; columns beyond the padded ones are zero.
  __device__ __forceinline__ void load(const Matrix& w, int col) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int c = col + (4 * p + lane % 4) * Piece<plane>::kValues;
        scale[h][p] = {};
        if (rows[h].values != nullptr && c < w.padded_cols) {
          rows[h].load(words[h][p], c);
          scale[h][p] = piece_scale<plane>(w, rows[h].groups, c);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) words[h][p][i] = 0;
        }
      }
    }
  }
};

// Asks for this lane's quarter of the turn at column `col` of its two rows to be in L2 soon.
template <Plane plane>
__device__ __forceinline__ void prefetch_turn(const WeightTile<plane>& tile, const Matrix& w, int col) {
  constexpr int kQuarter = kTurn / 4;
  const int c = col + static_cast<int>(threadIdx.x) % 4 * kQuarter;
#pragma unroll
  for (const WeightRow<plane>& row : tile.rows) {
    if (row.values != nullptr && c < w.padded_cols) simt::prefetch_l2(row.values + plane_bytes(plane, c));
  }
}

// Four activations as two bf16 pairs in the order of plane's pairs; zeros from column `cols` on.
template <Plane plane>
__device__ __forceinline__ uint2 stage_run(const float* row, int col, int cols) {
  float v[4];
  const float* from = row + col;
  if (col + 4 <= cols && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const float4 q = *reinterpret_cast<const float4*>(from);
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = col + i < cols ? from[i] : 0.0f;
  }
  if constexpr (Piece<plane>::kInterleaved) return make_uint2(simt::pack_bf16(v[0], v[2]), simt::pack_bf16(v[1], v[3]));
  return make_uint2(simt::pack_bf16(v[0], v[1]), simt::pack_bf16(v[2], v[3]));
}

// Unit `unit` of a staged row that begins at column `first`: eight activations as the pieces of `plane` unpack.
template <Plane plane>
__device__ __forceinline__ uint4 stage_unit(const float* row, int first, int unit, int cols) {
  using P = Piece<plane>;
  const int in_turn = unit % kTurnUnits;
  const int chunk = in_turn / 4 % P::kChunks;
  const int piece = in_turn / 4 / P::kChunks * 4 + in_turn % 4;
  const int col = first + unit / kTurnUnits * kTurn + piece * P::kValues;
  const uint2 low = stage_run<plane>(row, col + P::first_run(chunk), cols);
  const uint2 high = stage_run<plane>(row, col + P::second_run(chunk), cols);
  return make_uint4(low.x, low.y, high.x, high.y);
}

// sum += w * x over one turn. `unit(n, u)` is unit u of this turn of activation row n * 8 + lane / 4, whose four lanes
// ask for their own u.
template <Plane plane, int tiles, int columns, class Unit>
__device__ __forceinline__ void multiply_turn(float (&sum)[tiles][columns][4], const WeightTile<plane> (&w)[tiles],
                                              Unit unit) {
  using P = Piece<plane>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int p = 0; p < WeightTile<plane>::kPieces; ++p) {
#pragma unroll
    for (int chunk = 0; chunk < P::kChunks; ++chunk) {
      uint4 x[columns];
#pragma unroll
      for (int n = 0; n < columns; ++n) x[n] = unit(n, (p * P::kChunks + chunk) * 4 + lane % 4);
#pragma unroll
      for (int m = 0; m < tiles; ++m) {
        uint32_t top[4], bottom[4];
        P::unpack(top, w[m].words[0][p], chunk, w[m].scale[0][p]);
        P::unpack(bottom, w[m].words[1][p], chunk, w[m].scale[1][p]);
        const uint32_t first[4] = {top[0], bottom[0], top[1], bottom[1]};
        const uint32_t second[4] = {top[2], bottom[2], top[3], bottom[3]};
#pragma unroll
        for (int n = 0; n < columns; ++n) {
          const uint32_t low[2] = {x[n].x, x[n].y}, high[2] = {x[n].z, x[n].w};
          simt::mma_bf16(sum[m][n], first, low);
          simt::mma_bf16(sum[m][n], second, high);
        }
      }
    }
  }
}

}  // namespace gemmantle::cuda
