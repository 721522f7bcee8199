// ints.h: one vector of integers as wide as Vec, for coded.h; GEMMANTLE_INTS says whether this compilation has one.
//
// What all widths share is here; every ints_*.h gives the same words beside it, over kLanes 32-bit lanes, seen as
// kLanes / 4 pieces of sixteen bytes.
#pragma once

#include "kernels/cpu/vec.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GEMMANTLE_INTS 1

namespace gemmantle::cpu {
namespace {

typedef long long Ints __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

GEMMANTLE_VEC Ints load_ints(const void* p) noexcept { return (Ints)load(p); }
GEMMANTLE_VEC void store_ints(void* p, Ints v) noexcept { store(static_cast<float*>(p), (Vec)v); }
GEMMANTLE_VEC Ints no_ints() noexcept { return Ints{}; }
GEMMANTLE_VEC Ints both(Ints a, Ints b) noexcept { return a & b; }
GEMMANTLE_VEC Ints either(Ints a, Ints b) noexcept { return a | b; }
GEMMANTLE_VEC Ints differ(Ints a, Ints b) noexcept { return a ^ b; }
GEMMANTLE_VEC Ints minus(Ints a, Ints b) noexcept { return (Ints)((Words)a - (Words)b); }
GEMMANTLE_VEC Ints shift_left(Ints v, int n) noexcept { return (Ints)((Words)v << n); }
GEMMANTLE_VEC Ints shift_right(Ints v, int n) noexcept { return (Ints)((Words)v >> n); }

// Keeps v in a register, of unknown value: GCC would rather read it from memory again for each of its uses.
template <class Any>
GEMMANTLE_VEC void hold(Any& v) noexcept {
  asm("" : "+v"(v));
}

}  // namespace
}  // namespace gemmantle::cpu

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "kernels/cpu/ints_avx512.h"
#else
#include "kernels/cpu/ints_avx2.h"
#endif
#else
#define GEMMANTLE_INTS 0
#endif
