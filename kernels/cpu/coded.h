// coded.h: rows of packed weights times rows of 8-bit codes, in integers: the products of mode "fast".
//
// A row of x is cut into groups of 32 values, each with the scale max|x| / 127 and signed codes. A strip is one group
// for every lane: lane g of word p holds codes 4p .. 4p+3 of group g, so that eight dot products give the sums of all
// groups of a strip, exactly, in the lane where the scales of that group are. Each lane then adds its groups in f32 in
// the order of strips, and the lanes are added at the end: the order depends on the row length only, so a row comes out
// with the same bits alone and in a batch.
//
// Weights are unsigned codes minus an offset that all codes of a format share; the offset times the sum of the codes of
// x is where the integer sums begin. Few rows: a strip of weights is read, turned into lanes in registers and used.
// Some rows: the same with the strips of two rows of weights and sums in memory, for a strip of each row of x at a
// time. Many rows: a tile of weight rows is turned into lanes once, stays in the second-level cache and meets all rows
// of x.
#pragma once

#include "kernels/cpu/ints.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/tiles.h"

namespace gemmantle::cpu {
namespace {

#if GEMMANTLE_INTS

constexpr int64_t kGroup = 32;
constexpr int64_t kStrip = kGroup * kLanes;       // columns
constexpr int64_t kCodedStrip = 11 * kVecBytes;   // 8 words of codes | scales | -sums | -sums of each first half
constexpr int64_t kTurnedStrip = 10 * kVecBytes;  // 8 words of codes | 2 scales, see Side
constexpr int64_t kTurnedBytes = 640 << 10;       // tile of weights: well inside a 1 MiB second-level cache
constexpr int64_t kStripsAtOnce = 6;              // strips of kSumsX + kCodedW rows that the first-level cache holds
constexpr int kCodedW = kLanes == 16 ? 4 : 2;     // kCodedW x kSumsX integer sums fill half of the registers
constexpr int kFewRows = kSumsX;                  // rows of x that each strip of weights meets as it is read,
constexpr int64_t kFewStrips = 48;                // where the first-level cache holds all of them

constexpr int64_t strips_of(int64_t cols) noexcept { return (cols + kStrip - 1) / kStrip; }

template <class F>
constexpr bool kHasCodes = F::group >= kGroup;

// Eight-bit codes stay signed where unsigned ones would be too large for dot4.
template <class F>
constexpr bool kEightBits = F::id == formats::FormatId::q8_0 || F::id == formats::FormatId::iq4_nl;
template <class F>
constexpr bool kSignedCodes = kEightBits<F> && !kByteDots;

// Codes are too large by 2 to this; -1: by nothing.
template <class F>
constexpr int kOffsetBits = F::id == formats::FormatId::q4_0   ? 3
                            : F::id == formats::FormatId::q5_0 ? 4
                            : F::id == formats::FormatId::q6_k ? 5
                            : kEightBits<F> && kByteDots       ? 7
                                                               : -1;

// What the two scales of a weight strip are: one scale; scales of the two halves of each group; scale and minimum.
enum class Side { one, halves, minimum };
template <class F>
constexpr Side kSide = F::id == formats::FormatId::q6_k       ? Side::halves
                       : kOffsetBits<F> < 0 && !kEightBits<F> ? Side::minimum
                                                              : Side::one;

struct WeightStrip {
  Ints codes[8];
  Vec side[2];
};

// In: piece b of in[a] holds sixteen bytes of group 4b + a. Out: word p of every group.
GEMMANTLE_VEC void turn(const Ints (&in)[4], Ints* out) noexcept {
  const Ints a = low_pairs(in[0], in[1]), b = high_pairs(in[0], in[1]);
  const Ints c = low_pairs(in[2], in[3]), d = high_pairs(in[2], in[3]);
  out[0] = low_quads(a, c);
  out[1] = high_quads(a, c);
  out[2] = low_quads(b, d);
  out[3] = high_quads(b, d);
}

GEMMANTLE_VEC Ints low_nibbles(Ints v) noexcept { return both(v, fill_bytes(15)); }
GEMMANTLE_VEC Ints high_nibbles(Ints v) noexcept { return both(shift_right(v, 4), fill_bytes(15)); }

// The eight 6-bit scales and minima of a block of Q4_K or Q5_K, a byte each.
GEMMANTLE_VEC void k_scales(const uint8_t* packed, uint64_t* scales, uint64_t* minima) noexcept {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  const uint32_t scale_high = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
  const uint32_t min_high = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
  *scales = (a & 0x3f3f3f3fu) | static_cast<uint64_t>(scale_high) << 32;
  *minima = (b & 0x3f3f3f3fu) | static_cast<uint64_t>(min_high) << 32;
}

// A byte of codes holds values i and i + 16 of a group, whole: it can be turned before it is taken apart.
template <class F>
constexpr bool kTurnsPacked =
    F::id == formats::FormatId::q4_0 || F::id == formats::FormatId::q4_1 || F::id == formats::FormatId::iq4_nl;

template <class F>
GEMMANTLE_VEC Ints level_of(Ints nibbles) noexcept {
  if constexpr (F::id != formats::FormatId::iq4_nl) return nibbles;
  constexpr Bytes kLevels = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};  // + 128
  return look_up_each(kSignedCodes<F> ? kLevels ^ 128 : kLevels, nibbles);
}

// One strip of weights, all of whose bytes may be read.
template <class F>
GEMMANTLE_VEC void read_strip(const uint8_t* blocks, WeightStrip* strip) noexcept {
  using formats::FormatId;
  Ints low[4], high[4];  // values 0..15 and 16..31 of groups
  if constexpr (F::group == kGroup) {
    constexpr int kCodes = F::id == FormatId::q5_0 ? 6 : F::id == FormatId::q5_1 ? 8 : F::id == FormatId::q4_1 ? 4 : 2;
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      const auto block = [&](int b) __attribute__((always_inline)) { return blocks + (4 * b + a) * F::block_bytes; };
      const Ints codes = load_sixteens([&](int b) __attribute__((always_inline)) { return block(b) + kCodes; });
      if constexpr (F::id == FormatId::q8_0) {
        const Ints offset = fill_bytes(kSignedCodes<F> ? 0 : 128);
        low[a] = differ(codes, offset);
        high[a] =
            differ(load_sixteens([&](int b) __attribute__((always_inline)) { return block(b) + kCodes + 16; }), offset);
      } else if constexpr (kTurnsPacked<F>) {
        low[a] = codes;
      } else {
        low[a] = low_nibbles(codes);
        high[a] = high_nibbles(codes);
      }
      if constexpr (F::id == FormatId::q5_0 || F::id == FormatId::q5_1) {
        const auto fifths = [&](int half) __attribute__((always_inline)) {
          return both(bytes_of_sixteens([&](int b) __attribute__((always_inline)) {
                        return load_u16(block(b) + kCodes - 4 + 2 * half);
                      }),
                      fill_bytes(16));
        };
        low[a] = either(low[a], fifths(0));
        high[a] = either(high[a], fifths(1));
      }
    }
    strip->side[0] = load_halves<F::block_bytes>(blocks);
    if constexpr (kSide<F> == Side::minimum) strip->side[1] = -load_halves<F::block_bytes>(blocks + 2);
  } else {
    const uint8_t* const second = blocks + (kLanes == 16 ? F::block_bytes : 0);
    const auto block = [&](int b) __attribute__((always_inline)) { return b < 2 ? blocks : second; };
    if constexpr (F::id == FormatId::q6_k) {
      Ints upper[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        upper[h] =
            load_sixteens([&](int b) __attribute__((always_inline)) { return block(b) + 128 + 32 * (b % 2) + 16 * h; });
      }
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const Ints codes = load_sixteens([&](int b) __attribute__((always_inline)) {
            return block(b) + 64 * (b % 2) + 32 * pair + 16 * h;
          });
          const Ints bits = fill_bytes(0x30);  // four and five
          (h == 0 ? low : high)[pair] = with(low_nibbles(codes), shift_left(upper[h], 4 - 2 * pair), bits);
          (h == 0 ? low : high)[pair + 2] = with(high_nibbles(codes), shift_right(upper[h], 2 * pair), bits);
        }
      }
      const Vec d = by_block(f16_at(blocks + 208), f16_at(second + 208));
      Vec first_scale, second_scale;
      load_byte_pairs(blocks + 192, second + 192, &first_scale, &second_scale);
      strip->side[0] = d * first_scale;
      strip->side[1] = d * second_scale;
    } else {
      constexpr int kCodes = F::block_bytes - 128;
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const Ints codes = load_sixteens([&](int b) __attribute__((always_inline)) {
            return block(b) + kCodes + 64 * (b % 2) + 32 * pair + 16 * h;
          });
          (h == 0 ? low : high)[2 * pair] = low_nibbles(codes);
          (h == 0 ? low : high)[2 * pair + 1] = high_nibbles(codes);
        }
      }
      if constexpr (F::id == FormatId::q5_k) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const Ints fifths = shift_right_by_piece(
              load_sixteens([&](int b) __attribute__((always_inline)) { return block(b) + 16 + 16 * h; }));
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) {
            (h == 0 ? low : high)[a] = with((h == 0 ? low : high)[a], shift_left(fifths, 4 - a), fill_bytes(16));
          }
        }
      }
      uint64_t scales[2], minima[2];
      k_scales(blocks + 4, &scales[0], &minima[0]);
      k_scales(second + 4, &scales[1], &minima[1]);
      strip->side[0] = by_block(f16_at(blocks), f16_at(second)) * bytes_to_float(scales[0], scales[1]);
      strip->side[1] = by_block(f16_at(blocks + 2), f16_at(second + 2)) * bytes_to_float(minima[0], minima[1]);
    }
  }
  turn(low, strip->codes);
  if constexpr (kTurnsPacked<F>) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      strip->codes[4 + p] = level_of<F>(high_nibbles(strip->codes[p]));
      strip->codes[p] = level_of<F>(low_nibbles(strip->codes[p]));
    }
  } else {
    turn(high, strip->codes + 4);
  }
}

template <class F>
constexpr int64_t kStripBytes = kStrip / F::group * F::block_bytes;

// Whether strips of weights are small enough for the first-level cache to take the next ones at the last moment too.
template <class F>
constexpr bool kAsksTwice = kStripBytes<F> <= 320;

// The last strip of a row of weights, of fewer than kStrip columns; bytes before `end` may be read. Past the row the
// codes of x are zero, and so are the scales of both, whatever lies there.
template <class F>
GEMMANTLE_VEC void read_rest(const uint8_t* blocks, int64_t cols, const uint8_t* end, WeightStrip* strip) noexcept {
  uint8_t copy[kStripBytes<F>];
  if (end - blocks < kStripBytes<F>) {
    const auto used = static_cast<uint64_t>(cols / F::group * F::block_bytes);
    memset(copy, 0, sizeof copy);
    memcpy(copy, blocks, used < sizeof copy ? used : sizeof copy);  // it is; the compiler wants to be told
    blocks = copy;
  }
  read_strip<F>(blocks, strip);
  strip->side[0] = keep_first(strip->side[0], cols / kGroup);
  if constexpr (kSide<F> != Side::one) strip->side[1] = keep_first(strip->side[1], cols / kGroup);
}

// Calls use(strip number, strip) for a row of weights; bytes before `end` may be read.
template <class F, class Use>
GEMMANTLE_VEC void each_strip(const uint8_t* row, int64_t cols, const uint8_t* end, Use use) noexcept {
  WeightStrip strip;
  int64_t s = 0;
  for (; (s + 1) * kStrip <= cols; ++s) {
    read_strip<F>(row + s * kStripBytes<F>, &strip);
    use(s, strip);
  }
  if (const int64_t rest = cols - s * kStrip; rest > 0) {
    read_rest<F>(row + s * kStripBytes<F>, rest, end, &strip);
    use(s, strip);
  }
}

// sums[i * kSumsX + j] = before[i * kSumsX + j] + the products of one strip: code(i, p) and side(i, n) give word p and
// scales of weight row i, x[j] the strip of row j of x.
template <class F, int W, int X, class Code, class SideOf>
GEMMANTLE_VEC void add_strip(Vec* sums, const Vec* before, Code code, SideOf side,
                             const uint8_t* const (&x)[X]) noexcept {
  constexpr bool kHalves = kSide<F> == Side::halves;
  constexpr int kParts = kHalves ? 2 : 1;
  Vec totals[X];
#pragma GCC unroll 4
  for (int j = 0; kSide<F> == Side::minimum && j < X; ++j) {
    totals[j] = to_float(load_ints(x[j] + 9 * kVecBytes)) * load(x[j] + 8 * kVecBytes);
  }
  Vec scaled[W][X];  // what the first halves give
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    Ints dots[W][X];
#pragma GCC unroll 4
    for (int j = 0; j < X; ++j) {
      Ints start = no_ints();
      if constexpr (kOffsetBits<F> >= 0) {
        start = load_ints(x[j] + (kHalves && part == 0 ? 10 : 9) * kVecBytes);
        if (part == 1) start = minus(start, load_ints(x[j] + 10 * kVecBytes));
        start = shift_left(start, kOffsetBits<F>);
      }
#pragma GCC unroll 4
      for (int i = 0; i < W; ++i) dots[i][j] = start;
    }
#pragma GCC unroll 8
    for (int q = 0; q < 8 / kParts; ++q) {
      const int p = 8 / kParts * part + q;
      Ints xs[X];
#pragma GCC unroll 4
      for (int j = 0; j < X; ++j) {
        xs[j] = load_ints(x[j] + p * kVecBytes);
        if constexpr (W > 1) hold(xs[j]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < W; ++i) {
        const Ints w = code(i, p);
#pragma GCC unroll 4
        for (int j = 0; j < X; ++j) {
          if constexpr (kSignedCodes<F>)
            dots[i][j] = dot4_signed(dots[i][j], w, xs[j]);
          else
            dots[i][j] = dot4(dots[i][j], w, xs[j]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
      const Vec scale = side(i, part);
#pragma GCC unroll 4
      for (int j = 0; j < X; ++j) {
        const Vec products = to_float(dots[i][j]);
        if (kHalves && part == 0) {
          scaled[i][j] = products * scale;
          continue;
        }
        const Vec x_scale = load(x[j] + 8 * kVecBytes);
        const int at = i * kSumsX + j;
        Vec sum = before[at];
        if constexpr (kHalves)
          sum = fma(fma(products, scale, scaled[i][j]), x_scale, sum);
        else
          sum = fma(products, scale * x_scale, sum);
        if constexpr (kSide<F> == Side::minimum) sum = fma(side(i, 1), totals[j], sum);
        sums[at] = sum;
      }
    }
  }
}

// The first multiple of kVecBytes in a thread's scratch.
static inline uint8_t* aligned(float* scratch) noexcept {
  const auto address = reinterpret_cast<uintptr_t>(scratch);
  return reinterpret_cast<uint8_t*>((address + kVecBytes - 1) / kVecBytes * kVecBytes);
}

template <class F, int X>
void coded_few_rows(const LinearArgs& a, CodedRows x, int64_t first, int64_t last) noexcept {
  const uint8_t* rows[X];
  for (int j = 0; j < X; ++j) rows[j] = coded_row(a, x, j);
  for (int64_t o = first; o < last; ++o) {
    Vec sums[X];
    for (int j = 0; j < X; ++j) sums[j] = fill(0.0f);
    const uint8_t* const w = a.w.data + o * a.w.row_bytes;
    each_strip<F>(
        w, a.w.cols,
        a.w.data + last * a.w.row_bytes, [&](int64_t s, const WeightStrip& strip) __attribute__((always_inline)) {
          ask_for(w + s * kStripBytes<F> + kAskAhead, kStripBytes<F>);
          const uint8_t* at[X];
          for (int j = 0; j < X; ++j) at[j] = rows[j] + s * kCodedStrip;
          add_strip<F, 1, X>(
              sums, sums, [&](int, int p) __attribute__((always_inline)) { return strip.codes[p]; },
              [&](int, int n) __attribute__((always_inline)) { return strip.side[n]; }, at);
        });
    for (int j = 0; j < X; ++j) put(a, j, o, sum(sums[j]));
  }
}

constexpr int kSomeRows = 16;                 // rows of x, a strip of which the first-level cache holds beside
constexpr int64_t kSomeTile = 16;             // the sums of as many rows of weights
constexpr int kPairW = kLanes == 16 ? 2 : 1;  // strips of weights that registers hold beside kPairW x kSumsX sums

constexpr int64_t some_parts(int64_t rows) noexcept { return (rows + kSumsX - 1) / kSumsX; }

// Some rows of x, X of them at a time, meet strips of kPairW rows of weights that stay in registers.
template <class F, int X>
void coded_some_rows(const LinearArgs& a, CodedRows x, int64_t first, int64_t last, uint8_t* scratch) noexcept {
  const int64_t parts = some_parts(a.rows), strips = strips_of(a.w.cols);
  const uint8_t* xs[kSomeRows];  // the last one again where X is no divisor
  for (int64_t j = 0; j < parts * X; ++j) xs[j] = coded_row(a, x, j < a.rows ? j : a.rows - 1);
  auto* const sums = reinterpret_cast<float*>(scratch);  // of each part as in tiles.h
  static constexpr Vec zeros[kPairW * kSumsX] = {};
  for (int64_t o = first; o < last; o += kSomeTile) {
    const int64_t rows = last - o < kSomeTile ? last - o : kSomeTile;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t left = a.w.cols - s * kStrip;
      for (int64_t i = 0; i < rows; i += kPairW) {
        WeightStrip strip[kPairW];
#pragma GCC unroll 2
        for (int n = 0; n < kPairW; ++n) {
          const int64_t row = i + n < rows ? i + n : rows - 1;
          const uint8_t* blocks = a.w.data + (o + row) * a.w.row_bytes + s * kStripBytes<F>;
          const uint8_t* below = a.w.data + (o + kSomeTile + row) * a.w.row_bytes;
          ask_for(s + 1 < strips ? blocks + kStripBytes<F> : below, kStripBytes<F>);
          if constexpr (kAsksTwice<F>) ask_for(blocks + kPairW * a.w.row_bytes, kStripBytes<F>);
          if (left >= kStrip)
            read_strip<F>(blocks, &strip[n]);
          else
            read_rest<F>(blocks, left, a.w.data + last * a.w.row_bytes, &strip[n]);
#pragma GCC unroll 8
          for (int p = 0; p < 8; ++p) hold(strip[n].codes[p]);
        }
        for (int64_t part = 0; part < parts; ++part) {
          const uint8_t* at[X];
#pragma GCC unroll 4
          for (int j = 0; j < X; ++j) at[j] = xs[part * X + j] + s * kCodedStrip;
          auto* const total = reinterpret_cast<Vec*>(sums + part * sums_floats(kSomeTile) + sums_floats(i));
          add_strip<F, kPairW, X>(
              total,
              s == 0 ? zeros : total, [&](int n, int p) __attribute__((always_inline)) { return strip[n].codes[p]; },
              [&](int n, int side) __attribute__((always_inline)) { return strip[n].side[side]; }, at);
          asm volatile("" : : : "memory");  // as in coded_tile()
        }
      }
    }
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t r = part * X;
      with_count<kSumsX>(
          a.rows - r < X ? a.rows - r : X, [&]<int N>() __attribute__((always_inline)) {
            put_sums<N>(a, r, o, rows, sums + part * sums_floats(kSomeTile));
          });
    }
  }
}

// Strips [begin, end) of W turned rows with X rows of x, on top of `sums` but for the first.
template <class F, int W, int X>
void coded_tile(const uint8_t* const (&w)[W], const uint8_t* const (&x)[X], int64_t begin, int64_t end,
                Vec* sums) noexcept {
  static constexpr Vec zeros[W * kSumsX] = {};
  for (int64_t s = begin; s < end; ++s) {
    const uint8_t* at[X];
    for (int j = 0; j < X; ++j) at[j] = x[j] + s * kCodedStrip;
    add_strip<F, W, X>(
        sums, s == 0 ? zeros : sums,
        [&](int i, int p) __attribute__((always_inline)) { return load_ints(w[i] + s * kTurnedStrip + p * kVecBytes); },
        [&](int i, int n)
            __attribute__((always_inline)) { return load(w[i] + s * kTurnedStrip + (8 + n) * kVecBytes); },
        at);
    asm volatile("" : : : "memory");  // the sums stay in the first-level cache: registers are for integers
  }
}

constexpr int64_t kTurnedRows = 128;

static inline int64_t turned_rows(int64_t strips) noexcept {
  const int64_t rows = kTurnedBytes / (strips * kTurnedStrip) / kLanes * kLanes;
  return rows < kLanes ? kLanes : rows > kTurnedRows ? kTurnedRows : rows;
}

template <class F>
void coded_many_rows(const LinearArgs& a, CodedRows x, int64_t first, int64_t last, uint8_t* turned) noexcept {
  const int64_t strips = strips_of(a.w.cols), tile = turned_rows(strips);
  auto* sums = reinterpret_cast<float*>(turned + tile * strips * kTurnedStrip);
  for (int64_t o = first; o < last; o += tile) {
    const int64_t rows = last - o < tile ? last - o : tile;
    for (int64_t i = 0; i < rows; ++i) {
      each_strip<F>(
          a.w.data + (o + i) * a.w.row_bytes, a.w.cols,
          a.w.data + last * a.w.row_bytes, [&](int64_t s, const WeightStrip& strip) __attribute__((always_inline)) {
            uint8_t* out = turned + (i * strips + s) * kTurnedStrip;
            for (int p = 0; p < 8; ++p) store_ints(out + p * kVecBytes, strip.codes[p]);
            store(reinterpret_cast<float*>(out + 8 * kVecBytes), strip.side[0]);
            if constexpr (kSide<F> != Side::one) {
              store(reinterpret_cast<float*>(out + 9 * kVecBytes), strip.side[1]);
            }
          });
    }
    multiply_tile<kCodedW, kSumsX>(
        a, x, {turned, strips * kTurnedStrip, o, rows, strips, kStripsAtOnce}, last, sums,
        []<int X>(const auto& w, const uint8_t* const(&xs)[X], int64_t begin, int64_t end, float* into) __attribute__((
            always_inline)) { coded_tile<F, kCodedW, X>(w, xs, begin, end, reinterpret_cast<Vec*>(into)); });
  }
}

bool takes_coded(formats::FormatId format) {
  return formats::with_format(format, []<class F>() { return kHasCodes<F>; });
}

int64_t coded_bytes(int64_t cols) { return strips_of(cols) * kCodedStrip; }

// The largest magnitude of each group of a strip of x; returns zero, or NaN where a value is not finite.
static inline float largest_of_groups(const float* x, int64_t groups, float* tops) noexcept {
  Vec not_finite = fill(0.0f);
  for (int64_t g = 0; g < groups; ++g) {
    Vec most = fill(0.0f);
    for (int64_t i = 0; i < kGroup; i += kLanes) {
      const Vec v = load(x + g * kGroup + i);
      most = larger(most, magnitude(v));
      not_finite = fma(v, fill(0.0f), not_finite);
    }
    tops[g] = largest(most);
  }
  return sum(not_finite);
}

// One strip of `groups` whole groups. One below the smallest scale that has an inverse counts as zero; a value that is
// not finite spoils the products of its strip.
static inline void encode_strip(uint8_t* strip, const float* x, int64_t groups) noexcept {
  float tops[kLanes] = {}, inverses[kLanes];
  const float spoil = largest_of_groups(x, groups, tops);
  const Vec top = load(tops);
  const Mask is_zero = less(top, fill(1e-30f));
  store(inverses, select(is_zero, fill(0.0f), fill(127.0f) / top));
  store(reinterpret_cast<float*>(strip + 8 * kVecBytes), select(is_zero, fill(0.0f), top / fill(127.0f)) + fill(spoil));

  alignas(kVecBytes) int8_t codes[kStrip];
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = g * kGroup; i < (g + 1) * kGroup; i += kLanes) {
      store_rounded(codes + i, load(x + i) * fill(inverses[g]));
    }
  }
  memset(codes + groups * kGroup, 0, static_cast<size_t>((kLanes - groups) * kGroup));
  Ints total = no_ints();
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Ints in[4], words[4];
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      in[a] =
          load_sixteens([&](int b) __attribute__((always_inline)) { return codes + (4 * b + a) * kGroup + 16 * half; });
    }
    turn(in, words);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      store_ints(strip + (4 * half + p) * kVecBytes, words[p]);
      total = dot4(total, fill_bytes(1), words[p]);
    }
    store_ints(strip + (10 - half) * kVecBytes, minus(no_ints(), total));
  }
}

void encode(uint8_t* coded, const float* x, int64_t cols) {
  for (int64_t c = 0; c < cols; c += kStrip, coded += kCodedStrip) {
    encode_strip(coded, x + c, (cols - c < kStrip ? cols - c : kStrip) / kGroup);
  }
}

// With room to begin at a multiple of kVecBytes.
int64_t coded_scratch(int64_t cols) {
  const int64_t strips = strips_of(cols), rows = turned_rows(strips);
  const int64_t many = rows * strips * kTurnedStrip / 4 + sums_floats(rows);
  const int64_t some = some_parts(kSomeRows) * sums_floats(kSomeTile);
  return (many > some ? many : some) + kLanes;
}

void linear_coded(const LinearArgs* args, CodedRows x, int64_t first, int64_t last, float* scratch) {
  formats::with_format(args->w.format, [&]<class F>() {
    if constexpr (kHasCodes<F>) {
      if (args->rows == 0) return;
      if (args->rows <= kFewRows && args->rows * strips_of(args->w.cols) <= kFewStrips) {
        return with_count<kSumsX>(args->rows, [&]<int X>() { coded_few_rows<F, X>(*args, x, first, last); });
      }
      if (args->rows <= kSomeRows) {
        const int64_t parts = some_parts(args->rows);
        return with_count<kSumsX>((args->rows + parts - 1) / parts,
                                  [&]<int X>() { coded_some_rows<F, X>(*args, x, first, last, aligned(scratch)); });
      }
      coded_many_rows<F>(*args, x, first, last, aligned(scratch));
    }
  });
}

constexpr CodedKernels kCodedKernels = {takes_coded, coded_bytes, encode, coded_scratch, linear_coded};
constexpr const CodedKernels* kCoded = &kCodedKernels;

#else

constexpr const CodedKernels* kCoded = nullptr;

#endif  // GEMMANTLE_INTS

}  // namespace
}  // namespace gemmantle::cpu
