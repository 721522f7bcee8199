// peak.h: loops that only read or only multiply: what the machine could do at most, for the measuring tools.
//
// Results go to `sink`, so that no loop is left out; their values mean nothing.
#pragma once

#include "kernels/cpu/ints.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle::cpu {
namespace {

// Sums that do not wait for each other: enough to hide the latency of a product, few enough for the registers.
constexpr int kChains = kLanes == 16 ? 16 : 10;

void peak_read(const uint8_t* data, int64_t bytes, uint8_t* sink) noexcept {
  typedef uint64_t Wide __attribute__((vector_size(sizeof(Vec))));
  constexpr int kLoads = 4;
  Wide sums[kLoads] = {};
  for (int64_t at = 0; at + kLoads * int64_t{sizeof(Wide)} <= bytes; at += kLoads * int64_t{sizeof(Wide)}) {
#pragma GCC unroll 4
    for (int i = 0; i < kLoads; ++i) {
      Wide v;
      memcpy(&v, data + at + i * int64_t{sizeof(Wide)}, sizeof v);
      sums[i] ^= v;
    }
  }
  const Wide all = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
  memcpy(sink, &all, sizeof all);
}

int64_t peak_f32(int64_t rounds, uint8_t* sink) noexcept {
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = fill(static_cast<float>(i));
  const Vec factor = fill(0.5f), offset = fill(1.0f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = fma(sums[i], factor, offset);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = sums[0] + sums[i];
  memcpy(sink, &sums[0], sizeof(Vec));
  return rounds * kChains * kLanes * 2;
}

#if GEMMANTLE_INTS
int64_t peak_i8(int64_t rounds, uint8_t* sink) noexcept {
  Ints sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = no_ints();
  const Ints codes = fill_bytes(7);
  Ints x = fill_bytes(3);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      asm volatile("" : "+x"(x));  // or a product that never changes is taken out of the loop
      sums[i] = dot4(sums[i], codes, x);
    }
  }
  for (int i = 1; i < kChains; ++i) sums[0] = differ(sums[0], sums[i]);
  store_ints(sink, sums[0]);
  return rounds * kChains * kLanes * 4 * 2;
}
constexpr auto kPeakI8 = peak_i8;
#else
constexpr int64_t (*kPeakI8)(int64_t, uint8_t*) = nullptr;
#endif

#if defined(__AVX512BF16__)
int64_t peak_bf16(int64_t rounds, uint8_t* sink) noexcept {
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = fill(0.0f);
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = sums[0] + sums[i];
  memcpy(sink, &sums[0], sizeof(Vec));
  return rounds * kChains * kLanes * 2 * 2;
}
constexpr auto kPeakBf16 = peak_bf16;
#else
constexpr int64_t (*kPeakBf16)(int64_t, uint8_t*) = nullptr;
#endif

constexpr PeakKernels kPeaks = {.read = peak_read, .f32 = peak_f32, .bf16 = kPeakBf16, .i8 = kPeakI8};

}  // namespace
}  // namespace gemmantle::cpu
