// linear.h: rows of weights of any format times rows of f32, in f32.
//
// One row of x (decode): eight weight rows at a time are widened in pieces that stay in the first-level cache, dense
// formats straight into registers. More rows (prefill): a tile of weight rows is widened once and multiplied with all
// rows of x by the register tile of dot.h. Both take the columns in the same order, so they agree to the bit.
#pragma once

#include "kernels/cpu/dot.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/unpack.h"
#include "kernels/formats/decode.h"

namespace gemmantle::cpu {
namespace {

constexpr int kRowsAtOnce = 8;              // weight rows of the one-row path: enough sums to hide the latency of fma
constexpr int64_t kPiece = 256;             // columns widened at once: a multiple of every group and vector
constexpr int64_t kTileFloats = 128 << 10;  // widened tile: half of a 1 MiB second-level cache

template <class F>
constexpr bool kDense = F::group == 1;

template <class F>
GEMMANTLE_VEC Vec load_dense(const uint8_t* p) noexcept {
  if constexpr (F::id == formats::FormatId::f32) return load(p);
  if constexpr (F::id == formats::FormatId::bf16) return load_bf16(p);
  if constexpr (F::id == formats::FormatId::f16) return load_f16(p);
}

template <class F>
GEMMANTLE_VEC Vec load_dense_first(const uint8_t* p, int64_t n) noexcept {
  if constexpr (F::id == formats::FormatId::f32) return load_first(p, n);
  if constexpr (F::id == formats::FormatId::bf16) return load_bf16_first(p, n);
  if constexpr (F::id == formats::FormatId::f16) return load_f16_first(p, n);
}

// Columns [first, first + n) of a row; both are multiples of the group.
template <class F>
static inline void widen(const uint8_t* row, int64_t first, int64_t n, float* values) noexcept {
  if constexpr (kDense<F>) {
    const uint8_t* p = row + first * F::block_bytes;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(values + i, load_dense<F>(p + i * F::block_bytes));
    if (i < n) store_first(values + i, load_dense_first<F>(p + i * F::block_bytes, n - i), n - i);
  } else {
    const uint8_t* block = row + first / F::group * F::block_bytes;
    for (int64_t i = 0; i < n; i += F::group, block += F::block_bytes) unpack<F>(block, values + i);
  }
}

static inline float* y_at(const LinearArgs& a, int64_t r, int64_t o) noexcept {
  return a.y + (a.to != nullptr ? a.to[r] : r) * a.y_stride + o;
}

static inline void put(const LinearArgs& a, int64_t r, int64_t o, float value) noexcept {
  float* y = y_at(a, r, o);
  *y = a.factor != nullptr ? *y + a.factor[r] * value : value;
}

// The same for kLanes columns from o on.
GEMMANTLE_VEC void put_each(const LinearArgs& a, int64_t r, int64_t o, Vec values) noexcept {
  float* y = y_at(a, r, o);
  store(y, a.factor != nullptr ? load(y) + fill(a.factor[r]) * values : values);
}

static inline const float* x_row(const LinearArgs& a, int64_t r) noexcept {
  return a.x + (a.from != nullptr ? a.from[r] : r) * a.x_stride;
}

template <class F>
void linear_one_row(const LinearArgs& a, int64_t first, int64_t last, float* scratch) noexcept {
  const float* x = x_row(a, 0);
  for (int64_t o = first; o < last; o += kRowsAtOnce) {
    const uint8_t* rows[kRowsAtOnce];
    for (int i = 0; i < kRowsAtOnce; ++i) {
      rows[i] = a.w.data + (o + i < last ? o + i : last - 1) * a.w.row_bytes;
    }
    DotTile<kRowsAtOnce, 1> t;
    DotTile<kRowsAtOnce, 1>::clear(t);
    if constexpr (kDense<F>) {
      accumulate<kRowsAtOnce, 1>(
          t, [&](int i, int64_t k) { return load_dense<F>(rows[i] + k * F::block_bytes); },
          [&](int i, int64_t k, int64_t n) { return load_dense_first<F>(rows[i] + k * F::block_bytes, n); }, &x,
          a.w.cols);
    } else {
      for (int64_t c = 0; c < a.w.cols; c += kPiece) {
        const int64_t n = a.w.cols - c < kPiece ? a.w.cols - c : kPiece;
        for (int i = 0; i < kRowsAtOnce; ++i) widen<F>(rows[i], c, n, scratch + i * kPiece);
        const float* piece = x + c;
        accumulate<kRowsAtOnce, 1>(
            t, [&](int i, int64_t k) { return load(scratch + i * kPiece + k); },
            [&](int i, int64_t k, int64_t rest) { return load_first(scratch + i * kPiece + k, rest); }, &piece, n);
      }
    }
    for (int i = 0; i < kRowsAtOnce && o + i < last; ++i) put(a, 0, o + i, sum(t.sums[i][0]));
  }
}

static inline int64_t tile_rows(int64_t cols) noexcept {
  const int64_t rows = kTileFloats / (cols > 0 ? cols : 1) / kTileW * kTileW;
  return rows < kTileW ? kTileW : rows > 64 ? 64 : rows;
}

void linear_many_rows(const LinearArgs& a, int64_t first, int64_t last, float* scratch) noexcept {
  const int64_t tile = tile_rows(a.w.cols);
  for (int64_t o0 = first; o0 < last; o0 += tile) {
    const int64_t rows = last - o0 < tile ? last - o0 : tile;
    formats::with_format(a.w.format, [&]<class F>() {
      for (int64_t i = 0; i < rows; ++i) {
        widen<F>(a.w.data + (o0 + i) * a.w.row_bytes, 0, a.w.cols, scratch + i * a.w.cols);
      }
    });
    for (int64_t r = 0; r < a.rows; r += kTileX) {
      const int count = static_cast<int>(a.rows - r < kTileX ? a.rows - r : kTileX);
      const float* x[kTileX];
      for (int j = 0; j < count; ++j) x[j] = x_row(a, r + j);
      for (int64_t o = 0; o < rows; o += kTileW) {
        const float* w[kTileW];
        for (int i = 0; i < kTileW; ++i) w[i] = scratch + (o + i < rows ? o + i : rows - 1) * a.w.cols;
        float products[kTileW][kTileX];
        dot_tile(w, x, count, a.w.cols, products);
        for (int i = 0; i < kTileW && o + i < rows; ++i) {
          for (int j = 0; j < count; ++j) put(a, r + j, o0 + o + i, products[i][j]);
        }
      }
    }
  }
}

int64_t linear_scratch(int64_t cols) {
  const int64_t tile = tile_rows(cols) * cols;
  return tile > kRowsAtOnce * kPiece ? tile : kRowsAtOnce * kPiece;
}

void linear(const LinearArgs* args, int64_t first, int64_t last, float* scratch) {
  if (args->rows == 1) {
    formats::with_format(args->w.format, [&]<class F>() { linear_one_row<F>(*args, first, last, scratch); });
  } else if (args->rows > 1) {
    linear_many_rows(*args, first, last, scratch);
  }
}

}  // namespace
}  // namespace gemmantle::cpu
