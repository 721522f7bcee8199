// qkv.cu: between the products and attention: norms and rotation of heads, and K and V into their slots.
// budget: prepare_kernel 64
// budget: rope_kernel 40
// budget: store_kv_kernel 40
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kThreads = 256;

struct Turn {
  float sine, cosine;
};

// Sine and cosine of position * frequency without the loss of a rounded product: the angle of a late position has no
// bits left behind the point. The product's rest comes from a fused multiply-add, turns are taken off in three parts.
__device__ __forceinline__ Turn turn_of(int position, float frequency) {
  constexpr float kInverseTurn = 0.15915494309189535f;
  constexpr float kTurn1 = 6.2831854820251465f, kTurn2 = -1.7484555314695172e-7f, kTurn3 = -6.8604980400235275e-15f;
  const float p = static_cast<float>(position);
  const float angle = p * frequency;
  const float rest = fmaf(p, frequency, -angle);
  const float turns = rintf(angle * kInverseTurn);
  const float reduced = fmaf(-turns, kTurn3, fmaf(-turns, kTurn2, fmaf(-turns, kTurn1, angle)) + rest);
  Turn turn;
  simt::fast_sincos(reduced, &turn.sine, &turn.cosine);
  return turn;
}

// A block takes a row; a thread one pair of every head.
__global__ void __launch_bounds__(kThreads) rope_kernel(Rows x, int dim, const float* freq, const int32_t* positions) {
  begin_in_order();
  const int half = dim / 2, heads = x.cols / dim, position = positions[blockIdx.x];
  float* row = x.data + blockIdx.x * x.stride;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) {
    if (freq[i] == 0) continue;  // pairs that never turn
    const Turn turn = turn_of(position, freq[i]);
    for (int h = 0; h < heads; ++h) {
      float* head = row + h * dim;
      const float a = head[i], b = head[i + half];
      head[i] = a * turn.cosine - b * turn.sine;
      head[i + half] = b * turn.cosine + a * turn.sine;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    store_kv_kernel(Bf16* k_cache, Bf16* v_cache, ConstRows k, ConstRows v, const int32_t* slots) {
  begin_in_order();
  const int64_t slot = slots[blockIdx.x];
  if (slot < 0) return;
  for (int c = static_cast<int>(threadIdx.x); c < k.cols; c += kThreads) {
    k_cache[slot * k.cols + c] = to_bf16(k.data[blockIdx.x * k.stride + c]);
    v_cache[slot * k.cols + c] = to_bf16(v.data[blockIdx.x * v.stride + c]);
  }
}

constexpr int kHeadsPerBlock = 4;

// One head, spread over a warp: pair i * 32 + lane of its D / 2 pairs, normed.
template <int D>
struct Head {
  static constexpr int kPairs = D / 2 / kWarp;
  float low[kPairs], high[kPairs];

  __device__ __forceinline__ Head(const float* from) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      low[i] = from[column(i)];
      high[i] = from[column(i) + D / 2];
    }
  }

  static __device__ __forceinline__ int column(int i) { return i * kWarp + static_cast<int>(threadIdx.x) % kWarp; }

  __device__ __forceinline__ void norm(float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) squares += low[i] * low[i] + high[i] * high[i];
    const float factor = 1.0f / sqrtf(warp_sum(squares) / D + eps);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      low[i] *= factor;
      high[i] *= factor;
    }
  }

  __device__ __forceinline__ void weigh_and_turn(const float* weight, const float* freq, int position) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const Turn turn = turn_of(position, freq[column(i)]);
      const float a = low[i] * weight[column(i)], b = high[i] * weight[column(i) + D / 2];
      low[i] = a * turn.cosine - b * turn.sine;
      high[i] = b * turn.cosine + a * turn.sine;
    }
  }

  __device__ __forceinline__ void store(float* to) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      to[column(i)] = low[i];
      to[column(i) + D / 2] = high[i];
    }
  }
  __device__ __forceinline__ void store(Bf16* to) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      to[column(i)] = to_bf16(low[i]);
      to[column(i) + D / 2] = to_bf16(high[i]);
    }
  }
};

// A warp takes a head of a row: those of q, then of k, then of v. Where V is K, a head of k gives both.
template <int D>
__global__ void __launch_bounds__(kHeadsPerBlock* kWarp) prepare_kernel(const __grid_constant__ QkvArgs a) {
  begin_in_order();
  const int64_t row = blockIdx.x;
  const int queries = a.q.cols / D, keys = a.k.cols / D;
  int head = static_cast<int>(blockIdx.y) * kHeadsPerBlock + static_cast<int>(threadIdx.x) / kWarp;
  if (head < queries) {
    float* q = a.q.data + row * a.q.stride + head * D;
    Head<D> values(q);
    values.norm(a.eps);
    values.weigh_and_turn(a.q_norm, a.freq, a.positions[row]);
    values.store(q);
    return;
  }
  head -= queries;
  const bool is_value = head >= keys, value_is_key = a.v.data == nullptr;
  if (is_value) head -= keys;
  if (head >= keys || (is_value && value_is_key)) return;
  const int64_t slot = a.slots[row];
  if (slot < 0) return;
  const int64_t at = slot * a.k.cols + head * D;
  if (is_value) {
    Head<D> values(a.v.data + row * a.v.stride + head * D);
    if (a.norms_v) values.norm(a.eps);
    values.store(a.v_cache + at);
    return;
  }
  Head<D> values(a.k.data + row * a.k.stride + head * D);
  values.norm(a.eps);
  if (value_is_key) values.store(a.v_cache + at);
  values.weigh_and_turn(a.k_norm, a.freq, a.positions[row]);
  values.store(a.k_cache + at);
}

}  // namespace

void prepare_qkv(Stream stream, const QkvArgs& args) {
  const int heads = args.q.cols / args.dim + (args.v.data == nullptr ? 1 : 2) * (args.k.cols / args.dim);
  if (args.rows == 0 || heads == 0) return;
  const dim3 grid(static_cast<unsigned>(args.rows), blocks_for(heads, kHeadsPerBlock));
  const auto kernel = args.dim == 256 ? prepare_kernel<256> : prepare_kernel<512>;
  simt::launch(kernel, grid, kHeadsPerBlock * kWarp, 0, as_stream(stream), args);
}

void rope(Stream stream, Rows x, int dim, const float* freq, const int32_t* positions) {
  if (x.rows == 0) return;
  simt::launch(rope_kernel, static_cast<unsigned>(x.rows), kThreads, 0, as_stream(stream), x, dim, freq, positions);
}

void store_kv(Stream stream, Bf16* k_cache, Bf16* v_cache, ConstRows k, ConstRows v, const int32_t* slots) {
  if (k.rows == 0) return;
  simt::launch(store_kv_kernel, static_cast<unsigned>(k.rows), kThreads, 0, as_stream(stream), k_cache, v_cache, k, v,
               slots);
}

}  // namespace gemmantle::cuda
