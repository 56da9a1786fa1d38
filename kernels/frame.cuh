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

__device__ __forceinline__ int words_of(int width) { return (width + 31) / 32; }
