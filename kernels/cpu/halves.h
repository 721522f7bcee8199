// halves.h: rows of bf16 weights times rows of x rounded to bf16: the products of mode "fast" that need no codes.
//
// One f32 sum a lane runs over the columns, a vector of pairs at a time, and the lanes are added at the end: the order
// depends on the row length only, so a row comes out with the same bits alone and in a batch. Few rows: weights stream
// from where they lie. Some rows: tiles of weight rows as they lie, where those are whole vectors. Many rows: a tile of
// weight rows is copied once to aligned, padded rows in the second-level cache and meets all rows of x there.
#pragma once

#include "kernels/cpu/coded.h"
#include "kernels/cpu/pairs.h"

namespace gemmantle::cpu {
namespace {

#if GEMMANTLE_PAIR_DOTS

constexpr int64_t kHalfLanes = 2 * kLanes;       // columns of a vector
constexpr int64_t kHalfBytes = 2;                // of one column
constexpr int kHalvesW = 4, kHalvesX = 6;        // the tile: a dot product takes six cycles, and two begin in one
constexpr int64_t kHalvesAtOnce = 48;            // vectors of kHalvesW + kHalvesX rows that the first-level cache holds
constexpr int64_t kHalvesTileBytes = 384 << 10;  // of weights: well inside a 1 MiB second-level cache
constexpr int64_t kHalvesTileRows = 64;

bool takes_halves(formats::FormatId format) { return format == formats::FormatId::bf16; }

constexpr int64_t half_vectors(int64_t cols) noexcept { return (cols + kHalfLanes - 1) / kHalfLanes; }

// Zeros follow the last column up to a whole vector.
int64_t halves_bytes(int64_t cols) { return half_vectors(cols) * kVecBytes; }

void encode_halves(uint8_t* halves, const float* x, int64_t cols) {
  to_halves(reinterpret_cast<uint16_t*>(halves), x, cols, 1.0f);
  memset(halves + cols * kHalfBytes, 0, static_cast<size_t>(halves_bytes(cols) - cols * kHalfBytes));
}

template <int X>
void halves_few_rows(const LinearArgs& a, CodedRows x, int64_t first, int64_t last) noexcept {
  const uint8_t* rows[X];
  for (int j = 0; j < X; ++j) rows[j] = coded_row(a, x, j);
  const int64_t whole = a.w.cols / kHalfLanes, rest = a.w.cols % kHalfLanes;
  for (int64_t o = first; o < last; ++o) {
    const uint8_t* w = a.w.data + o * a.w.row_bytes;
    Vec sums[X];
    for (int j = 0; j < X; ++j) sums[j] = fill(0.0f);
    const auto add = [&](int64_t v, Pairs weights) __attribute__((always_inline)) {
      __builtin_prefetch(w + v * kVecBytes + kAskAhead);
#pragma GCC unroll 4
      for (int j = 0; j < X; ++j) sums[j] = dot2(sums[j], weights, load_pairs(rows[j] + v * kVecBytes));
    };
    for (int64_t v = 0; v < whole; ++v) add(v, load_pairs(w + v * kVecBytes));
    if (rest > 0) {
      alignas(kVecBytes) uint8_t tail[kVecBytes] = {};
      memcpy(tail, w + whole * kVecBytes, static_cast<size_t>(rest * kHalfBytes));
      add(whole, load_pairs(tail));
    }
    for (int j = 0; j < X; ++j) put(a, j, o, sum(sums[j]));
  }
}

// Vectors [begin, end) of kHalvesW rows of weights with X rows of x, on top of `sums` but for the first.
template <int X>
void halves_tile(const uint8_t* const (&w)[kHalvesW], const uint8_t* const (&x)[X], int64_t begin, int64_t end,
                 float* sums) noexcept {
  Vec held[kHalvesW][X];
#pragma GCC unroll 4
  for (int i = 0; i < kHalvesW; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < X; ++j) held[i][j] = begin == 0 ? fill(0.0f) : load(sums + (i * kHalvesX + j) * kLanes);
  }
  for (int64_t v = begin; v < end; ++v) {
    Pairs xs[X];
#pragma GCC unroll 6
    for (int j = 0; j < X; ++j) xs[j] = load_pairs(x[j] + v * kVecBytes);
#pragma GCC unroll 4
    for (int i = 0; i < kHalvesW; ++i) {
      const Pairs weights = load_pairs(w[i] + v * kVecBytes);
#pragma GCC unroll 6
      for (int j = 0; j < X; ++j) held[i][j] = dot2(held[i][j], weights, xs[j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kHalvesW; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < X; ++j) store(sums + (i * kHalvesX + j) * kLanes, held[i][j]);
  }
}

// Of a copied row, never a multiple of 4 KiB: the first-level cache is slow with addresses that share their low bits.
static inline int64_t halves_copy_bytes(int64_t cols) noexcept { return (half_vectors(cols) | 1) * kVecBytes; }

static inline int64_t halves_tile_rows(int64_t cols) noexcept {
  const int64_t rows = kHalvesTileBytes / halves_copy_bytes(cols) / kLanes * kLanes;
  return rows < kLanes ? kLanes : rows > kHalvesTileRows ? kHalvesTileRows : rows;
}

// With room to begin at a multiple of kVecBytes.
int64_t halves_scratch(int64_t cols) {
  const int64_t rows = halves_tile_rows(cols);
  return rows * halves_copy_bytes(cols) / 4 + sums_floats(rows, kHalvesX) + kLanes;
}

void halves_many_rows(const LinearArgs& a, CodedRows x, int64_t first, int64_t last, uint8_t* copy) noexcept {
  const bool copies = a.rows > kSomeRows || a.w.cols % kHalfLanes != 0;
  const int64_t bytes = halves_copy_bytes(a.w.cols), tile = copies ? halves_tile_rows(a.w.cols) : kLanes;
  auto* sums = reinterpret_cast<float*>(copy + (copies ? tile * bytes : 0));
  for (int64_t o = first; o < last; o += tile) {
    const int64_t rows = last - o < tile ? last - o : tile;
    for (int64_t i = 0; copies && i < rows; ++i) {
      memcpy(copy + i * bytes, a.w.data + (o + i) * a.w.row_bytes, static_cast<size_t>(a.w.cols * kHalfBytes));
      memset(copy + i * bytes + a.w.cols * kHalfBytes, 0, static_cast<size_t>(bytes - a.w.cols * kHalfBytes));
    }
    const uint8_t* const data = copies ? copy : a.w.data + o * a.w.row_bytes;
    multiply_tile<kHalvesW, kHalvesX>(
        a, x, {data, copies ? bytes : a.w.row_bytes, o, rows, half_vectors(a.w.cols), kHalvesAtOnce}, last, sums,
        []<int X>(const auto& w, const uint8_t* const(&xs)[X], int64_t begin, int64_t end, float* into)
            __attribute__((always_inline)) { halves_tile<X>(w, xs, begin, end, into); });
  }
}

void linear_halves(const LinearArgs* args, CodedRows x, int64_t first, int64_t last, float* scratch) {
  if (args->rows == 0) return;
  if (args->rows > kFewRows) return halves_many_rows(*args, x, first, last, aligned(scratch));
  with_count<kSumsX>(args->rows, [&]<int X>() { halves_few_rows<X>(*args, x, first, last); });
}

constexpr CodedKernels kHalvesKernels = {takes_halves, halves_bytes, encode_halves, halves_scratch, linear_halves};
constexpr const CodedKernels* kHalves = &kHalvesKernels;

#else

constexpr const CodedKernels* kHalves = nullptr;

#endif  // GEMMANTLE_PAIR_DOTS

}  // namespace
}  // namespace gemmantle::cpu
