// Means of windows, or the largest of their values; a whole block for each window. The windows are the boxes that a map
// is divided into, or cover such means, each of which stands for a box of pixels.
//
// A thread sums the pixels of a window in a fixed stride, the threads of a warp add up in pairs, then the warps one by
// one: an order that does not depend on what changed.
#include "tail.cuh"

#ifndef LANES
#define LANES 4  // threads side by side, each with WIDTH channels; a power of two
#endif
#ifndef LARGEST  // value, else the mean
#define LARGEST 0
#endif
#ifndef THREADS
#define THREADS 256
#endif
#define AT_ONCE 8  // pixels of a thread

struct Head {
    const value* at;                    // N x H x W
    int pitch, H, W, kh, kw;            // windows lie side by side, the last ones may be smaller
    int box_h, box_w, full_h, full_w;  // a pixel stands for a box of a map of full_h x full_w
    int unused;
};

__device__ __forceinline__ int within(int first, int length, int end) { return min(first + length, end) - first; }
__device__ __forceinline__ number joined(number a, number b) { return LARGEST ? b > a || b != b ? b : a : a + b; }

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    means(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
          const int* list, const int* count, int OH, int OW, int early) {
    __shared__ number sums[2][WIDTH][THREADS / 32 * LANES];
    begin(early);
    const int chunks = (channels + LANES * WIDTH - 1) / (LANES * WIDTH);
    const int total = read_counter(count) * chunks;
    if (blockIdx.x > 0 && (int)blockIdx.x >= total) return;
    const Head h = *head;
    int place = list[blockIdx.x / chunks];
    if (early) wait_for_predecessor();
    const int thread = threadIdx.x, lane = thread % LANES, first = thread / LANES, apart = THREADS / LANES;
    int turn = 0;
    for (int i = blockIdx.x; i < total; i += gridDim.x) {
        if (i > (int)blockIdx.x) place = list[i / chunks];
        const int c = (i % chunks * LANES + lane) * WIDTH;
        const int n = place / (OH * OW), pixel = place % (OH * OW);
        const int top = pixel / OW * h.kh, left = pixel % OW * h.kw;
        const int rows = within(top, h.kh, h.H), cols = within(left, h.kw, h.W);
        number v[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) v[j] = LARGEST ? -(number)(1.0 / 0.0) : 0;
        if (c < channels) {
            for (int begun = first; begun < rows * cols; begun += AT_ONCE * apart) {
                Pack taps[AT_ONCE];  // so many loads are in flight at once
                number pixels[AT_ONCE];
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    const int p = begun + k * apart, y = p / cols, row = top + y, col = left + p - y * cols;
                    if (p >= rows * cols) continue;
                    pixels[k] = within(row * h.box_h, h.box_h, h.full_h) * within(col * h.box_w, h.box_w, h.full_w);
                    taps[k] = *(const Pack*)(h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch + c);
                }
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    if (begun + k * apart >= rows * cols) continue;
                    number tap[WIDTH];
                    unpack(tap, taps[k]);
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) v[j] = joined(v[j], LARGEST ? tap[j] : pixels[k] * tap[j]);
                }
            }
        }
        // The sums of a warp's threads are added by shuffles, those of the warps by the first threads.
#pragma unroll
        for (int others = LANES; others < 32; others *= 2)
#pragma unroll
            for (int j = 0; j < WIDTH; j++) v[j] = joined(v[j], __shfl_xor_sync(~0u, v[j], others));
        turn ^= 1;  // a slow thread may still read the sums of the last window
        if (thread % 32 < LANES)
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sums[turn][j][thread / 32 * LANES + lane] = v[j];
        __syncthreads();
        if (first == 0 && c < channels) {
            const number pixels = (number)within(top * h.box_h, rows * h.box_h, h.full_h) *
                                  within(left * h.box_w, cols * h.box_w, h.full_w);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
#pragma unroll  // all on their way at once: one after the other took 2.5 us of a mean's 6
                for (int warp = 1; warp < THREADS / 32; warp++)
                    v[j] = joined(v[j], sums[turn][j][warp * LANES + lane]);
                v[j] = LARGEST ? v[j] : v[j] / pixels;
            }
            finish(v, operands, out, pitch, channels, place, n, c);
        }
    }
}
