// The counts of a frame, and of all frames.
#include "frame.cuh"

// The counts of a frame, for every edge: counted[2 * edge] pixels were computed and counted[2 * edge + 1] changed; and
// behind those of all edges the same of all frames.
// computed: the counter of each edge; changed: the first of its `streams` counters.
__device__ __forceinline__ void tally_edge(const int* counters, const int* computed, const int* changed,
                                           const int* streams, long long* counted, int edges, int edge) {
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += counters[changed[edge] + n];
    const long long found[2] = {counters[computed[edge]], sum};
    for (int i = 0; i < 2; i++) {
        counted[2 * edge + i] = found[i];
        counted[2 * (edges + edge) + i] += found[i];
    }
}
