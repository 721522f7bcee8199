// launch.h: every kernel the CUDA backend starts, as plain C++.
//
// Conventions:
//   - activations are f32 [rows, cols] with a row stride in elements; tensor cores take them rounded to bf16, sums are
//     f32. Nothing is assumed of the alignment of a row, and any number of columns is taken unless a launcher says so;
//   - all pointers are device memory; a launcher returns at once, its work is ordered by the stream;
//   - counts passed by value (rows, cols) belong to the shape of a step; whatever changes between two steps of one
//   shape
//     (ids, positions, slots, ranges, tiles) is read from device memory, so that a captured step can be replayed;
//   - zero rows do nothing; outputs do not overlap inputs unless it is said; sums run in an order fixed by the shape of
//     one row, so a row has the same bits alone and in company (attention: for one number of splits).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/common/macros.h"
#include "kernels/common/sampling.h"

namespace gemmantle::cuda {

using Stream = void*;  // cudaStream_t

template <class T>
struct View {
  T* data = nullptr;
  int rows = 0;
  int cols = 0;
  int64_t stride = 0;  // elements between the starts of two rows
};
using Rows = View<float>;
using ConstRows = View<const float>;
using Bf16 = uint16_t;  // bits of a bfloat16

// How the values of a weight lie on the device. A row holds `padded_cols` values, `cols` rounded up to a multiple of 32
// and filled with zeros (so a kernel reads whole pieces, with activations beyond `cols` taken as zero), and starts on a
// multiple of 16 bytes.
//   bf16: value = the bf16 itself.
//   int8: value(c) = scale(g) * q(c) + offset(g), q signed, g = c / group.
//   int4: the same with q - 8 for q; byte i of 32 values holds value i in its low and value i + 16 in its high half.
// Scales: [count * rows, padded_cols / group] of f16, or f32 where a format needs it; offsets alike, or null for none.
enum class Plane : uint8_t { bf16, int8, int4 };

struct Matrix {
  Plane plane = Plane::bf16;
  bool wide_scales = false;  // scales and offsets are f32, not f16
  int group = 32;            // values that share a scale: 32, or 16 (int8 only)
  int rows = 0;              // output features of one matrix
  int cols = 0;              // input features
  int padded_cols = 0;
  int count = 1;  // matrices (experts) behind each other, in values, scales and offsets
  const uint8_t* values = nullptr;
  const void* scales = nullptr;
  const void* offsets = nullptr;

  GEMMANTLE_HD int64_t row_bytes() const {
    return plane == Plane::bf16 ? int64_t{2} * padded_cols : plane == Plane::int8 ? padded_cols : padded_cols / 2;
  }
};

// ---- embed.cu

// y[r] = table[ids[r]] * scale; zeros for a negative id (a padding row).
void embed(Stream stream, Rows y, const Matrix& table, const int32_t* ids, float scale);

// ---- norm.cu

// Every run of `group` columns by itself: y = x / sqrt(mean(x^2) + eps) * weight; weight null: 1. y may be x.
void rms_norm(Stream stream, Rows y, ConstRows x, const float* weight, int group, float eps);

// h = (h + rms_norm(y, post)) * scale; where `next` is not null, x = rms_norm(h, next). Whole rows.
void add_norm(Stream stream, Rows h, ConstRows y, const float* post, float scale, const float* next, Rows x, float eps);

// ---- elementwise.cu

// y = (y + x) * scale.
void add(Stream stream, Rows y, ConstRows x, float scale);
// y = x * scale * weight (per column; null: 1). y may be x.
void scale(Stream stream, Rows y, ConstRows x, const float* weight, float scale);
// y = gelu_tanh(gate) * up. y may be either.
void gelu_mul(Stream stream, Rows y, ConstRows gate, ConstRows up);
// y = cap * tanh(y / cap).
void softcap(Stream stream, Rows y, float cap);
// y[r] = x[source[r]].
void copy_rows(Stream stream, Rows y, ConstRows x, const int32_t* source);
// y = bf16(x), zeros from x.cols to y.cols. y.cols and y.stride are multiples of 8, y is 16-byte aligned.
void round_rows(Stream stream, View<Bf16> y, ConstRows x);
// Lowers *smallest to `tag` when x holds a value that is not finite. *smallest starts as INT32_MAX.
void check_finite(Stream stream, ConstRows x, int tag, int32_t* smallest);

// ---- qkv.cu

// Rotates every head of x [rows, heads * dim] in place, half-split; freq[dim / 2] radians a position.
void rope(Stream stream, Rows x, int dim, const float* freq, const int32_t* positions);
// k_cache[slots[r]] = bf16(k[r]), v alike; a negative slot is not written (a padding row).
void store_kv(Stream stream, Bf16* k_cache, Bf16* v_cache, ConstRows k, ConstRows v, const int32_t* slots);

struct QkvArgs {
  Rows q;          // [rows, heads * dim]; no columns: left out
  ConstRows k, v;  // [rows, KV heads * dim]; no columns: left out. v.data null: V is K
  int rows = 0, dim = 0;
  const float *q_norm = nullptr, *k_norm = nullptr;  // [dim]
  bool norms_v = false;                              // where there is a v; K in its stead always is normed
  float eps = 0;
  const float* freq = nullptr;         // [dim / 2] radians a position
  const int32_t* positions = nullptr;  // [rows]
  Bf16 *k_cache = nullptr, *v_cache = nullptr;
  const int32_t* slots = nullptr;  // [rows]; a negative one is not written
};
// rms_norm, rope and store_kv of a layer's heads at once: q in place, k and v as bf16 into their slots. V's norm has no
// weights. dim is one that attend_takes().
void prepare_qkv(Stream stream, const QkvArgs& args);

// ---- product.cu: few rows; each weight is read once for up to 8 rows

constexpr int kFewRows = 16;

// y[r, o] = sum_i bf16(x[r, i]) * w[o, i], 1 <= rows <= kFewRows, any plane; w.count is 1. cap > 0: cap * tanh(y /
// cap).
void product_few(Stream stream, Rows y, ConstRows x, const Matrix& w, float cap = 0);
// y[r, o] = gelu_tanh(x[r] . gate[o]) * (x[r] . up[o]); gate and up agree in plane, group and sizes.
void product_geglu(Stream stream, Rows y, ConstRows x, const Matrix& gate, const Matrix& up);

// ---- gemm.cu: many rows

// y = x w^T; x is [rows, w.padded_cols] from round_rows; w is [w_rows, padded_cols] bf16, 16-byte aligned rows. `cap`
// as above.
void gemm(Stream stream, Rows y, View<const Bf16> x, View<const Bf16> w, float cap = 0);
// out = rows [first, first + out.rows) of w as bf16, out.cols == w.padded_cols. Rows count through all matrices of w.
void unpack_rows(Stream stream, View<Bf16> out, const Matrix& w, int64_t first);

// ---- attention.cu

// Rows [first, first + rows) of one sequence, whose query heads one block takes together; rows 0: nothing to do.
struct AttendTile {
  int32_t first = 0;
  int32_t rows = 0;
  int32_t sequence = 0;
};

struct AttendArgs {
  Rows y;       // [rows, heads * dim]
  ConstRows q;  // [rows, heads * dim], rounded to bf16 on the way
  int heads = 0, kv_heads = 0, dim = 0;
  float scale = 1;
  const Bf16 *k = nullptr, *v = nullptr;                 // [blocks * block_size, kv_heads * dim], 16-byte aligned
  int block_size = 0;                                    // positions in a block
  const int32_t* block_table = nullptr;                  // [sequences, max_blocks], -1 where nothing is
  const int32_t* max_blocks = nullptr;                   // one number
  const int32_t *kv_begin = nullptr, *kv_end = nullptr;  // [rows]; an empty range gives zeros
  const AttendTile* tiles = nullptr;                     // [n_tiles]
  int n_tiles = 0;
  int tile_rows = 1;         // the most rows a tile has: chooses the kernel
  int splits = 1;            // shares of the keys; more than one needs `partial`
  float* partial = nullptr;  // attend_scratch_bytes()
};

bool attend_takes(int dim);  // 256 and 512
// The most rows a tile may have when `group` query heads share a KV head, for prompt rows or single rows.
int attend_tile_rows(int dim, int group, bool prompt);
size_t attend_scratch_bytes(int rows, int heads, int dim, int splits);
// y[r] = softmax(scale * q[r] . K) V over positions [kv_begin[r], kv_end[r]) of the row's sequence; merges the splits.
void attend(Stream stream, const AttendArgs& args);

// ---- experts.cu

// Softmax over logits [rows, experts], the ids.cols largest (ties to the lower id), renormalised, times
// expert_scale[id]; in descending order.
void route(Stream stream, View<int32_t> ids, Rows weights, ConstRows logits, const float* expert_scale);

struct ExpertArgs {
  Rows y;       // [rows, hidden]
  ConstRows x;  // [rows, hidden]
  View<const int32_t> ids;
  ConstRows weights;
  Matrix gate_up;  // gate rows, then up rows, of each expert; or gate alone
  Matrix up;       // values null: gate_up holds both
  Matrix down;
  void* scratch = nullptr;  // experts_scratch_bytes(), 256-byte aligned
};

constexpr int kFewExpertRows = 8;  // of a call in which every row reads its experts by itself

size_t experts_scratch_bytes(const ExpertArgs& args);
// y[r] = sum_j weights[r, j] * down_e(gelu_tanh(gate_e x[r]) * (up_e x[r])), e = ids[r, j], summed in order of j.
// Few rows read each expert's weights per row; many rows are grouped by expert on the device.
void experts(Stream stream, const ExpertArgs& args);

// ---- sample.cu

// SampleRow as the host fills it, with every pointer in device memory.
size_t sample_scratch_bytes(int rows, int vocabulary);
// tokens[r] from row r of logits, by the rules of kernels/common/sampling.h.
void sample(Stream stream, SampledToken* tokens, ConstRows logits, const SampleRow* rows, void* scratch);

}  // namespace gemmantle::cuda
