// Depthwise convolution of listed pixels. A thread is WIDTH channels and RUN pixels that follow each other in the list,
// and every so many of those; where they fit, the weights of its channels stay in registers. Pixels that lie side by
// side, as most of a list do, share what they read. A pixel sums over taps in their order, whatever else changed.
//
// SLIDE: where all pixels are listed a thread goes down a strip of the map, reads each of its pixels once, and adds it to
// the sums of all rows that need it.
#include "tail.cuh"

#ifndef KH
#define KH 3
#endif
#ifndef KW
#define KW 3
#endif
#ifndef SW  // the stride along a row
#define SW 1
#endif
#ifndef RUN  // 1 with a dilation
#define RUN 1
#endif
#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 4
#endif
#ifndef SLIDE  // without strides and dilations, where the weights stay in registers
#define SLIDE 1
#endif
constexpr int TAPS = KH * KW;
constexpr bool HOLD = TAPS * WIDTH * sizeof(number) <= 288;
constexpr int ROWS_AT_ONCE = HOLD ? KH : 1;

// Whether as many columns of a strip leave enough registers: for weights, sums, what is read and what is read ahead.
constexpr bool fits(int columns) {
    return columns <= RUN && TAPS * WIDTH + WIDTH * (KH * columns + (columns - 1 + KW) * 3 / 2) <= 90;
}
constexpr int ACROSS = fits(8) ? 8 : fits(4) ? 4 : fits(2) ? 2 : 1;

struct Head {
    const value* at;      // N x H x W
    const value* weight;  // KH x KW x pitch
    const number* bias;   // pitch
    int pitch, H, W, sh, sw, ph, pw, dh, dw, images;
};

// v: of PIXELS side by side, the first of which reads from row `top` and column `left` on, at `from`.
template <int PIXELS, bool BESIDE>
__device__ __forceinline__ void sum(number (&v)[PIXELS][WIDTH], const Head& h, number (&held)[HOLD ? TAPS : 1][WIDTH],
                                    const value* weights, const value* from, int top, int left) {
    constexpr int COLS = (PIXELS - 1) * SW + KW;
#pragma unroll ROWS_AT_ONCE
    for (int i = 0; i < KH; i++) {
        const bool row_inside = (u32)(top + i * h.dh) < (u32)h.H;
        const value* row = from + (long long)i * h.dh * h.W * h.pitch;
        Pack read[COLS];
#pragma unroll
        for (int k = 0; k < COLS; k++) {
            const int col = BESIDE ? k : k * h.dw;
            read[k] = row_inside && (u32)(left + col) < (u32)h.W ? *(const Pack*)(row + col * h.pitch) : Pack{};
        }
#pragma unroll
        for (int k = 0; k < KW; k++) {
            number loaded[WIDTH];
            if (!HOLD) fetch(loaded, weights + (size_t)(i * KW + k) * h.pitch);
            const number(&weight)[WIDTH] = HOLD ? held[HOLD ? i * KW + k : 0] : loaded;
#pragma unroll
            for (int p = 0; p < PIXELS; p++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[p][j] += get(read[p * SW + k].of[j]) * weight[j];
        }
    }
}

// Rows `top` to `bottom` - 1 of the output, columns `left` to `left` + ACROSS - 1. Row o of the output is summed up in
// sums[(o - top) % KH], from where its first row of the input is read until its last one is.
template <typename Store>
__device__ __forceinline__ void slide(const Head& h, const number (&held)[HOLD ? TAPS : 1][WIDTH],
                                      const number (&bias)[WIDTH], const value* image, int top, int bottom, int left,
                                      const Store& store) {
    constexpr int COLS = ACROSS - 1 + KW;
    number sums[KH][ACROSS][WIDTH] = {};
    Pack read[COLS], ahead[COLS];
    const auto load = [&](Pack(&into)[COLS], int row) {
        const bool inside = (u32)row < (u32)h.H;
        const value* from = image + ((long long)row * h.W + left - h.pw) * h.pitch;
#pragma unroll
        for (int k = 0; k < COLS; k++)
            into[k] = inside && (u32)(left - h.pw + k) < (u32)h.W ? *(const Pack*)(from + k * h.pitch) : Pack{};
    };
    load(ahead, top - h.ph);
#pragma unroll 1
    for (int first = top; first < bottom + KH - 1; first += KH) {
#pragma unroll
        for (int t = 0; t < KH; t++) {  // what row first + t of the output reads first
            const int row = first + t;
#pragma unroll
            for (int k = 0; k < COLS; k++) read[k] = ahead[k];
            if (row + 1 < bottom + KH - 1) load(ahead, row + 1 - h.ph);
#pragma unroll
            for (int p = 0; p < ACROSS; p++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sums[t][p][j] = bias[j];
#pragma unroll
            for (int i = 0; i < KH; i++) {
                number(&sum)[ACROSS][WIDTH] = sums[(t - i + KH) % KH];
#pragma unroll
                for (int k = 0; k < KW; k++)
#pragma unroll
                    for (int p = 0; p < ACROSS; p++)
#pragma unroll
                        for (int j = 0; j < WIDTH; j++)
                            sum[p][j] += get(read[p + k].of[j]) * held[HOLD ? i * KW + k : 0][j];
            }
            const int done = row - KH + 1;
            if (done >= top && done < bottom) store(sums[(t + 1) % KH], done);
        }
    }
}

// out: N x OH x OW pixels of `channels`, `pitch` values apart; list: places of pixels, *count of them; early: it is older
// than the kernel before this one.
extern "C" __global__ void __launch_bounds__(128, AT_ONCE)
    depthwise(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
              const int* list, const int* count, int OH, int OW, int early) {
    const int packs = (channels + WIDTH - 1) / WIDTH;
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, apart = gridDim.x * blockDim.x / packs * RUN;
    const int c = thread % packs * WIDTH;
    int at = thread / packs * RUN;
    begin(early);
    const int listed = *count;
    const bool all = SLIDE && HOLD && listed == head->images * OH * OW;
    if (at >= (all ? apart : min(listed, apart))) {
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
    if (all) {
        const int strips = (OW + ACROSS - 1) / ACROSS, every = apart / RUN;
        int down = 16;  // rows of a strip: two or four more are read; fewer where threads would have nothing to do
        while (down > 2 && h.images * strips * ((OH + down - 1) / down) < every) down /= 2;
        const int high = (OH + down - 1) / down, total = h.images * strips * high;
        for (int strip = at / RUN; strip < total; strip += every) {
            const int n = strip / (strips * high), in_image = strip - n * strips * high, y = in_image / strips;
            const int left = (in_image - y * strips) * ACROSS, top = y * down;
            const value* image = h.at + (long long)n * h.H * h.W * h.pitch + c;
            slide(h, held, bias, image, top, min(top + down, OH), left,
                  [&](number(&sum)[ACROSS][WIDTH], int row) {
#pragma unroll
                      for (int p = 0; p < ACROSS; p++)
                          if (left + p < OW)
                              finish(sum[p], operands, out, pitch, channels, (n * OH + row) * OW + left + p, n, c);
                  });
        }
        return;
    }
    int places[RUN];
#pragma unroll
    for (int p = 0; p < RUN; p++) places[p] = list[min(at + p, listed - 1)];
    while (at < listed) {
        const int first = at, later = at += apart;
        int next[RUN];
#pragma unroll
        for (int p = 0; p < RUN; p++) next[p] = list[min(later + p, listed - 1)];
        const auto corner = [&](int place, int& n, int& top, int& left) {
            n = place / (OH * OW);
            const int pixel = place - n * OH * OW, y = pixel / OW;
            top = y * h.sh - h.ph, left = (pixel - y * OW) * h.sw - h.pw;
            return h.at + (((long long)n * h.H + top) * h.W + left) * h.pitch + c;
        };
        bool beside = RUN > 1 && first + RUN <= listed && places[0] % OW + RUN <= OW;
#pragma unroll
        for (int p = 1; p < RUN; p++) beside &= places[p] == places[0] + p;
        int n, top, left;
        if (beside) {
            const value* from = corner(places[0], n, top, left);
            number v[RUN][WIDTH];
#pragma unroll
            for (int p = 0; p < RUN; p++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[p][j] = bias[j];
            sum<RUN, true>(v, h, held, h.weight + c, from, top, left);
#pragma unroll
            for (int p = 0; p < RUN; p++) finish(v[p], operands, out, pitch, channels, places[0] + p, n, c);
        } else {
#pragma unroll 1
            for (int p = 0; p < RUN && first + p < listed; p++) {
                int place = places[0];  // places[p], which stay in registers
#pragma unroll
                for (int q = 1; q < RUN; q++) place = p == q ? places[q] : place;
                const value* from = corner(place, n, top, left);
                number v[1][WIDTH];
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[0][j] = bias[j];
                sum<1, false>(v, h, held, h.weight + c, from, top, left);
                finish(v[0], operands, out, pitch, channels, place, n, c);
            }
        }
#pragma unroll
        for (int p = 0; p < RUN; p++) places[p] = next[p];
    }
}
