// The counters of a frame: how many pixels were computed and changed, edge by edge.
#include "counters.cuh"

// Before a frame.
extern "C" __global__ void clear(int* counters, int length) {
    wait_for_predecessor();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) counters[i] = 0;
}

// Behind a frame.
extern "C" __global__ void tally(const int* counters, const int* __restrict__ computed,
                                 const int* __restrict__ changed, const int* __restrict__ streams, long long* counted,
                                 int edges) {
    wait_for_predecessor();
    const int edge = blockIdx.x * blockDim.x + threadIdx.x;
    if (edge < edges) tally_edge(counters, computed, changed, streams, counted, edges, edge);
}
