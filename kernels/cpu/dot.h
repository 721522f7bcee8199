// dot.h: products of a few rows with a few rows, held in registers.
//
// One accumulator a product, stepping through the columns a vector at a time, then one sum: the order is the same
// whatever the size of the tile, so a product has the same bits in all of them.
#pragma once

#include "kernels/cpu/vec.h"

namespace gemmantle::cpu {
namespace {

// kTileW x kTileX accumulators, kTileX vectors of x and one of w fit the registers: 32 with AVX-512, 16 otherwise.
constexpr int kTileW = 4;
constexpr int kTileX = kLanes == 16 ? 6 : kLanes == 8 ? 3 : 2;

template <int W, int X>
struct DotTile {
  Vec sums[W][X];

  GEMMANTLE_VEC void clear(DotTile& t) noexcept {
    for (int i = 0; i < W; ++i) {
      for (int j = 0; j < X; ++j) t.sums[i][j] = fill(0.0f);
    }
  }
};

// Adds columns [0, n) of the products; n is a multiple of kLanes but in the last call for a tile. weight(i, k) and
// weight_first(i, k, n) give a vector of row i from column k on.
template <int W, int X, class Weight, class WeightFirst>
GEMMANTLE_VEC void accumulate(DotTile<W, X>& t, Weight weight, WeightFirst weight_first, const float* const* x,
                              int64_t n) noexcept {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    Vec xs[X];
#pragma GCC unroll 8
    for (int j = 0; j < X; ++j) xs[j] = load(x[j] + k);
#pragma GCC unroll 8
    for (int i = 0; i < W; ++i) {
      const Vec w = weight(i, k);
#pragma GCC unroll 8
      for (int j = 0; j < X; ++j) t.sums[i][j] = fma(w, xs[j], t.sums[i][j]);
    }
  }
  if (const int64_t rest = n - k; rest > 0) {
    for (int i = 0; i < W; ++i) {
      const Vec w = weight_first(i, k, rest);
      for (int j = 0; j < X; ++j) t.sums[i][j] = fma(w, load_first(x[j] + k, rest), t.sums[i][j]);
    }
  }
}

// out[i][j] = w[i] . x[j] over n columns of f32.
template <int W, int X>
void dot_tile(const float* const* w, const float* const* x, int64_t n, float (*out)[kTileX]) noexcept {
  DotTile<W, X> t;
  DotTile<W, X>::clear(t);
  const float* rows[W];
  for (int i = 0; i < W; ++i) rows[i] = w[i];
  const float* columns[X];
  for (int j = 0; j < X; ++j) columns[j] = x[j];
  accumulate<W, X>(
      t, [&](int i, int64_t k) { return load(rows[i] + k); },
      [&](int i, int64_t k, int64_t rest) { return load_first(rows[i] + k, rest); }, columns, n);
  for (int i = 0; i < W; ++i) {
    for (int j = 0; j < X; ++j) out[i][j] = sum(t.sums[i][j]);
  }
}

// kTileW rows of w with the first `count` rows of x, 1 <= count <= kTileX.
static inline void dot_tile(const float* const* w, const float* const* x, int count, int64_t n,
                            float (*out)[kTileX]) noexcept {
  switch (count) {
    case 1: return dot_tile<kTileW, 1>(w, x, n, out);
    case 2: return dot_tile<kTileW, 2>(w, x, n, out);
    case 3: return dot_tile < kTileW, kTileX < 3 ? kTileX : 3 > (w, x, n, out);
    case 4: return dot_tile < kTileW, kTileX < 4 ? kTileX : 4 > (w, x, n, out);
    case 5: return dot_tile < kTileW, kTileX < 5 ? kTileX : 5 > (w, x, n, out);
    default: return dot_tile<kTileW, kTileX>(w, x, n, out);
  }
}

}  // namespace
}  // namespace gemmantle::cpu
