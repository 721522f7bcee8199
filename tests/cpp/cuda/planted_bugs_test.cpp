// The shim finds the mistakes it is for: small kernels, each whole and with one mistake planted in it.
//
// What shows depends on the build: an order of threads or words in every build, an overrun under the address sanitizer,
// a race under the thread sanitizer.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/device_rows.h"
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::in_every_order;

enum class Bug {
  none,
  missing_barrier,
  barrier_for_some,
  shuffle_for_some,
  shuffle_from_exited_lane,
  different_collectives,
  missing_wait,
  buffer_reused_early,
  copies_left,
  misaligned_copy,
  swapped_fragment,
  half_warp_mma,
  unguarded_tail,
  shared_overrun,
  missing_start,
  read_too_early,
  write_too_early,
};

constexpr int kThreads = 128;

struct SumMemory {
  float parts[kThreads / kWarp];
};

// out[0] = the sum of n values: a block reduction.
template <Bug bug>
__global__ void sum_kernel(float* out, const float* x, int n) {
  const float early = bug == Bug::read_too_early ? x[0] : 0;
  if (bug == Bug::write_too_early) out[0] = 0;
  if (bug != Bug::missing_start) begin_in_order();
  auto& s = simt::shared<SumMemory>();
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp;
  float sum = t == 0 ? early : 0;
  for (int i = t; i < n + (bug == Bug::unguarded_tail ? kThreads : 0); i += kThreads) sum += x[i];
  if (bug == Bug::shuffle_from_exited_lane && lane == 31) return;
  if (bug != Bug::shuffle_for_some || lane % 2 == 0) sum = warp_sum(sum);
  if (bug == Bug::different_collectives) {
    if (lane < 7) {
      simt::syncwarp();
    } else {
      simt::ballot(true);
    }
  }
  if (lane == 0) s.parts[t / kWarp + (bug == Bug::shared_overrun ? 1 : 0)] = sum;
  if (bug != Bug::missing_barrier && (bug != Bug::barrier_for_some || t < 64)) __syncthreads();
  if (bug == Bug::barrier_for_some) __syncthreads();
  if (t != 64) return;  // not the first warp, so that a barrier is needed in more than one order
  sum = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) sum += s.parts[i];
  out[0] = sum;
}

struct TileMemory {
  alignas(16) Bf16 tile[2][16][8];
};

// out[i] = sum over tiles of the i-th value of each: two buffers filled by asynchronous copies.
template <Bug bug>
__global__ void stream_kernel(float* out, const Bf16* x, int tiles) {
  begin_in_order();
  auto& s = simt::shared<TileMemory>();
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (t < 16) {
      const Bf16* from = x + tile * 128 + t * 8 + (bug == Bug::misaligned_copy ? 1 : 0);
      simt::copy_async(s.tile[tile % 2][t], from);
    }
    simt::copy_commit();
  };
  fetch(0);
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles || bug == Bug::copies_left) fetch(tile + 1 < tiles ? tile + 1 : 0);
    if (bug == Bug::missing_wait) {
      simt::copy_wait<2>();
    } else if (tile + 1 < tiles || bug == Bug::copies_left) {
      simt::copy_wait<1>();
    } else {
      simt::copy_wait<0>();
    }
    __syncthreads();
    sum += from_bf16(s.tile[tile % 2][t / 8][t % 8]);
    if (bug != Bug::buffer_reused_early) __syncthreads();
  }
  if (bug == Bug::missing_wait) simt::copy_wait<0>();
  out[t] = sum;
}

struct ProductMemory {
  alignas(16) Bf16 a[16][16];
  alignas(16) Bf16 b[16][16];  // of two tiles of eight columns, transposed
};

// d = a b^T of two 16 x 16 matrices, by one warp.
template <Bug bug>
__global__ void product_kernel(float* d, const Bf16* a, const Bf16* b) {
  begin_in_order();
  auto& s = simt::shared<ProductMemory>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += kWarp) {
    s.a[i / 16][i % 16] = a[i];
    s.b[i / 16][i % 16] = b[i];
  }
  simt::syncwarp();
  if (bug == Bug::half_warp_mma && lane >= 16) return;
  uint32_t left[4], right[4];
  simt::ldmatrix_x4(left, &s.a[lane % 16][lane / 16 * 8]);
  simt::ldmatrix_x4(right, &s.b[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
  for (int j = 0; j < 2; ++j) {
    float sums[4] = {};
    const uint32_t pair[2] = {right[2 * j + (bug == Bug::swapped_fragment ? 1 : 0)],
                              right[2 * j + (bug == Bug::swapped_fragment ? 0 : 1)]};
    simt::mma_bf16(sums, left, pair);
    for (int i = 0; i < 4; ++i) {
      d[(lane / 4 + i / 2 * 8) * 16 + j * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
  }
}

float bf16_value(int i) { return static_cast<float>(i * 37 % 61 - 30) / 8; }

std::vector<Bf16> bf16_values(int n, int from) {
  std::vector<Bf16> out;
  for (int i = 0; i < n; ++i) out.push_back(f32_to_bf16(bf16_value(from + i)));
  return out;
}

// Whether every order of threads and copies gives the right answer.
template <Bug bug>
bool sum_is_right() {
  constexpr int kCount = 301;
  std::vector<float> x(kCount);
  for (int i = 0; i < kCount; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i);
  const DeviceArray<float> values(x);
  bool right = true;
  in_every_order([&](const std::string&) {
    const DeviceArray<float> out(1);
    simt::launch(sum_kernel<bug>, 1, kThreads, sizeof(SumMemory), nullptr, out.data(), values.data(), kCount);
    right &= out.values()[0] == kCount * (kCount - 1) / 2;
  });
  return right;
}

template <Bug bug>
bool stream_is_right() {
  constexpr int kTiles = 5;
  const DeviceArray<Bf16> x(bf16_values(kTiles * 128, 0));
  bool right = true;
  in_every_order([&](const std::string&) {
    const DeviceArray<float> out(kThreads);
    simt::launch(stream_kernel<bug>, 1, kThreads, sizeof(TileMemory), nullptr, out.data(), x.data(), kTiles);
    const std::vector<float> found = out.values();
    for (int i = 0; i < 128; ++i) {
      float sum = 0;
      for (int tile = 0; tile < kTiles; ++tile) sum += bf16_value(tile * 128 + i);
      right &= found[static_cast<size_t>(i)] == sum;
    }
  });
  return right;
}

template <Bug bug>
bool product_is_right() {
  const DeviceArray<Bf16> a(bf16_values(256, 0)), b(bf16_values(256, 91));
  bool right = true;
  in_every_order([&](const std::string&) {
    const DeviceArray<float> d(256);
    simt::launch(product_kernel<bug>, 1, kWarp, sizeof(ProductMemory), nullptr, d.data(), a.data(), b.data());
    const std::vector<float> found = d.values();
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += bf16_value(i * 16 + k) * bf16_value(91 + j * 16 + k);
        right &= found[static_cast<size_t>(i * 16 + j)] == sum;
      }
    }
  });
  return right;
}

TEST(CudaShim, kernels_without_a_mistake_are_right_in_every_order) {
  EXPECT_TRUE(sum_is_right<Bug::none>());
  EXPECT_TRUE(stream_is_right<Bug::none>());
  EXPECT_TRUE(product_is_right<Bug::none>());
}

// A race is an error of its own where the thread sanitizer watches.
#if defined(SIMT_THREAD_SANITIZER)
TEST(CudaShimDeathTest, races_are_named_by_the_thread_sanitizer) {
  EXPECT_DEATH(sum_is_right<Bug::missing_barrier>(), "data race");
  EXPECT_DEATH(stream_is_right<Bug::buffer_reused_early>(), "data race");
}
#else
TEST(CudaShim, wrong_order_shows_in_some_order) {
  EXPECT_FALSE(sum_is_right<Bug::missing_barrier>());
  EXPECT_FALSE(stream_is_right<Bug::buffer_reused_early>());
  EXPECT_FALSE(stream_is_right<Bug::missing_wait>());
}

TEST(CudaShim, what_is_read_before_the_kernel_ahead_has_ended_is_not_there_yet) {
  EXPECT_FALSE(sum_is_right<Bug::read_too_early>());
}

TEST(CudaShim, a_wrong_layout_gives_wrong_values) { EXPECT_FALSE(product_is_right<Bug::swapped_fragment>()); }

TEST(CudaShimDeathTest, what_a_gpu_leaves_undefined_is_said_by_name) {
  EXPECT_DEATH(sum_is_right<Bug::barrier_for_some>(), "at different barriers");
  EXPECT_DEATH(sum_is_right<Bug::shuffle_for_some>(), "deadlock|different collectives|waits at a collective");
  EXPECT_DEATH(sum_is_right<Bug::shuffle_from_exited_lane>(), "lane that has exited|waits at a collective");
  EXPECT_DEATH(sum_is_right<Bug::different_collectives>(), "different collectives");
  EXPECT_DEATH(sum_is_right<Bug::missing_start>(), "without wait_for_previous");
  EXPECT_DEATH(sum_is_right<Bug::write_too_early>(), "wrote before it waited");
  EXPECT_DEATH(stream_is_right<Bug::copies_left>(), "copies it never waited for");
  EXPECT_DEATH(stream_is_right<Bug::misaligned_copy>(), "not 16-byte aligned");
  EXPECT_DEATH(product_is_right<Bug::half_warp_mma>(), "needs all 32 lanes|exited while its warp waits");
}
#endif

#if defined(SIMT_ADDRESS_SANITIZER)
TEST(CudaShimDeathTest, overruns_are_named_by_the_address_sanitizer) {
  EXPECT_DEATH(sum_is_right<Bug::unguarded_tail>(), "AddressSanitizer");
  EXPECT_DEATH(sum_is_right<Bug::shared_overrun>(), "AddressSanitizer");
}
#elif !defined(SIMT_THREAD_SANITIZER)
TEST(CudaShim, an_overrun_reads_what_was_never_written) { EXPECT_FALSE(sum_is_right<Bug::shared_overrun>()); }
#endif

TEST(CudaShimDeathTest, a_write_behind_device_memory_is_found_when_it_is_given_back) {
  EXPECT_DEATH(
      {
        const DeviceMemory memory(16);
        volatile std::byte* behind = memory.data() + 16;
        *behind = std::byte{1};
      },
      "wrote behind its device memory|AddressSanitizer");
}

TEST(CudaShim, launches_a_gpu_would_refuse_are_refused) {
  const auto launch = [](dim3 grid, dim3 block, size_t shared_bytes) {
    simt::launch(sum_kernel<Bug::none>, grid, block, shared_bytes, nullptr, nullptr, nullptr, 0);
  };
  EXPECT_DEATH(launch(1, 1025, 0), "1 to 1024 threads");
  EXPECT_DEATH(launch(0, 32, 0), "bad grid");
  EXPECT_DEATH(launch(1, 32, 228 * 1024), "more shared memory");
}

TEST(CudaShim, collectives_do_what_the_manual_says) {
  struct Kernel {
    static void run(int* out) {
      begin_in_order();
      const int lane = static_cast<int>(threadIdx.x);
      out[lane] = simt::shfl(lane * 3, (lane + 5) % 32);
      out[32 + lane] = simt::shfl_xor(lane, 6);
      out[64 + lane] = static_cast<int>(simt::ballot(lane % 3 == 0));
    }
  };
  in_every_order([&](const std::string& order) {
    const DeviceArray<int> out(96);
    simt::launch(Kernel::run, 1, 32, 0, nullptr, out.data());
    const std::vector<int> found = out.values();
    for (int lane = 0; lane < 32; ++lane) {
      const auto at = static_cast<size_t>(lane);
      EXPECT_EQ(found[at], (lane + 5) % 32 * 3) << order;
      EXPECT_EQ(found[32 + at], lane ^ 6) << order;
      EXPECT_EQ(static_cast<unsigned>(found[64 + at]), 0x49249249u) << order;
    }
  });
}

TEST(CudaShim, recorded_work_runs_when_it_is_replayed_with_the_arguments_it_was_given) {
  DeviceStream stream;
  const DeviceArray<float> x(std::vector<float>{1, 2, 3}), out(1);
  const auto recorded = stream.record(
      [&] { simt::launch(sum_kernel<Bug::none>, 1, kThreads, sizeof(SumMemory), nullptr, out.data(), x.data(), 3); });
  EXPECT_TRUE(std::isnan(out.values()[0]));
  stream.replay(*recorded);
  EXPECT_EQ(out.values()[0], 6);
  const std::vector<float> other = {10, 20, 30};
  stream.upload(x.data(), other.data(), sizeof(float) * 3);
  stream.replay(*recorded);
  EXPECT_EQ(out.values()[0], 60);
}

}  // namespace
}  // namespace gemmantle::cuda
