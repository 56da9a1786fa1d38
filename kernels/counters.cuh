// How many pixels were computed and changed, in a frame and in all frames.
#include "frame.cuh"

// counted: for every edge the pixels computed, counted[2 * edge], and changed, counted[2 * edge + 1], in this frame;
// behind these the same for all frames so far. computed: the counter of each edge; changed: the first of its `streams`
// counters.
__device__ __forceinline__ void tally_edge(const int* counters, const int* computed, const int* changed,
                                           const int* streams, long long* counted, int edges, int edge) {
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += read_counter(counters + changed[edge] + n);
    const long long found[2] = {read_counter(counters + computed[edge]), sum};
    for (int i = 0; i < 2; i++) {
        counted[2 * edge + i] = found[i];
        counted[2 * (edges + edge) + i] += found[i];
    }
}
