// The kernels for CPUs with AVX2 and FMA.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define CAPABILITY avx2
#define VECTOR 8
#define ROWS 6
#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
