// Whether there is anything to do behind the comparisons of a frame. A file of its own, for drivers without such nodes.
#include "counters.cuh"

// Of the driver: gives a conditional node of the graph that this kernel is part of its value, which is 0 before.
extern "C" __device__ void cudaGraphSetConditional(u64 node, u32 value);

// One block, behind the comparisons of a frame, those of the `frames` edges in `of_frames`: where a pixel changed the rest
// of the frame runs, which is `node` (backends/cuda/skipping.py). Where none did that was all, and it is counted; with 0
// edges it is not.
extern "C" __global__ void wake(const int* counters, const int* __restrict__ computed, const int* __restrict__ changed,
                                const int* __restrict__ streams, long long* counted, int edges,
                                const int* __restrict__ of_frames, int frames, u64 node) {
    wait_for_predecessor();
    int any = 0;
    for (int i = 0; i < frames; i++)
        for (int n = threadIdx.x; n < streams[of_frames[i]]; n += blockDim.x) any |= counters[changed[of_frames[i]] + n];
    if (__syncthreads_count(any)) {
        if (threadIdx.x == 0) cudaGraphSetConditional(node, 1);
        return;
    }
    for (int edge = threadIdx.x; edge < edges; edge += blockDim.x)
        tally_edge(counters, computed, changed, streams, counted, edges, edge);
}
