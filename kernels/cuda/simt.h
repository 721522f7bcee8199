// simt.h: what a kernel may use: one source, two machines.
//
// A kernel written against this header is compiled by nvcc for the GPU, or by any C++20 compiler for the host, where a
// CUDA thread is a fiber (tests/cpp/support/simt). `threadIdx`, `blockIdx`, `blockDim`, `gridDim`, `__syncthreads()`,
// `__global__`, `__device__` and `__launch_bounds__` keep their usual spelling. Rules of kernel source:
//   - a kernel is started with simt::launch(), never with <<<>>>;
//   - its shared memory is one struct, taken with simt::shared<S>(), its size is sizeof(S);
//   - no PTX outside this header, no spinning on another block, no dynamic parallelism;
//   - what changes from step to step is read from device memory, never passed by value;
//   - a kernel may begin before the one ahead of it has ended: every thread calls wait_for_previous(), before it
//   touches
//     anything that a kernel writes and before it ends. Until then it may read weights.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(__CUDACC__)

#include <simt_host.h>  // of the tests: only a host build has it on its path

#else

#include <cuda_runtime.h>

namespace simt {

using Stream = cudaStream_t;

// The block's dynamic shared memory, seen as one struct.
template <class S>
__device__ __forceinline__ S& shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return *reinterpret_cast<S*>(memory);
}

// Whether the code that this device runs has the two functions below; without them a kernel must not begin early.
template <class Kernel>
bool may_begin_early(Kernel* kernel) {
  constexpr int kDevices = 16;
  enum : char { unknown, no, yes };
  static thread_local char known[kDevices] = {};
  int device = 0;
  cudaGetDevice(&device);
  char& here = known[device % kDevices];
  if (here == unknown || device >= kDevices) {
    cudaFuncAttributes attributes{};
    here = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90 ? yes : no;
  }
  return here == yes;
}

// A refused launch stays as the run time's last error, which the device seam reads after every step.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute begins_early{};
  begins_early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  begins_early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &begins_early;
  config.numAttrs = may_begin_early(kernel) ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, P(static_cast<A&&>(args))...);
}

// Bytes of shared memory that a block may ask for on the current device.
inline size_t shared_limit() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kBeginsEarly = true;
// Returns when every kernel ahead has ended and what it wrote is there.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;\n" ::: "memory"); }
// The next kernel may begin when every block has said so or has ended.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory"); }
#else
constexpr bool kBeginsEarly = false;
__device__ __forceinline__ void wait_for_previous() {}
__device__ __forceinline__ void let_next_start() {}
#endif

// Collectives of a whole warp: every live lane must reach the same one.
template <class T>
__device__ __forceinline__ T shfl(T value, int lane) {
  return __shfl_sync(~0u, value, lane);
}
template <class T>
__device__ __forceinline__ T shfl_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
__device__ __forceinline__ unsigned ballot(bool value) { return __ballot_sync(~0u, value); }
__device__ __forceinline__ void syncwarp() { __syncwarp(); }

// d += a * b for one 16 x 8 x 16 tile held across the warp: bf16 in, f32 sums. With g = lane / 4 and p = lane % 4 * 2:
// a[i] holds rows g + i % 2 * 8, columns p + i / 2 * 8 and the next; b[i] rows p + i * 8 and the next, column g;
// d[i] row g + i / 2 * 8, column p + i % 2.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 tiles of 16-bit values from shared memory; lane l names row l % 8 of tile l / 8, 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Sixteen bytes from global to shared memory, later; zeros where !ok (then `global` is not read).
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool ok = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0],[%1],16,%2;\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(ok ? 16 : 0)
      : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most N of this thread's committed groups are still on their way.
template <int N>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// (a & mask) | bits
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0,%1,%2,%3,0xea;\n" : "=r"(d) : "r"(a), "r"(mask), "r"(bits));
  return d;
}
// A pair of bf16 values in one register, `low` in the low half. Rounding is to nearest, ties to even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// a * b + c on both halves, rounded once each.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0,%1,%2,%3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ float half_to_float(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0,%1;\n" : "=f"(value) : "h"(half));
  return value;
}
__device__ __forceinline__ uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
__device__ __forceinline__ float fast_exp(float x) { return __expf(x); }
// Good to 2^-21 for |x| <= pi.
__device__ __forceinline__ void fast_sincos(float x, float* sine, float* cosine) { __sincosf(x, sine, cosine); }

// Asks for the cache line of `data` to be in L2 soon.
__device__ __forceinline__ void prefetch_l2(const void* data) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(data));
}

}  // namespace simt

#endif
