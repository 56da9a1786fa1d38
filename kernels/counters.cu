// The counters of a frame: how many pixels were computed and changed, edge by edge.
#include "frame.cuh"

// Before a frame.
extern "C" __global__ void clear(int* counters, int length) {
    wait_for_predecessor();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) counters[i] = 0;
}

// The counts of a frame, for every edge: counted[2 * edge] pixels were computed and counted[2 * edge + 1] changed; and
// behind those of all edges the same of all frames.
// computed: the counter of each edge; changed: the first of its `streams` counters.
extern "C" __global__ void tally(const int* counters, const int* __restrict__ computed,
                                 const int* __restrict__ changed, const int* __restrict__ streams, long long* counted,
                                 int edges) {
    wait_for_predecessor();
    const int edge = blockIdx.x * blockDim.x + threadIdx.x;
    if (edge >= edges) return;
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += counters[changed[edge] + n];
    const long long found[2] = {counters[computed[edge]], sum};
    for (int i = 0; i < 2; i++) {
        counted[2 * edge + i] = found[i];
        counted[2 * (edges + edge) + i] += found[i];
    }
}
