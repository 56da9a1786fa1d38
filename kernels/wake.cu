// Whether the rest of a frame's graph runs: backends/cuda/skipping.py.
#include "frame.cuh"

// Of the driver: gives a conditional node of the graph that this kernel is part of its value.
extern "C" __device__ void cudaGraphSetConditional(u64 node, u32 value);

// Enter the node if a pixel changed in one of the streams; its value is 0 before each frame.
extern "C" __global__ void wake(const int* changed, int streams, u64 node) {
    wait_for_predecessor();
    int any = 0;
    for (int n = threadIdx.x; n < streams; n += blockDim.x) any |= changed[n];
    any = __syncthreads_count(any);
    if (any && threadIdx.x == 0) cudaGraphSetConditional(node, 1);
}
