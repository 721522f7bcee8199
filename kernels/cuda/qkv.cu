// qkv.cu: between the products and attention: rotation of heads, and K and V into their slots.
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
  const int64_t slot = slots[blockIdx.x];
  if (slot < 0) return;
  for (int c = static_cast<int>(threadIdx.x); c < k.cols; c += kThreads) {
    k_cache[slot * k.cols + c] = to_bf16(k.data[blockIdx.x * k.stride + c]);
    v_cache[slot * k.cols + c] = to_bf16(v.data[blockIdx.x * v.stride + c]);
  }
}

}  // namespace

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
