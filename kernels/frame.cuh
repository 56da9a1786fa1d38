// A frame as it comes in, and its mask: one bit a pixel, a row of W pixels in (W + 31) / 32 words.
#include "common.cuh"

#ifndef BYTES
#define BYTES 0  // whether a frame holds bytes, which become values on the way
#endif
#if BYTES
typedef u8 seen;
__device__ __forceinline__ value arrived(seen v) { return put((number)v); }
#else
typedef value seen;
__device__ __forceinline__ value arrived(seen v) { return v; }
#endif

// The address of a frame. A graph's kernels have fixed arguments, but each frame may lie elsewhere: then its address is
// stored at `at`, and `frame` is the offset of the first value. To be called after wait_for_predecessor.
__device__ __forceinline__ const seen* found(const seen* frame, const u64* at) {
    const seen* const lies = at ? (const seen*)(*at + (u64)frame) : frame;
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(lies));  // so that loads need not find out whether it is shared memory
#endif
    return lies;
}

__device__ __forceinline__ int words_of(int width) { return (width + 31) / 32; }

__device__ __forceinline__ bool is_finite(number v) { return v - v == 0; }

// Adds the pixels with NaN or infinity that the threads of a warp stored. There are hardly ever any: a vote comes first.
__device__ __forceinline__ void add_nonfinite(u64* nonfinite, int of_thread) {
    if (!__any_sync(~0u, of_thread != 0)) return;
    const int of_warp = sum_of_warp(of_thread);
    if ((threadIdx.x & 31) == 0) atomicAdd(nonfinite, (u64)of_warp);
}
