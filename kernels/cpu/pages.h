// pages.h: KV of mode "fast", in pages, and attention over it for many queries at once.
//
// The layouts of K and V (kernel_table.h) are those of a vector of pairs: a vector of K holds a pair of columns of many
// positions, so scores come out one position a lane; a vector of V holds a pair of positions of many columns. Nothing
// is shuffled or added across lanes. Queries and weights are rounded to bf16, all sums are in f32.
//
// Tiles of positions start at multiples of kAttendTile, and a query takes exactly those of its own range: what it gets
// does not depend on the queries beside it.
#pragma once

#include "kernels/cpu/attention.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/pairs.h"

namespace gemmantle::cpu {
namespace {

constexpr int kPages = kAttendTile / kPagePositions;  // of a tile
constexpr int64_t kPairBytes = 4;
constexpr int64_t kHalvesAPiece = 256;              // columns of a row that are rounded at once when it is stored
constexpr int kPageQueries = kLanes == 16 ? 8 : 4;  // that meet K or V when it is read

// Vectors of K or V that so many queries meet at once: enough sums to keep the multipliers busy, and no more than
// registers hold.
constexpr int page_vectors(int queries) noexcept { return kLanes == 16 && queries <= 4 ? 4 : 2; }

static inline int64_t k_pair(int64_t column, int64_t lane) noexcept { return column / 2 * kPagePositions + lane; }
static inline int64_t v_pair(int64_t column, int64_t lane, int64_t dim) noexcept { return lane / 2 * dim + column; }

static inline void store_bf16(uint8_t* k_page, uint8_t* v_page, int64_t lane, const float* k, const float* v,
                              int64_t dim) noexcept {
  for (int64_t c = 0; c < dim; c += kHalvesAPiece) {
    const int64_t n = dim - c < kHalvesAPiece ? dim - c : kHalvesAPiece;
    uint16_t keys[kHalvesAPiece], values[kHalvesAPiece];
    to_halves(keys, k + c, n, 1.0f);
    to_halves(values, v + c, n, 1.0f);
    for (int64_t i = 0; i < n; ++i) {
      memcpy(k_page + k_pair(c + i, lane) * kPairBytes + (c + i) % 2 * 2, keys + i, 2);
      memcpy(v_page + v_pair(c + i, lane, dim) * kPairBytes + lane % 2 * 2, values + i, 2);
    }
  }
}

static inline float largest_of(const float* x, int64_t n) noexcept {
  Vec most = fill(0.0f);
  for_each_vec(n, [x, &most](int64_t i, auto read, auto) { most = larger(most, magnitude(read(x + i))); });
  return largest(most);
}

// Signed codes of up to kPageGroup values by the largest of them; returns their scale, spoilt by what is not finite.
static inline float encode_bytes(int8_t* codes, const float* x, int64_t n) noexcept {
  const float most = largest_of(x, n);
  const bool counts = most > 1e-30f && is_finite(x, n);
  const float inverse = counts ? 127.0f / most : 0.0f;
  for (int64_t i = 0; i < n; ++i) codes[i] = counts ? static_cast<int8_t>(__builtin_lrintf(x[i] * inverse)) : int8_t{0};
  return counts ? most / 127.0f : is_finite(x, n) ? 0.0f : __builtin_nanf("");
}

// Codes 2 j and 2 j + 1 of a page are its pair j; behind them lie the scales, those of all positions for each group.
static inline void store_q8(uint8_t* k_page, uint8_t* v_page, int64_t lane, const float* k, const float* v,
                            int64_t dim) noexcept {
  for (int64_t c = 0; c < dim; c += kPageGroup) {
    const int64_t n = dim - c < kPageGroup ? dim - c : kPageGroup;
    int8_t keys[kPageGroup], values[kPageGroup];
    const float k_scale = encode_bytes(keys, k + c, n), v_scale = encode_bytes(values, v + c, n);
    for (int64_t i = 0; i < n; ++i) {
      k_page[2 * k_pair(c + i, lane) + (c + i) % 2] = static_cast<uint8_t>(keys[i]);
      v_page[2 * v_pair(c + i, lane, dim) + lane % 2] = static_cast<uint8_t>(values[i]);
    }
    const int64_t at = kPagePositions * dim + 4 * (c / kPageGroup * kPagePositions + lane);
    memcpy(k_page + at, &k_scale, 4);
    memcpy(v_page + at, &v_scale, 4);
  }
}

void store_page(PageType type, uint8_t* k_page, uint8_t* v_page, int64_t lane, const float* k, const float* v,
                int64_t dim) {
  if (type == PageType::bf16) return store_bf16(k_page, v_page, lane, k, v, dim);
  store_q8(k_page, v_page, lane, k, v, dim);
}

// Pages that are asked for while others are in work: all of one, then all of the next, since reads of four in turns, or
// of V, whose pairs are far apart, are foreseen by no processor.
struct Asked {
  const uint8_t* const* pages;  // kPages of them
  int64_t bytes;                // of a page
  int64_t step;                 // bytes that are asked for at once
  int page = 0;
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
};

// In as many steps as the loops over `queries` queries have.
static inline Asked to_ask(const uint8_t* const* pages, int64_t bytes, int queries) noexcept {
  const int lines = page_vectors(queries) * kLanes / kPagePositions,
            groups = (queries + kPageQueries - 1) / kPageQueries;
  return {pages, bytes, kLine * (lines > groups ? lines / groups : 1)};
}

GEMMANTLE_VEC void ask_on(Asked& asked) noexcept {
  if (asked.at >= asked.end) {
    if (asked.page == kPages) return;
    asked.at = asked.pages[asked.page++];
    asked.end = asked.at + asked.bytes;
  }
  for (int64_t i = 0; i < asked.step; i += kLine) __builtin_prefetch(asked.at + i);
  asked.at += asked.step;
}

// scores[q][p..] = q . k for Q queries and G vectors of positions; k[i] is the first pair of vector i.
template <int Q, int G>
GEMMANTLE_VEC void score_vectors(const uint16_t* q, int64_t dim, const uint8_t* const* k, float* scores,
                                 Asked* ask) noexcept {
  Vec sums[Q][G];
#pragma GCC unroll 8
  for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sums[j][i] = fill(0.0f);
  }
  for (int64_t pair = 0; pair < dim / 2; ++pair) {
    if (ask != nullptr) ask_on(*ask);
    Pairs keys[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) keys[i] = load_pairs(k[i] + pair * kPagePositions * kPairBytes);
#pragma GCC unroll 8
    for (int j = 0; j < Q; ++j) {
      uint32_t both;
      memcpy(&both, q + j * dim + 2 * pair, sizeof both);
      const Pairs query = fill_pair(both);
#pragma GCC unroll 8
      for (int i = 0; i < G; ++i) sums[j][i] = dot2(sums[j][i], keys[i], query);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) store(scores + j * kAttendTile + i * kLanes, sums[j][i]);
  }
}

// values[q][c..] = values[q][c..] * keep[q] + sum_p weights[q][p] * v[p][c..], p in [first, last), for Q queries and C
// vectors of columns.
template <int Q, int C, class Read, class Write, class ReadPairs>
GEMMANTLE_VEC void mix_pages(float* values, int64_t dim, const float* keep, const uint16_t* weights,
                             const uint8_t* const* v, int first, int last, int64_t c, Asked* ask, Read read,
                             Write write, ReadPairs read_pairs) noexcept {
  Vec sums[Q][C];
#pragma GCC unroll 8
  for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) sums[j][i] = read(values + j * dim + c + i * kLanes) * fill(keep[j]);
  }
  const auto add = [&](int pair, uint32_t mask) __attribute__((always_inline)) {
    const uint8_t* at = v[2 * pair / kPagePositions] + (v_pair(c, 2 * pair % kPagePositions, dim)) * kPairBytes;
    Pairs columns[C];
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) columns[i] = read_pairs(at + i * kLanes * kPairBytes) & mask;
#pragma GCC unroll 8
    for (int j = 0; j < Q; ++j) {
      uint32_t both;
      memcpy(&both, weights + j * kAttendTile + 2 * pair, sizeof both);
      const Pairs weight = fill_pair(both);
#pragma GCC unroll 8
      for (int i = 0; i < C; ++i) sums[j][i] = dot2(sums[j][i], columns[i], weight);
    }
  };
  for (int pair = first / 2; pair < last / 2; ++pair) {
    if (ask != nullptr) ask_on(*ask);
    add(pair, 0xffffffffu);
  }
  // The partner of an odd last position may hold anything, left by another sequence.
  if (last % 2 != 0) add(last / 2, 0x0000ffffu);
#pragma GCC unroll 8
  for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) write(values + j * dim + c + i * kLanes, sums[j][i]);
  }
}

template <int Q>
void mix_queries(float* values, int64_t dim, const float* keep, const uint16_t* weights, const uint8_t* const* v,
                 int first, int last, Asked* ask) noexcept {
  const auto read = [](const float* p) { return load(p); };
  const auto write = [](float* p, Vec x) { store(p, x); };
  const auto read_pairs = [](const uint8_t* p) { return load_pairs(p); };
  int64_t c = 0;
  constexpr int kVectors = page_vectors(Q);
  for (; c + kVectors * kLanes <= dim; c += kVectors * kLanes) {
    mix_pages<Q, kVectors>(values, dim, keep, weights, v, first, last, c, ask, read, write, read_pairs);
  }
  for (; c + kLanes <= dim; c += kLanes) {
    mix_pages<Q, 1>(values, dim, keep, weights, v, first, last, c, nullptr, read, write, read_pairs);
  }
  if (const int64_t rest = dim - c; rest > 0) {
    mix_pages<Q, 1>(
        values, dim, keep, weights, v, first, last, c, nullptr, [rest](const float* p) { return load_first(p, rest); },
        [rest](float* p, Vec x) { store_first(p, x, rest); },
        [rest](const uint8_t* p) { return load_pairs_first(p, rest); });
  }
}

// The pages of one tile, K and V as pairs of bf16.
struct PageTile {
  const uint8_t* k[kPages];
  const uint8_t* v[kPages];
};

// halves[0, n) = codes * scales; scales repeat after `period`, a multiple of kLanes. Up to kLanes - 1 more are written.
static inline void widen_codes(uint16_t* halves, const uint8_t* codes, int64_t n, const float* scales,
                               int64_t period) noexcept {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_halves(halves + i, load_i8(reinterpret_cast<const int8_t*>(codes + i)) * load(scales + i % period));
  }
}

static inline const uint8_t* widen_k(const uint8_t* page, int64_t dim, uint16_t* halves) noexcept {
  for (int64_t c = 0; c < dim; c += kPageGroup) {
    const int64_t n = dim - c < kPageGroup ? dim - c : kPageGroup;
    float scales[2 * kPagePositions];
    for (int64_t p = 0; p < kPagePositions; ++p) {
      memcpy(scales + 2 * p, page + kPagePositions * dim + 4 * (c / kPageGroup * kPagePositions + p), 4);
      scales[2 * p + 1] = scales[2 * p];
    }
    const int64_t at = c * kPagePositions;
    widen_codes(halves + at, page + at, n * kPagePositions, scales, 2 * kPagePositions);
  }
  return reinterpret_cast<const uint8_t*>(halves);
}

static inline const uint8_t* widen_v(const uint8_t* page, int64_t dim, uint16_t* halves) noexcept {
  for (int64_t p = 0; p < kPagePositions; p += 2) {
    for (int64_t c = 0; c < dim; c += kPageGroup) {
      const int64_t n = dim - c < kPageGroup ? dim - c : kPageGroup;
      float scales[kLanes];
      memcpy(scales, page + kPagePositions * dim + 4 * (c / kPageGroup * kPagePositions + p), 8);
      for (int i = 2; i < kLanes; ++i) scales[i] = scales[i - 2];
      const int64_t at = p * dim + 2 * c;
      widen_codes(halves + at, page + at, 2 * n, scales, kLanes);
    }
  }
  return reinterpret_cast<const uint8_t*>(halves);
}

// The pages of the tile at position `tile`; those without any of [begin, end) are those of `begin`.
static inline void find_pages(const PageArgs& a, int64_t tile, int64_t begin, int64_t end, PageTile* found) noexcept {
  for (int g = 0; g < kPages; ++g) {
    const int64_t position = tile + g * kPagePositions;
    const int64_t known = position + kPagePositions > begin && position < end ? position : begin;
    const int64_t slot = a.blocks[known / a.block_size] * a.block_size + known % a.block_size;
    const int64_t page = slot / kPagePositions * a.page_stride;
    found->k[g] = a.k + page;
    found->v[g] = a.v + page;
  }
}

// Widens those of positions [first, last) of the tile into `halves`, which hold 2 x kAttendTile x dim, and kLanes.
static inline void widen_pages(PageTile* pages, int first, int last, int64_t dim, uint16_t* halves) noexcept {
  const int begin = first / kPagePositions, end = (last + kPagePositions - 1) / kPagePositions;
  for (int g = begin; g < end; ++g) {
    uint16_t* own = halves + 2 * g * kPagePositions * dim;
    pages->k[g] = widen_k(pages->k[g], dim, own);
    pages->v[g] = widen_v(pages->v[g], dim, own + kPagePositions * dim);
  }
  for (int g = 0; g < kPages; ++g) {
    if (g < begin || g >= end) pages->k[g] = pages->k[begin];
  }
}

static inline void score_pages(const uint16_t* q, int queries, int64_t dim, const PageTile& pages, int first, int last,
                               Asked* ask, float* scores) noexcept {
  for (int j = 0; j < queries; j += kPageQueries) {
    with_count<kPageQueries>(queries - j, [&]<int Q>() {
      constexpr int kVectors = page_vectors(Q), kStep = kVectors * kLanes;
      for (int p = first / kStep * kStep; p < last; p += kStep) {
        const uint8_t* k[kVectors];
        for (int i = 0; i < kVectors; ++i) {
          const int position = p + i * kLanes;
          k[i] = pages.k[position / kPagePositions] + position % kPagePositions * kPairBytes;
        }
        score_vectors<Q, kVectors>(q + j * dim, dim, k, scores + j * kAttendTile + p, ask);
      }
    });
  }
}

struct PageScratch {
  uint16_t* q;        // [queries, dim]
  uint16_t* weights;  // [queries, kAttendTile]
  uint16_t* halves;   // [2, kAttendTile, dim] and kLanes, for q8
  float* scores;      // [queries, kAttendTile]
};

int64_t pages_scratch(int queries, int dim) {
  return int64_t{queries} * (dim + 3 * kAttendTile) / 2 + int64_t{kAttendTile} * dim + kLanes;
}

static inline PageScratch cut_scratch(float* scratch, int queries, int64_t dim) noexcept {
  PageScratch s;
  s.scores = scratch;
  s.q = reinterpret_cast<uint16_t*>(scratch + queries * kAttendTile);
  s.weights = s.q + queries * dim;
  s.halves = s.weights + queries * kAttendTile;
  return s;
}

void attend_pages(const PageArgs* args, int64_t begin, int64_t end, AttendState state, float* scratch) {
  const PageArgs& a = *args;
  const int64_t dim = a.dim;
  const int queries = a.rows * a.heads;
  const bool asks = a.type == PageType::bf16;  // codes are read in order, page by page, when they are widened
  const int64_t bytes = kPagePositions * dim * 2;
  const PageScratch s = cut_scratch(scratch, queries, dim);
  for (int j = 0; j < queries; ++j) {
    state.max[j] = kLowest;
    state.sum[j] = 0.0f;
    to_halves(s.q + j * dim, a.q + j / a.heads * a.q_stride + j % a.heads * dim, dim, a.scale);
  }
  memset(state.values, 0, static_cast<size_t>(queries * dim) * sizeof(float));
  for (int64_t tile = begin - begin % kAttendTile; tile < end; tile += kAttendTile) {
    const int first = static_cast<int>(begin > tile ? begin - tile : 0);
    const int last = static_cast<int>(end - tile < kAttendTile ? end - tile : kAttendTile);
    PageTile pages, next;
    find_pages(a, tile, begin, end, &pages);
    find_pages(a, tile + kAttendTile, begin, end, &next);
    Asked ask_v = to_ask(pages.v, bytes, queries), ask_k = to_ask(next.k, bytes, queries);
    if (a.type == PageType::q8) widen_pages(&pages, first, last, dim, s.halves);
    score_pages(s.q, queries, dim, pages, first, last, asks ? &ask_v : nullptr, s.scores);
    float keep[kMaxPageQueries];
    for (int j = 0; j < queries; ++j) {
      const int64_t own_begin = a.begin[j / a.heads] - tile, own_end = a.end[j / a.heads] - tile;
      const int own_first = own_begin > first ? static_cast<int>(own_begin < last ? own_begin : last) : first;
      const int own_last = own_end < last ? static_cast<int>(own_end > first ? own_end : first) : last;
      float* scores = s.scores + j * kAttendTile;
      keep[j] = 1.0f;
      if (own_first >= own_last) {
        memset(scores, 0, kAttendTile * sizeof(float));
      } else {
        keep[j] = weigh_tile(scores, own_first, own_last, state.max + j, state.sum + j);
      }
      to_halves(s.weights + j * kAttendTile, scores, kAttendTile, 1.0f);
    }
    for (int j = 0; j < queries; j += kPageQueries) {
      with_count<kPageQueries>(queries - j, [&]<int Q>() {
        mix_queries<Q>(state.values + j * dim, dim, keep + j, s.weights + j * kAttendTile, pages.v, first, last,
                       asks ? &ask_k : nullptr);
      });
    }
  }
}

constexpr PageKernels kPageKernels = {store_page, pages_scratch, attend_pages};

}  // namespace
}  // namespace gemmantle::cpu
