// attention.cu: one attention kernel for prompts, single rows and drafts, and the merge of its splits.
//
// The query heads that share a KV head are rows of one matrix, row = token * group + head, so a prompt is a tall matrix
// and a decode row a short one. A block meets `M` of these rows with `N` keys at a time. Its eight warps take the 16 x
// 16 tiles of the scores, and slices of the head where there are fewer than eight tiles; for the output each owns an
// eighth of the columns. V arrives while scores are computed, the next K while the output is.
//
// Tiles of keys begin at multiples of N of the position, so that with one split a row has the same bits whatever rows
// share its block. Shared memory: 147 KB for prompts at width 512 (77 KB where a block may not have that much).
// budget: attend_kernel 224
// budget: merge_kernel 48
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMergeThreads = 128;
constexpr int kFewQueries = 16;  // rows of the matrix that a single token or a draft brings

template <int D, int M, int N>
struct AttendShared {
  static constexpr int kTiles = M / 16 * (N / 16);
  static constexpr int kSlices = kWarps / kTiles;
  static_assert(kTiles * kSlices == kWarps && D % (16 * kSlices) == 0 && kWarp % N == 0);
  Bf16 q[M][D + 8], k[N][D + 8], v[N][D + 8], p[M][N + 8];  // eight more: ldmatrix meets no bank twice
  float scores[kSlices][M][N + 1];
  float top[M], sum[M], fix[M];  // of the exponents so far; what the output so far must be multiplied with
  int begin[M], end[M];          // the keys a row sees
  int slots[2][N];               // of the keys of this tile and the next; -1: nobody's
};

// Where split `split` of block row (tile, kv head) leaves its share: a sum of weighted values, unnormalised.
struct Partial {
  float* sums;   // [rows * heads][splits][dim]
  float2* tops;  // [rows * heads][splits]: largest score, sum of exponents against it

  __device__ __forceinline__ Partial(const AttendArgs& a)
      : sums(a.partial),
        tops(reinterpret_cast<float2*>(a.partial + static_cast<int64_t>(a.q.rows) * a.heads * a.splits * a.dim)) {}
};

template <int D, int M, int N>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const __grid_constant__ AttendArgs a) {
  begin_in_order();
  using Shared = AttendShared<D, M, N>;
  auto& s = simt::shared<Shared>();
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  const int kv_head = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.z), group = a.heads / a.kv_heads;
  const AttendTile tile = a.tiles[blockIdx.x];
  const int rows = tile.rows * group;
  if (rows == 0) return;

  for (int i = t; i < M; i += kThreads) {
    const int token = tile.first + i / group;
    s.begin[i] = i < rows ? a.kv_begin[token] : 0;
    s.end[i] = i < rows ? a.kv_end[token] : 0;
    s.top[i] = -INFINITY;
    s.sum[i] = 0;
  }
  __syncthreads();
  int begin = 0x7fffffff, end = 0;  // the keys that some row of this block sees
  for (int i = 0; i < rows; i += group) {
    if (s.begin[i] < s.end[i]) {
      begin = min(begin, s.begin[i]);
      end = max(end, s.end[i]);
    }
  }
  const int seen_from = begin;
  begin = min(begin, end) / N * N;
  const int share = ((end - begin + a.splits - 1) / a.splits + N - 1) / N * N;
  const int first = begin + split * share, last = min(end, first + share);

  const int32_t* table = a.block_table + static_cast<int64_t>(tile.sequence) * *a.max_blocks;
  const auto find_slots = [&](int(&slots)[N], int base) {
    for (int i = t; i < N; i += kThreads) {
      const int key = base + i;
      const bool is_seen = key >= seen_from && key < last;
      slots[i] = is_seen ? table[key / a.block_size] * a.block_size + key % a.block_size : -1;
    }
  };
  const auto fetch = [&](Bf16(&to)[N][D + 8], const Bf16* from, const int(&slots)[N]) {
    for (int i = t; i < N * D / 8; i += kThreads) {
      const int r = i / (D / 8), col = i % (D / 8) * 8, slot = slots[r];
      const int64_t at = slot < 0 ? 0 : (static_cast<int64_t>(slot) * a.kv_heads + kv_head) * D + col;
      simt::copy_async(&to[r][col], from + at, slot >= 0);
    }
    simt::copy_commit();
  };

  int now = 0;  // which slots are this tile's
  if (first < last) find_slots(s.slots[now], first);
  __syncthreads();
  if (first < last) fetch(s.k, a.k, s.slots[now]);
  for (int i = t; i < M * D; i += kThreads) {
    const int r = i / D, col = i % D, token = tile.first + r / group, head = kv_head * group + r % group;
    s.q[r][col] = to_bf16(r < rows ? a.q.data[token * a.q.stride + head * D + col] : 0.0f);
  }

  float out[M / 16][D / 64][4] = {};
  for (int base = first; base < last; base += N, now ^= 1) {
    const bool more = base + N < last;
    fetch(s.v, a.v, s.slots[now]);
    if (more) find_slots(s.slots[now ^ 1], base + N);
    simt::copy_wait<1>();
    __syncthreads();
    {
      const int part = warp % Shared::kTiles, slice = warp / Shared::kTiles;
      const int m = part % (M / 16) * 16, n = part / (M / 16) * 16;
      constexpr int kDepth = D / Shared::kSlices;
      float acc[2][4] = {};
#pragma unroll 8
      for (int d = slice * kDepth; d < (slice + 1) * kDepth; d += 16) {
        uint32_t fq[4], fk[4];
        simt::ldmatrix_x4(fq, &s.q[m + lane % 16][d + lane / 16 * 8]);
        simt::ldmatrix_x4(fk, &s.k[n + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
        const uint32_t left[2] = {fk[0], fk[1]}, right[2] = {fk[2], fk[3]};
        simt::mma_bf16(acc[0], fq, left);
        simt::mma_bf16(acc[1], fq, right);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s.scores[slice][m + lane / 4 + i / 2 * 8][n + j * 8 + lane % 4 * 2 + i % 2] = acc[j][i];
        }
      }
    }
    __syncthreads();
    if (more) fetch(s.k, a.k, s.slots[now ^ 1]);                                     // nobody reads K any more
    for (int r = warp * (kWarp / N) + lane / N; r < M; r += kWarps * (kWarp / N)) {  // a lane for each key
      const int key = base + lane % N;
      float score = 0;
#pragma unroll
      for (int i = 0; i < Shared::kSlices; ++i) score += s.scores[i][r][lane % N];
      score = key >= s.begin[r] && key < min(s.end[r], last) ? score * a.scale : -INFINITY;
      float top = score;
#pragma unroll
      for (int i = N / 2; i > 0; i /= 2) top = fmaxf(top, simt::shfl_xor(top, i));
      const float old = s.top[r];
      top = fmaxf(top, old);
      const float origin = top == -INFINITY ? 0.0f : top;  // no key seen yet
      const float e = simt::fast_exp(score - origin);
      float sum = e;
#pragma unroll
      for (int i = N / 2; i > 0; i /= 2) sum += simt::shfl_xor(sum, i);
      s.p[r][lane % N] = to_bf16(e);
      simt::syncwarp();  // every lane has read top
      if (lane % N == 0) {
        const float fix = simt::fast_exp(old - origin);
        s.fix[r] = fix;
        s.sum[r] = s.sum[r] * fix + sum;
        s.top[r] = top;
      }
    }
    if (more) {
      simt::copy_wait<1>();
    } else {
      simt::copy_wait<0>();
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
      const float upper = s.fix[i * 16 + lane / 4], lower = s.fix[i * 16 + lane / 4 + 8];
#pragma unroll
      for (int j = 0; j < D / 64; ++j) {
        out[i][j][0] *= upper, out[i][j][1] *= upper;
        out[i][j][2] *= lower, out[i][j][3] *= lower;
      }
    }
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      uint32_t fp[M / 16][4];
#pragma unroll
      for (int i = 0; i < M / 16; ++i) simt::ldmatrix_x4(fp[i], &s.p[i * 16 + lane % 16][n + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < D / 64; j += 2) {
        uint32_t fv[4];
        const int col = warp * (D / 8) + j * 8 + lane / 16 * 8;
        simt::ldmatrix_x4_trans(fv, &s.v[n + lane / 8 % 2 * 8 + lane % 8][col]);
        const uint32_t left[2] = {fv[0], fv[1]}, right[2] = {fv[2], fv[3]};
#pragma unroll
        for (int i = 0; i < M / 16; ++i) {
          simt::mma_bf16(out[i][j], fp[i], left);
          simt::mma_bf16(out[i][j + 1], fp[i], right);
        }
      }
    }
    __syncthreads();
  }

  const Partial partial(a);
#pragma unroll
  for (int i = 0; i < M / 16; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = i * 16 + h * 8 + lane / 4;
      if (r >= rows) continue;
      const int token = tile.first + r / group, head = kv_head * group + r % group;
      const int64_t at = (static_cast<int64_t>(token) * a.heads + head) * a.splits + split;
      const float sum = s.sum[r], factor = sum > 0 ? 1.0f / sum : 0.0f;
      if (a.splits > 1 && warp == 0 && lane % 4 == 0) partial.tops[at] = make_float2(s.top[r], sum);
      float* to = a.splits > 1 ? partial.sums + at * D : a.y.data + token * a.y.stride + head * D;
#pragma unroll
      for (int j = 0; j < D / 64; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = out[i][j][h * 2 + e];
          to[warp * (D / 8) + j * 8 + lane % 4 * 2 + e] = a.splits > 1 ? value : value * factor;
        }
      }
    }
  }
}

// A block joins the splits of one head of one row, in their order. Splits without a key have weight zero.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ AttendArgs a) {
  begin_in_order();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int64_t at = (static_cast<int64_t>(row) * a.heads + head) * a.splits;
  const Partial partial(a);
  const bool is_empty = a.kv_begin[row] >= a.kv_end[row];  // perhaps of no tile: then nothing was left
  float top = -INFINITY, sum = 0;
  for (int i = 0; i < a.splits && !is_empty; ++i) top = fmaxf(top, partial.tops[at + i].x);
  for (int i = 0; i < a.splits && !is_empty; ++i) {
    sum += partial.tops[at + i].y * simt::fast_exp(partial.tops[at + i].x - top);
  }
  for (int c = static_cast<int>(threadIdx.x); c < a.dim; c += kMergeThreads) {
    float value = 0;
    for (int i = 0; i < a.splits && !is_empty; ++i) {
      value += partial.sums[(at + i) * a.dim + c] * simt::fast_exp(partial.tops[at + i].x - top);
    }
    a.y.data[row * a.y.stride + head * a.dim + c] = is_empty ? 0.0f : value / sum;
  }
}

template <int D, int M, int N>
void start(Stream stream, const AttendArgs& a) {
  const dim3 grid(static_cast<unsigned>(a.n_tiles), static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(a.splits));
  simt::launch(attend_kernel<D, M, N>, grid, kThreads, sizeof(AttendShared<D, M, N>), as_stream(stream), a);
}

using WidePrompt = AttendShared<512, 64, 32>;
static_assert(sizeof(WidePrompt) <= 163 * 1024 && sizeof(AttendShared<512, 32, 16>) <= 99 * 1024);
static_assert(sizeof(AttendShared<512, 16, 32>) <= 99 * 1024 && sizeof(AttendShared<256, 64, 32>) <= 99 * 1024);

bool has_room_for_wide_prompts() { return simt::shared_limit() >= sizeof(WidePrompt); }

}  // namespace

bool attend_takes(int dim) { return dim == 256 || dim == 512; }

int attend_tile_rows(int dim, int group, bool prompt) {
  const int queries = !prompt ? kFewQueries : dim == 512 && !has_room_for_wide_prompts() ? 32 : 64;
  return max(1, queries / group);
}

size_t attend_scratch_bytes(int rows, int heads, int dim, int splits) {
  return splits > 1 ? sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(heads) *
                          static_cast<size_t>(splits) * static_cast<size_t>(dim + 2)
                    : 0;
}

void attend(Stream stream, const AttendArgs& args) {
  if (args.n_tiles == 0 || args.q.rows == 0) return;
  const bool is_few = args.tile_rows * (args.heads / args.kv_heads) <= kFewQueries;
  if (args.dim == 256) {
    is_few ? start<256, 16, 32>(stream, args) : start<256, 64, 32>(stream, args);
  } else if (is_few) {
    start<512, 16, 32>(stream, args);
  } else {
    has_room_for_wide_prompts() ? start<512, 64, 32>(stream, args) : start<512, 32, 16>(stream, args);
  }
  if (args.splits > 1) {
    const dim3 grid(static_cast<unsigned>(args.q.rows), static_cast<unsigned>(args.heads));
    simt::launch(merge_kernel, grid, kMergeThreads, 0, as_stream(stream), args);
  }
}

}  // namespace gemmantle::cuda
