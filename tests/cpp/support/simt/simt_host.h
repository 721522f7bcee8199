// simt_host.h: the host half of kernels/cuda/simt.h: CUDA's words and the wrappers, exact and slow.
//
// Layouts of fragments are the documented ones, so a mistake in a layout gives the same wrong answer as on the GPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/float.h"
#include "simt_fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v != 0 ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __uint_as_float(unsigned bits) { return gemmantle::f32_from_bits(bits); }
inline unsigned __float_as_uint(float value) { return gemmantle::f32_bits(value); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicAdd(T* p, T value) {
  return std::atomic_ref<T>(*p).fetch_add(value);
}
template <class T>
T atomicMin(T* p, T value) {
  std::atomic_ref<T> cell(*p);
  T old = cell.load();
  while (value < old && !cell.compare_exchange_weak(old, value)) {
  }
  return old;
}
template <class T>
T atomicMax(T* p, T value) {
  std::atomic_ref<T> cell(*p);
  T old = cell.load();
  while (old < value && !cell.compare_exchange_weak(old, value)) {
  }
  return old;
}

namespace simt {
namespace host {

inline constexpr unsigned kWholeWarp = ~0u;

inline float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
inline float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

inline void land(const Copy& copy) { copy.ok ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16); }

template <bool transposed>
void ldmatrix(uint32_t (&r)[4], const void* row) {
  struct Argument {
    uint32_t* r;
    const void* row;
  } mine{r, row};
  if (!aligned16(row)) die("ldmatrix: a row is not 16-byte aligned");
  will_read(row, 16);
  collective(mine, [](Argument** lanes, unsigned live) {
    if (live != kWholeWarp) die("ldmatrix needs all 32 lanes");
    for (int m = 0; m < 4; ++m) {
      for (int l = 0; l < 32; ++l) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int y = transposed ? l % 4 * 2 + i : l / 4, x = transposed ? l / 4 : l % 4 * 2 + i;
          pair[i] = static_cast<const uint16_t*>(lanes[m * 8 + y]->row)[x];
        }
        lanes[l]->r[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      }
    }
  });
}

}  // namespace host

inline size_t shared_limit() { return config.shared_limit; }

template <class T>
T shfl(T value, int lane) {
  struct Argument {
    T in, out;
    int lane;
  } mine{value, value, lane};
  host::collective(mine, [](Argument** lanes, unsigned live) {
    for (int l = 0; l < 32; ++l) {
      if ((live >> l & 1) == 0) continue;
      const int from = lanes[l]->lane & 31;
      if ((live >> from & 1) == 0) host::die("a shuffle reads a lane that has exited");
      lanes[l]->out = lanes[from]->in;
    }
  });
  return mine.out;
}
template <class T>
T shfl_xor(T value, int mask) {
  return shfl(value, static_cast<int>(host::fiber->lane) ^ mask);
}

inline unsigned ballot(bool value) {
  struct Argument {
    bool in;
    unsigned out;
  } mine{value, 0};
  host::collective(mine, [](Argument** lanes, unsigned live) {
    unsigned votes = 0;
    for (int l = 0; l < 32; ++l) {
      if ((live >> l & 1) != 0 && lanes[l]->in) votes |= 1u << l;
    }
    for (int l = 0; l < 32; ++l) {
      if ((live >> l & 1) != 0) lanes[l]->out = votes;
    }
  });
  return mine.out;
}

inline void syncwarp() {
  char nothing = 0;
  host::collective(nothing, [](char**, unsigned) {});
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Argument {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  host::collective(mine, [](Argument** lanes, unsigned live) {
    if (live != host::kWholeWarp) host::die("mma needs all 32 lanes");
    float left[16][16], right[16][8];
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, p = l % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        left[g + i % 2 * 8][p + i / 2 * 8] = host::low_half(lanes[l]->a[i]);
        left[g + i % 2 * 8][p + i / 2 * 8 + 1] = host::high_half(lanes[l]->a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        right[p + i * 8][g] = host::low_half(lanes[l]->b[i]);
        right[p + i * 8 + 1][g] = host::high_half(lanes[l]->b[i]);
      }
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        lanes[l]->d[i] += sum;
      }
    }
  });
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                        unsigned line = __builtin_LINE()) {
  host::is_planted(Fault::wrong_layout, file, line) ? host::ldmatrix<true>(r, row) : host::ldmatrix<false>(r, row);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                              unsigned line = __builtin_LINE()) {
  host::is_planted(Fault::wrong_layout, file, line) ? host::ldmatrix<false>(r, row) : host::ldmatrix<true>(r, row);
}

// A copy lands when it is waited for, so that code which forgets to wait reads NaN; or, with early_copies, at once, so
// that code which overwrites what others still read is seen. The thread sanitizer sees a write at both moments.
inline void copy_async(void* shared, const void* global, bool ok = true, const char* file = __builtin_FILE(),
                       unsigned line = __builtin_LINE()) {
  if (!ok && host::is_planted(Fault::no_guard, file, line)) ok = true;
  if (!host::aligned16(shared) || (ok && !host::aligned16(global))) host::die("copy_async: not 16-byte aligned");
  const host::Copy copy{shared, global, ok};
  host::will_write(shared, 16);
  if (config.early_copies) host::land(copy);
  host::Quiet quiet;
  host::fiber->copies.back().push_back(copy);
}
inline void copy_commit() {
  host::Quiet quiet;
  host::fiber->copies.emplace_back();
}
template <int N>
void copy_wait(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  const size_t may_stay = host::is_planted(Fault::short_wait, file, line) ? N + 1 : N;
  auto& groups = host::fiber->copies;
  while (true) {
    std::vector<host::Copy> oldest;
    {
      host::Quiet quiet;
      if (groups.size() <= may_stay + 1) return;
      oldest = std::move(groups.front());
      groups.erase(groups.begin());
    }
    if (config.early_copies) continue;
    for (const host::Copy& copy : oldest) host::land(copy);
  }
}

inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }
inline uint32_t pack_bf16(float low, float high) {
  return gemmantle::f32_to_bf16(low) | static_cast<uint32_t>(gemmantle::f32_to_bf16(high)) << 16;
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return pack_bf16(std::fma(host::low_half(a), host::low_half(b), host::low_half(c)),
                   std::fma(host::high_half(a), host::high_half(b), host::high_half(c)));
}
inline float half_to_float(uint16_t half) { return gemmantle::f16_to_f32(half); }
inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (pick & 7) & 255);
    if ((pick & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;  // the sign, replicated
    out |= byte << 8 * i;
  }
  return out;
}
inline float fast_exp(float x) { return std::exp(x); }
inline void fast_sincos(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}
inline void prefetch_l2(const void*) {}

inline constexpr bool kBeginsEarly = true;
inline void wait_for_previous() { host::wait_for_previous(); }
inline void let_next_start() {}

}  // namespace simt

#define threadIdx (::simt::host::fiber->index)
#define blockIdx (::simt::host::block->index)
#define blockDim (::simt::host::block->block)
#define gridDim (::simt::host::block->grid)
#define __syncthreads() ::simt::host::barrier(__FILE__, __LINE__)
