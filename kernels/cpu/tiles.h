// tiles.h: many rows of x times a tile of weight rows that lies ready in the second-level cache, in whatever units a
// format of products counts its columns.
//
// Sums lie in memory, kLanes of them for each weight row and each of the few rows of x that meet it at once, and are
// added up at the end by lanes. Columns are taken in runs short enough for the first-level cache to hold those of the
// rows of x.
#pragma once

#include "kernels/cpu/ints.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/linear.h"

namespace gemmantle::cpu {
namespace {

#if GEMMANTLE_INTS

constexpr int64_t kVecBytes = 4 * kLanes;
constexpr int kSumsX = 4;  // rows of x that meet a tile at once

struct Tile {
  const uint8_t* data;
  int64_t row_bytes;
  int64_t first;  // the first of its rows in LinearArgs::w
  int64_t rows;
  int64_t units;    // of columns in a row
  int64_t at_once;  // units in a run
};

static inline const uint8_t* coded_row(const LinearArgs& a, CodedRows x, int64_t r) noexcept {
  return x.data + (a.from != nullptr ? a.from[r] : r) * x.row_bytes;
}

// Sums of `rows` rows of weights with up to `x_rows` rows of x.
constexpr int64_t sums_floats(int64_t rows, int x_rows = kSumsX) noexcept { return rows * x_rows * kLanes; }

// Adds up the lanes of sums[rows][kMost] and puts columns [o, o + rows) of the products with X rows of x.
template <int X, int kMost = kSumsX>
void put_sums(const LinearArgs& a, int64_t r, int64_t o, int64_t rows, const float* sums) noexcept {
  constexpr int64_t kRowSums = kMost * kLanes;
  for (int j = 0; j < X; ++j) {
    const float* of_x = sums + j * kLanes;
    if (rows == kLanes) {
      put_each(a, r + j, o, sum_each(of_x, kRowSums));
    } else {
      for (int64_t i = 0; i < rows; ++i) put(a, r + j, o + i, sum(load(of_x + i * kRowSums)));
    }
  }
}

// Asks for bytes at any address, whatever lies there.
GEMMANTLE_VEC void ask_for(const uint8_t* at, int64_t bytes) noexcept {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i);
}

// Few rows of x wait for weights, and a thread that asks for them only when it needs them gets three quarters of what
// memory gives; less than half where rows are no whole number of strips, which processors do not foresee. So bytes this
// far ahead of those in work are asked for.
constexpr int64_t kAskAhead = 12 << 10;

// The weights of the tile after this one, as they lie in memory, asked for bit by bit while this one is multiplied: few
// rows of x would else wait for them.
struct Ahead {
  const uint8_t* at;
  const uint8_t* end;
  int64_t step;
};

GEMMANTLE_VEC void fetch(Ahead& ahead) noexcept {
  const uint8_t* stop = ahead.end - ahead.at < ahead.step ? ahead.end : ahead.at + ahead.step;
  for (; ahead.at < stop; ahead.at += kLine) __builtin_prefetch(ahead.at, 0, 2);
}

static inline Ahead weights_after(const LinearArgs& a, const Tile& tile, int64_t last, int64_t steps) noexcept {
  const int64_t first = tile.first + tile.rows, rows = last - first < tile.rows ? last - first : tile.rows;
  const int64_t lines = rows * a.w.row_bytes / kLine;
  const uint8_t* data = a.w.data + first * a.w.row_bytes;
  return {data, data + rows * a.w.row_bytes, (lines + steps - 1) / steps * kLine};
}

// add.operator()<X>(w, x, begin, end, sums) multiplies units [begin, end) of W weight rows and X rows of x, kMost at
// most, from zero where begin is 0, else on top of `sums`, which hold sums_floats() of the tile's rows, a multiple of
// W. `last` ends the rows of weights that tiles are cut from.
template <int W, int kMost, class Add>
GEMMANTLE_VEC void multiply_tile(const LinearArgs& a, CodedRows coded, const Tile& tile, int64_t last, float* sums,
                                 Add add) noexcept {
  const int64_t parts = (a.rows + kMost - 1) / kMost, runs = (tile.units + tile.at_once - 1) / tile.at_once;
  Ahead ahead = weights_after(a, tile, last, parts * runs * ((tile.rows + W - 1) / W));
  const auto multiply = [&]<int X>(int64_t r) __attribute__((always_inline)) {
    const uint8_t* x[X];
    for (int j = 0; j < X; ++j) x[j] = coded_row(a, coded, r + j);
    for (int64_t begin = 0; begin < tile.units; begin += tile.at_once) {
      const int64_t end = begin + tile.at_once < tile.units ? begin + tile.at_once : tile.units;
      for (int64_t group = 0; group < tile.rows; group += kLanes) {
        const int64_t rows = tile.rows - group < kLanes ? tile.rows - group : kLanes;
        for (int64_t i = group; i < group + rows; i += W) {
          const uint8_t* w[W];
          for (int n = 0; n < W; ++n) w[n] = tile.data + (i + n < tile.rows ? i + n : tile.rows - 1) * tile.row_bytes;
          fetch(ahead);
          add.template operator()<X>(w, x, begin, end, sums + sums_floats(i, kMost));
        }
        if (end == tile.units) put_sums<X, kMost>(a, r, tile.first + group, rows, sums + sums_floats(group, kMost));
      }
    }
  };
  // Rows of x in parts as equal as can be: one row alone waits for its own sums.
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t r = part * a.rows / parts;
    with_count<kMost>((part + 1) * a.rows / parts - r, [&]<int X>() __attribute__((always_inline)) {
      multiply.template operator()<X>(r);
    });
  }
}

#endif  // GEMMANTLE_INTS

}  // namespace
}  // namespace gemmantle::cpu
