// A pixel shuffle whose result leaves the delta graph, N C H W: an input pixel is UP x UP pixels of each plane.
#include "common.cuh"

#ifndef UP
#define UP 2
#endif
#ifndef PLANES
#define PLANES 1  // that a thread reads of its pixel at once: all of its loads are on their way before it stores
#endif
constexpr int AT_ONCE = (UP % 4 == 0 ? 4 : UP % 2 == 0 ? 2 : 1) * sizeof(value);
struct __align__(AT_ONCE < 16 ? AT_ONCE : 16) Run { value of[UP]; };  // pixels of a row, side by side
constexpr int RUNS = PLANES * UP, VECTORS = (RUNS * UP + VECTOR - 1) / VECTOR;
union Box {
    Vector vectors[VECTORS];
    Run runs[RUNS];
};

// list: pixels of the input that changed, *count of them; before: how many in each stream. computed, changed: the same
// counts for the output. C: planes of the output; H, W: the input's size. A thread for each pixel: a warp writes rows
// of neighbours.
extern "C" __global__ void __launch_bounds__(256)
    unfold(const value* from, int pitch, value* to, const int* list, const int* count, const int* before, int* computed,
           int* changed, int N, int C, int H, int W) {
    wait_for_predecessor();
    const int listed = read_counter(count), thread = blockIdx.x * blockDim.x + threadIdx.x;
    const int threads = gridDim.x * blockDim.x;
    if (thread == 0) *computed = listed * UP * UP;
    for (int n = thread; n < N; n += threads) changed[n] = read_counter(before + n) * UP * UP;
    for (int i = thread; i < listed; i += threads) {
        const int place = list[i], n = place / (H * W), pixel = place - n * H * W, y = pixel / W, x = pixel - y * W;
        Run* row = (Run*)to + ((size_t)n * C * H + y) * UP * W + x;
#pragma unroll 1
        for (int c = 0; c < C; c += PLANES) {
            const value* at = from + (size_t)place * pitch + c * UP * UP;
            Box box;
            if (pitch % VECTOR == 0 && (PLANES * UP * UP % VECTOR == 0 || PLANES == C)) {
#pragma unroll
                for (int k = 0; k < VECTORS; k++) box.vectors[k] = load(at + k * VECTOR);
            } else {
#pragma unroll
                for (int k = 0; k < RUNS; k++) box.runs[k] = ((const Run*)at)[k];
            }
#pragma unroll
            for (int k = 0; k < RUNS; k++) row[((size_t)(c + k / UP) * H * UP + k % UP) * W] = box.runs[k];
        }
    }
}
