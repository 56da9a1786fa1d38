// Just enough CUDA to compile a kernel with g++ and run it thread after thread: its arithmetic, without a GPU.
// No __syncthreads and no warp intrinsics: a kernel that needs them needs a GPU.
#pragma once
#include <cstddef>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__

struct Index {
    unsigned x = 1, y = 1, z = 1;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static inline int atomicAdd(int* where, int value) {
    const int before = *where;
    *where += value;
    return before;
}

template <class Kernel> static void launch(unsigned grid, unsigned block, Kernel kernel) {
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (unsigned b = 0; b < grid; b++)
        for (unsigned t = 0; t < block; t++) {
            blockIdx = {b, 0, 0};
            threadIdx = {t, 0, 0};
            kernel();
        }
}
