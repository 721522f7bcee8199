// macros.h: the few words kernels need that differ between a host compiler and nvcc.
//
// Functions of kernels/common and kernels/formats are `static inline` or live in unnamed namespaces, so that code
// compiled for one instruction set can never be linked into another.
#pragma once

#if defined(__CUDACC__)
#define GEMMANTLE_HD __host__ __device__
#else
#define GEMMANTLE_HD
#endif

#define GEMMANTLE_RESTRICT __restrict__
