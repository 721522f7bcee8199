// ints.h: one vector of integers as wide as Vec, for coded.h; GEMMANTLE_INTS says whether this compilation has one.
//
// Every ints_*.h gives the same words over kLanes 32-bit lanes, seen as kLanes / 4 pieces of sixteen bytes.
#pragma once

#include "kernels/cpu/vec.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define GEMMANTLE_INTS 1
#include "kernels/cpu/ints_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GEMMANTLE_INTS 1
#include "kernels/cpu/ints_avx2.h"
#else
#define GEMMANTLE_INTS 0
#endif

#if GEMMANTLE_INTS
namespace gemmantle::cpu {
namespace {

// Keeps v in a register, of unknown value: GCC would rather read it from memory again for each of its uses.
template <class Any>
GEMMANTLE_VEC void hold(Any& v) noexcept {
  asm("" : "+v"(v));
}

}  // namespace
}  // namespace gemmantle::cpu
#endif
