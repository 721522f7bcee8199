// common.cuh: bf16, 16-byte loads, sums over a warp and a block, GELU.
#pragma once

#include "kernels/common/float.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.h"

namespace gemmantle::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ float from_bf16(Bf16 bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
__device__ __forceinline__ Bf16 to_bf16(float value) { return static_cast<Bf16>(simt::pack_bf16(value, 0.0f)); }

// The start of a kernel that has nothing to do before the one ahead of it has ended.
__device__ __forceinline__ void begin_in_order() {
  simt::wait_for_previous();
  simt::let_next_start();
}

// Eight bf16 from 16 aligned bytes.
__device__ __forceinline__ void load8(float (&out)[8], const Bf16* from) {
  const uint4 q = *reinterpret_cast<const uint4*>(from);
  const unsigned words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += simt::shfl_xor(value, mask);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, simt::shfl_xor(value, mask));
  return value;
}

// The sum over a block of `threads`, the same bits in every thread; `parts` holds one float a warp. Two barriers, so
// `parts` may be used again at once.
template <int threads>
__device__ __forceinline__ float block_sum(float value, float (&parts)[threads / kWarp]) {
  const int t = static_cast<int>(threadIdx.x);
  value = warp_sum(value);
  if (t % kWarp == 0) parts[t / kWarp] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < threads / kWarp; ++i) sum += parts[i];
  __syncthreads();
  return sum;
}

__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

// y / cap through tanh; cap 0: y as it is.
__device__ __forceinline__ float capped(float y, float cap) { return cap > 0 ? cap * tanhf(y / cap) : y; }

// A scale or offset of a quantised plane.
__device__ __forceinline__ float plane_scale(const void* scales, bool wide, int64_t at) {
  return wide ? static_cast<const float*>(scales)[at] : simt::half_to_float(static_cast<const uint16_t*>(scales)[at]);
}

// One value of a weight; `row` counts through all matrices. For kernels that read few values.
__device__ __forceinline__ float weight_value(const Matrix& w, int64_t row, int col) {
  const uint8_t* values = w.values + row * w.row_bytes();
  if (w.plane == Plane::bf16) return from_bf16(reinterpret_cast<const Bf16*>(values)[col]);
  const int64_t group = row * (w.padded_cols / w.group) + col / w.group;
  const int byte = values[col / 32 * 16 + col % 16];
  const int q = w.plane == Plane::int8 ? static_cast<const int8_t*>(static_cast<const void*>(values))[col]
                                       : (col % 32 < 16 ? byte & 15 : byte >> 4) - 8;
  const float product = plane_scale(w.scales, w.wide_scales, group) * static_cast<float>(q);
  return w.offsets == nullptr ? product : product + plane_scale(w.offsets, w.wide_scales, group);
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

inline simt::Stream as_stream(Stream stream) { return static_cast<simt::Stream>(stream); }

}  // namespace gemmantle::cuda
