// Whether anything changed in a frame, for a conditional node of the graph. A file of its own, because older drivers
// have no such nodes and cannot link it.
#include "counters.cuh"

// A function of the driver: sets a conditional node of this kernel's graph, which is 0 before.
extern "C" __device__ void cudaGraphSetConditional(u64 node, u32 value);

// One block, behind the comparisons of a frame with the `frames` edges in `of_frames`. If a pixel changed, it lets the
// rest of the frame run, which is `node` (backends/cuda/skipping.py). Else the frame ends here, and is counted (unless
// there are 0 edges to count).
extern "C" __global__ void wake(const int* counters, const int* __restrict__ computed, const int* __restrict__ changed,
                                const int* __restrict__ streams, long long* counted, int edges,
                                const int* __restrict__ of_frames, int frames, u64 node) {
    wait_for_predecessor();
    int any = 0;
    for (int i = 0; i < frames; i++)
        for (int n = threadIdx.x; n < streams[of_frames[i]]; n += blockDim.x)
            any |= read_counter(counters + changed[of_frames[i]] + n);
    if (__syncthreads_count(any)) {
        if (threadIdx.x == 0) cudaGraphSetConditional(node, 1);
        return;
    }
    for (int edge = threadIdx.x; edge < edges; edge += blockDim.x)
        tally_edge(counters, computed, changed, streams, counted, edges, edge);
}
