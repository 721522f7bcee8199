// attention.h: one row's queries of one KV head over a range of positions in blocks.
//
// Positions are taken in tiles that start at multiples of kAttendTile, with a running maximum: what a row gets depends
// on its range and not on how the sequence was cut into steps. All query heads that share the KV head go together, so
// K and V are read once.
#pragma once

#include "kernels/cpu/dot.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle::cpu {
namespace {

constexpr float kLowest = -3.0e38f;  // finite, so that differences of two are zero and not NaN
constexpr int kMixHeads = kLanes == 16 ? 4 : 2;

static inline float exp_of(float x) noexcept {
  float value;
  store_first(&value, vexp(fill(x)), 1);
  return value;
}

// values[h][c..] = values[h][c..] * keep[h] + sum_p weights[h][p] * v[p][c..], p in [first, last), for H heads and C
// vectors of columns.
template <int H, int C, class Read, class Write>
GEMMANTLE_VEC void mix_columns(float* values, int64_t dim, const float* keep, const float* weights,
                               const float* const* v, int first, int last, int64_t c, Read read, Write write) noexcept {
  Vec sums[H][C];
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) sums[h][i] = read(values + h * dim + c + i * kLanes) * fill(keep[h]);
  }
  for (int p = first; p < last; ++p) {
    Vec vs[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) vs[i] = read(v[p] + c + i * kLanes);
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      const Vec weight = fill(weights[h * kAttendTile + p]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sums[h][i] = fma(weight, vs[i], sums[h][i]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) write(values + h * dim + c + i * kLanes, sums[h][i]);
  }
}

template <int H>
void mix(float* values, int64_t dim, const float* keep, const float* weights, const float* const* v, int first,
         int last) noexcept {
  const auto read = [](const float* p) { return load(p); };
  const auto write = [](float* p, Vec x) { store(p, x); };
  int64_t c = 0;
  for (; c + 4 * kLanes <= dim; c += 4 * kLanes) {
    mix_columns<H, 4>(values, dim, keep, weights, v, first, last, c, read, write);
  }
  for (; c + kLanes <= dim; c += kLanes) {
    mix_columns<H, 1>(values, dim, keep, weights, v, first, last, c, read, write);
  }
  if (const int64_t rest = dim - c; rest > 0) {
    mix_columns<H, 1>(
        values, dim, keep, weights, v, first, last, c, [rest](const float* p) { return load_first(p, rest); },
        [rest](float* p, Vec x) { store_first(p, x, rest); });
  }
}

// scores[h][p] = scale * q[h] . k[p], p in [first, last)
static inline void score_tile(const AttendArgs& a, const float* const* k, int first, int last, float* scores) noexcept {
  for (int h = 0; h < a.heads; h += kTileX) {
    const int heads = a.heads - h < kTileX ? a.heads - h : kTileX;
    const float* q[kTileX];
    for (int j = 0; j < heads; ++j) q[j] = a.q + static_cast<int64_t>(h + j) * a.dim;
    for (int p = first; p < last; p += kTileW) {
      const float* rows[kTileW];
      for (int i = 0; i < kTileW; ++i) rows[i] = k[p + i < last ? p + i : last - 1];
      float products[kTileW][kTileX];
      dot_tile(rows, q, heads, a.dim, products);
      for (int i = 0; i < kTileW && p + i < last; ++i) {
        for (int j = 0; j < heads; ++j) scores[(h + j) * kAttendTile + p + i] = a.scale * products[i][j];
      }
    }
  }
}

// Turns the scores of one head into exp(score - max) with zeros outside [first, last), and moves max and sum along.
// Returns what the old sum and values are to be multiplied with.
static inline float weigh_tile(float* scores, int first, int last, float* max, float* total) noexcept {
  for (int p = 0; p < first; ++p) scores[p] = kLowest;
  for (int p = last; p < kAttendTile; ++p) scores[p] = kLowest;
  Vec top = fill(*max);
  for (int p = 0; p < kAttendTile; p += kLanes) top = larger(top, load(scores + p));
  const float new_max = largest(top);
  for (int p = 0; p < kAttendTile; p += kLanes) store(scores + p, vexp(load(scores + p) - fill(new_max)));
  for (int p = 0; p < first; ++p) scores[p] = 0.0f;
  for (int p = last; p < kAttendTile; ++p) scores[p] = 0.0f;
  Vec tile_sum = fill(0.0f);
  for (int p = 0; p < kAttendTile; p += kLanes) tile_sum = tile_sum + load(scores + p);
  const float keep = *max == new_max ? 1.0f : exp_of(*max - new_max);
  *max = new_max;
  *total = *total * keep + sum(tile_sum);
  return keep;
}

void attend(const AttendArgs* args, int64_t begin, int64_t end, AttendState state, float* scratch) {
  const AttendArgs& a = *args;
  const int64_t dim = a.dim;
  for (int h = 0; h < a.heads; ++h) {
    state.max[h] = kLowest;
    state.sum[h] = 0.0f;
  }
  memset(state.values, 0, static_cast<size_t>(a.heads * dim) * sizeof(float));
  for (int64_t tile = begin - begin % kAttendTile; tile < end; tile += kAttendTile) {
    const int first = static_cast<int>(begin > tile ? begin - tile : 0);
    const int last = static_cast<int>(end - tile < kAttendTile ? end - tile : kAttendTile);
    const float* k[kAttendTile];
    const float* v[kAttendTile];
    for (int p = first; p < last; ++p) {
      const int64_t position = tile + p;
      const int64_t slot = a.blocks[position / a.block_size] * a.block_size + position % a.block_size;
      k[p] = a.k + slot * a.k_stride;
      v[p] = a.v + slot * a.v_stride;
    }
    score_tile(a, k, first, last, scratch);
    float keep[kMaxAttendHeads];
    for (int h = 0; h < a.heads; ++h) {
      keep[h] = weigh_tile(scratch + h * kAttendTile, first, last, state.max + h, state.sum + h);
    }
    int h = 0;
    for (; h + kMixHeads <= a.heads; h += kMixHeads) {
      mix<kMixHeads>(state.values + h * dim, dim, keep + h, scratch + h * kAttendTile, v, first, last);
    }
    for (; h < a.heads; ++h) {
      mix<1>(state.values + h * dim, dim, keep + h, scratch + h * kAttendTile, v, first, last);
    }
  }
}

void attend_merge(AttendState total, AttendState later, int heads, int dim) {
  for (int h = 0; h < heads; ++h) {
    const float max = total.max[h] > later.max[h] ? total.max[h] : later.max[h];
    const float keep = exp_of(total.max[h] - max), take = exp_of(later.max[h] - max);
    total.max[h] = max;
    total.sum[h] = total.sum[h] * keep + later.sum[h] * take;
    const Vec a = fill(keep), b = fill(take);
    float* into = total.values + static_cast<int64_t>(h) * dim;
    const float* from = later.values + static_cast<int64_t>(h) * dim;
    for_each_vec(dim,
                 [=](int64_t i, auto read, auto write) { write(into + i, read(into + i) * a + read(from + i) * b); });
  }
}

void attend_finish(float* y, AttendState state, int heads, int dim) {
  for (int h = 0; h < heads; ++h) {
    const Vec factor = fill(1.0f / state.sum[h]);
    const float* values = state.values + static_cast<int64_t>(h) * dim;
    float* out = y + static_cast<int64_t>(h) * dim;
    for_each_vec(dim, [=](int64_t i, auto read, auto write) { write(out + i, read(values + i) * factor); });
  }
}

}  // namespace
}  // namespace gemmantle::cpu
