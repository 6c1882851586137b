// The macros of the library: MTTT_HD marks scalar code that runs on host and device, MTTT_INLINE such code
// that must be part of the loop that calls it, MTTT_SIMD a loop whose iterations are independent,
// MTTT_UNROLL one of 16 at most whose sums must stay in registers.
//
// Shapes:  none.   Units: none.   Errors: none.
// Not supported: other compilers' vectorisation hints; they ignore MTTT_SIMD and stay correct.
// Source:  OpenMP 4.0 `simd`; CUDA C++ Programming Guide, execution space specifiers.
#pragma once

#ifdef __CUDACC__
#define MTTT_HD __host__ __device__
#else
#define MTTT_HD
#endif

#if defined(__CUDACC__)
#define MTTT_INLINE __forceinline__
#elif defined(__GNUC__)
#define MTTT_INLINE inline __attribute__((always_inline))
#else
#define MTTT_INLINE inline
#endif
#ifdef __GNUC__  // behind the parameters of a lambda
#define MTTT_INLINED __attribute__((always_inline))
#else
#define MTTT_INLINED
#endif

#define MTTT_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define MTTT_UNROLL
#elif defined(__clang__)
#define MTTT_UNROLL MTTT_PRAGMA(unroll)
#else
#define MTTT_UNROLL MTTT_PRAGMA(GCC unroll 16)
#endif
#if defined(__CUDACC__)
#define MTTT_SIMD
#define MTTT_SIMD_SUM(variable)
#define MTTT_SIMD_MAX(variable)
#else
#define MTTT_SIMD MTTT_PRAGMA(omp simd)
#define MTTT_SIMD_SUM(variable) MTTT_PRAGMA(omp simd reduction(+ : variable))
#define MTTT_SIMD_MAX(variable) MTTT_PRAGMA(omp simd reduction(max : variable))
#endif
