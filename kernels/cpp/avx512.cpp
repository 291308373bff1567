// The kernels for CPUs with AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define CAPABILITY avx512
#define VECTOR 16
#define ROWS 14
#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
