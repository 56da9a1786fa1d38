// Depthwise convolution of listed pixels. A thread is WIDTH channels and every so many pixels; where they fit, the
// weights of its channels stay in registers. It sums over taps in their order, whatever else changed.
#include "tail.cuh"

#ifndef KH
#define KH 3
#endif
#ifndef KW
#define KW 3
#endif
constexpr int TAPS = KH * KW;
constexpr bool HOLD = TAPS * WIDTH * sizeof(number) <= 288;
constexpr int ROWS_AT_ONCE = HOLD ? KH : 1;

struct Head {
    const value* at;      // N x H x W
    const value* weight;  // KH x KW x pitch
    const number* bias;   // pitch
    int pitch, H, W, sh, sw, ph, pw, dh, dw, unused;
};

// out: N x OH x OW pixels of `channels`, `pitch` values apart; list: places of pixels, *count of them; early: it is older
// than the kernel before this one.
extern "C" __global__ void __launch_bounds__(128, 3)
    depthwise(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
              const int* list, const int* count, int OH, int OW, int early) {
    const int packs = (channels + WIDTH - 1) / WIDTH;
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, apart = gridDim.x * blockDim.x / packs;
    const int c = thread % packs * WIDTH;
    int at = thread / packs;
    if (!early) wait_for_predecessor();
    const int listed = *count;
    if (at >= min(listed, apart)) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const Head h = *head;
    number held[HOLD ? TAPS : 1][WIDTH], bias[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) bias[j] = h.bias[c + j];
    if (HOLD)
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) fetch(held[HOLD ? tap : 0], h.weight + (size_t)tap * h.pitch + c);
    if (early) wait_for_predecessor();
    for (int next, place = list[at]; at < listed; at += apart, place = next) {
        next = list[min(at + apart, listed - 1)];
        const int n = place / (OH * OW), pixel = place - n * OH * OW, y = pixel / OW;
        const int top = y * h.sh - h.ph, left = (pixel - y * OW) * h.sw - h.pw;
        const value* row = h.at + (((long long)n * h.H + top) * h.W + left) * h.pitch + c;
        number v[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) v[j] = bias[j];
#pragma unroll ROWS_AT_ONCE
        for (int i = 0; i < KH; i++) {
            const bool row_inside = (u32)(top + i * h.dh) < (u32)h.H;
            Pack read[KW];
#pragma unroll
            for (int k = 0; k < KW; k++) {
                const bool inside = row_inside && (u32)(left + k * h.dw) < (u32)h.W;
                read[k] = inside ? *(const Pack*)(row + ((long long)i * h.dh * h.W + k * h.dw) * h.pitch) : Pack{};
            }
#pragma unroll
            for (int k = 0; k < KW; k++) {
                const int tap = i * KW + k;
                number loaded[WIDTH];
                if (!HOLD) fetch(loaded, h.weight + (size_t)tap * h.pitch + c);
                const number(&weight)[WIDTH] = HOLD ? held[HOLD ? tap : 0] : loaded;
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[j] += get(read[k].of[j]) * weight[j];
            }
        }
        finish(v, operands, out, pitch, channels, place, n, c);
    }
}
