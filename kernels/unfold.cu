// A pixel shuffle whose map leaves the delta graph: a pixel of the input is UP x UP pixels of each plane, N C H W.
#include "common.cuh"

#ifndef UP
#define UP 2
#endif
constexpr int AT_ONCE = (UP % 4 == 0 ? 4 : UP % 2 == 0 ? 2 : 1) * sizeof(value);
struct __align__(AT_ONCE < 16 ? AT_ONCE : 16) Run { value of[UP]; };  // pixels of a row, side by side

// list: pixels of the input that changed, *count of them, `before` in each stream. computed, changed: the same, in pixels
// of the output. C, H, W: of the output's planes, the input. A thread is a pixel: a warp writes rows of neighbours.
extern "C" __global__ void __launch_bounds__(256)
    unfold(const value* from, int pitch, value* to, const int* list, const int* count, const int* before, int* computed,
           int* changed, int N, int C, int H, int W) {
    wait_for_predecessor();
    const int listed = *count, thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    if (thread == 0) *computed = listed * UP * UP;
    for (int n = thread; n < N; n += threads) changed[n] = before[n] * UP * UP;
    for (int i = thread; i < listed; i += threads) {
        const int place = list[i], n = place / (H * W), pixel = place - n * H * W, y = pixel / W, x = pixel - y * W;
        const Run* runs = (const Run*)(from + (size_t)place * pitch);
        Run* row = (Run*)to + ((size_t)n * C * H + y) * UP * W + x;
#pragma unroll 1
        for (int c = 0; c < C; c++, row += (size_t)H * UP * W)
#pragma unroll
            for (int r = 0; r < UP; r++) row[(size_t)r * W] = runs[c * UP + r];
    }
}
