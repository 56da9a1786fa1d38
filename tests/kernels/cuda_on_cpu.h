// Just enough CUDA to compile a source with g++ and run its device functions on the CPU: their arithmetic, without a
// GPU. What works across threads compiles and does nothing: a kernel that needs it needs a GPU.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

using std::max;
using std::min;

struct Index {
    unsigned x = 1, y = 1, z = 1;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

template <class To, class From> static To bits_as(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "another size");
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline unsigned __float_as_uint(float f) { return bits_as<unsigned>(f); }
static inline unsigned long long __double_as_longlong(double f) { return bits_as<unsigned long long>(f); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int atomicAdd(int* where, int value) {
    const int before = *where;
    *where += value;
    return before;
}
static inline void __syncthreads() {}
static inline int __syncthreads_count(bool one) { return one; }
static inline bool __syncthreads_or(bool one) { return one; }
static inline unsigned __ballot_sync(unsigned, bool one) { return one; }
static inline bool __any_sync(unsigned, bool one) { return one; }
