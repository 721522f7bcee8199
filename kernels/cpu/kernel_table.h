// kernel_table.h: what the kernels of one instruction set offer: a table of functions over pointers and sizes.
//
// Each is single-threaded over a range and writes only what the range names; the caller splits work. Activations are
// f32 rows; strides count values. The order of every sum depends on the row length (or on positions) only, so a row
// comes out with the same bits alone, in a batch, and with any number of threads.
//
// kernels/cpu/variant.cpp is compiled once per instruction set and exports one function that returns its table.
#pragma once

#include <stdint.h>

#include "kernels/formats/format.h"

namespace gemmantle::cpu {

// Rows of packed weights, `row_bytes` apart, at any alignment.
struct WeightRows {
  formats::FormatId format;
  const uint8_t* data;
  int64_t row_bytes;
  int64_t cols;
};

// y[to(r), o] = factor(r) * (w[o] . x[from(r)]), r < rows: from and to are the row itself where their list is null.
// With `factor` the product is added to y, without it is stored.
struct LinearArgs {
  float* y;
  const float* x;
  int64_t y_stride;
  int64_t x_stride;
  int64_t rows;
  const int32_t* from;
  const int32_t* to;
  const float* factor;
  WeightRows w;
};

// Rows of x as CodedKernels::encode leaves them, `row_bytes` apart, at multiples of 64 bytes.
struct CodedRows {
  const uint8_t* data;
  int64_t row_bytes;
};

// Products of mode "fast". `coded`: rows of x become 8-bit codes with a scale for every 32 values, once, and meet
// packed weights in integers. `halves`: they become bf16 and meet bf16 weights. The layout belongs to the instruction
// set.
struct CodedKernels {
  bool (*takes)(formats::FormatId format);  // others go through CpuKernels::linear
  int64_t (*bytes)(int64_t cols);           // of a row of codes
  void (*encode)(uint8_t* coded, const float* x, int64_t cols);

  // CpuKernels::linear with `x` in place of args->x, which is not looked at. `scratch` holds scratch(cols) floats.
  int64_t (*scratch)(int64_t cols);
  void (*linear)(const LinearArgs* args, CodedRows x, int64_t first, int64_t last, float* scratch);
};

struct AttendArgs {
  const float* q;  // the query heads of one KV head, behind each other: [heads, dim]
  int heads;
  int dim;
  const float* k;  // rows of all slots, first column of the KV head
  const float* v;
  int64_t k_stride;
  int64_t v_stride;
  const int32_t* blocks;  // block table of the sequence
  int64_t block_size;
  float scale;
};

// Attention over some positions, not yet divided by its sum: `values` is relative to `max`, heads x dim.
struct AttendState {
  float* max;     // [heads]
  float* sum;     // [heads]
  float* values;  // [heads, dim]
};

// KV of mode "fast": pages of kPagePositions positions of one KV head, page_bytes() long, at any alignment. K of a
// page: for each pair of columns, that pair of every position. V: for each pair of positions, that pair of every
// column. So a head has an even width. A value is a bf16, or a signed byte; behind the bytes of a page lie, for
// every kPageGroup columns, f32 scales of its positions.
enum class PageType : uint8_t { bf16, q8 };
inline constexpr int kPagePositions = 16;
inline constexpr int kPageGroup = 32;
constexpr int64_t page_bytes(PageType type, int64_t dim) noexcept {
  return kPagePositions * (type == PageType::bf16 ? 2 * dim : dim + 4 * ((dim + kPageGroup - 1) / kPageGroup));
}

// Queries of one sequence that read one KV head: `heads` of each of `rows` rows, each row over its own positions.
struct PageArgs {
  const float* q;  // the query heads of a row behind each other, rows q_stride apart
  int64_t q_stride;
  int rows;
  int heads;
  int dim;
  const int32_t* begin;  // [rows] first position
  const int32_t* end;    // [rows] one past the last
  PageType type;
  const uint8_t* k;  // page 0 of the KV head
  const uint8_t* v;
  int64_t page_stride;    // bytes from a page to the next
  const int32_t* blocks;  // block table of the sequence
  int64_t block_size;     // a multiple of kPagePositions
  float scale;
};

inline constexpr int kMaxPageQueries = 64;  // rows * heads that attend() takes at once

struct PageKernels {
  // Position `lane` of a page.
  void (*store)(PageType type, uint8_t* k_page, uint8_t* v_page, int64_t lane, const float* k, const float* v,
                int64_t dim);

  // As CpuKernels::attend, for rows * heads queries; [begin, end) lies inside the union of the rows' positions.
  // `scratch` holds scratch(rows * heads, dim) floats.
  int64_t (*scratch)(int queries, int dim);
  void (*attend)(const PageArgs* args, int64_t begin, int64_t end, AttendState state, float* scratch);
};

// Loops that measure the machine and compute nothing. `sink` holds kPeakSink bytes; products return how many
// multiplications and additions they made, and are null where the instruction set has none of their kind.
struct PeakKernels {
  void (*read)(const uint8_t* data, int64_t bytes, uint8_t* sink);
  int64_t (*f32)(int64_t rounds, uint8_t* sink);
  int64_t (*bf16)(int64_t rounds, uint8_t* sink);
  int64_t (*i8)(int64_t rounds, uint8_t* sink);
};

inline constexpr int kPeakSink = 64;

inline constexpr int kMaxAttendHeads = 16;  // query heads that attend() takes at once

struct CpuKernels {
  const char* name;
  int lanes;

  // Weight rows [first, last) against all rows of x. `scratch` holds linear_scratch(cols) floats.
  int64_t (*linear_scratch)(int64_t cols);
  void (*linear)(const LinearArgs* args, int64_t first, int64_t last, float* scratch);

  // Null where the instruction set has no dot products of bytes, or of bf16.
  const CodedKernels* coded;
  const CodedKernels* halves;

  const PeakKernels* peaks;

  // y[0, cols) = row * scale.
  void (*embed)(float* y, const WeightRows* table, int64_t row, float scale);

  void (*rms_norm)(float* y, const float* x, const float* weight, int64_t cols, int64_t group, float eps);
  void (*add)(float* y, const float* x, int64_t n, float scale);
  void (*scale)(float* y, const float* x, const float* weight, int64_t n, float scale);
  void (*gelu_mul)(float* y, const float* gate, const float* up, int64_t n);
  void (*softcap)(float* y, int64_t n, float cap);
  bool (*is_finite)(const float* x, int64_t n);

  // turns[0, half) = cos, turns[half, 2 half) = sin of position * freq; then x[0, heads * 2 half) in place.
  void (*rope_turns)(float* turns, const float* freq, int64_t half, int32_t position);
  void (*rope)(float* x, const float* turns, int64_t heads, int64_t half);

  // attend() fills a state from positions [begin, end), begin < end; merge() takes another state, of later positions,
  // into `total`; finish() divides and writes [heads, dim]. `scratch` holds kAttendScratch floats.
  void (*attend)(const AttendArgs* args, int64_t begin, int64_t end, AttendState state, float* scratch);
  void (*attend_merge)(AttendState total, AttendState later, int heads, int dim);
  void (*attend_finish)(float* y, AttendState state, int heads, int dim);

  const PageKernels* pages;

  // The `used` largest of n logits, ties to the lower id, and softmax over them, times expert_scale[id].
  void (*route)(int32_t* ids, float* weights, const float* logits, const float* expert_scale, int64_t n, int64_t used);
};

inline constexpr int kAttendTile = 64;  // positions worked on at once; tiles start at multiples of this
inline constexpr int64_t kAttendScratch = int64_t{kMaxAttendHeads} * kAttendTile;

const CpuKernels* kernels_baseline() noexcept;
const CpuKernels* kernels_avx2() noexcept;
const CpuKernels* kernels_avx_vnni() noexcept;
const CpuKernels* kernels_avx512() noexcept;
const CpuKernels* kernels_avx512_vnni() noexcept;
const CpuKernels* kernels_avx512_bf16() noexcept;

}  // namespace gemmantle::cpu
