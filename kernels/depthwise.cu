// Depthwise convolution of listed pixels. A thread computes WIDTH channels of RUN consecutive pixels of the list at a
// time; the weights of its channels stay in registers if they fit. Pixels that lie side by side, as most of a list do,
// share what they read. A pixel sums over taps in their order, whatever else changed.
//
// STAGED: where more pixels are listed than the grid's threads take at once, or where the window is large, tiles of the
// map are brought into shared memory first, so that a pixel is read once for all outputs that need it.
#include "depthwise.cuh"

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
#ifndef STAGED  // no dilation, one stride of at most 2, whole vectors of 16 bytes from pixel to pixel, weights in registers
#define STAGED 0
#endif
#ifndef THREADS
#define THREADS 128
#endif
constexpr int TAPS = KH * KW;
constexpr bool HOLD = TAPS * WIDTH * sizeof(number) <= 288;
constexpr int ROWS_AT_ONCE = HOLD ? KH : 1;
// STAGED: tiles for lists of any length. Measured (H100, half; benchmarks/results/depthwise_tiles.json): 5x5 on 96
// channels at 68x120, batch 8, 1 % and 20 % of the pixels 27 and 36 us pixel by pixel, 9 and 13 in tiles; 3x3 is faster
// pixel by pixel as long as all run at once.
constexpr bool ALWAYS_TILES = TAPS > 9 && !COMPARE;

// v: the sums of PIXELS pixels side by side, the first of which reads from row `top` and column `left` on, at `from`.
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

#if STAGED
#include "depthwise_tiles.cuh"
#endif

// out: N x OH x OW pixels of `channels`, `pitch` values apart; list: places of pixels, *count of them; early: see
// `begin`; bits: the listed pixels as a mask, or null; the others: struct Marks.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE)
    depthwise(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
              const int* list, const int* count, int OH, int OW, int early, u32* mask, int* changed,
              Threshold threshold, int* marked, int* marked_count, const u32* bits) {
    if (TOGETHER) {
        const Sibling& mine = ((const Sibling*)head)[blockIdx.y];
        head = &mine.head, out = mine.out, pitch = mine.pitch;
    }
    const int packs = threads_of_pixel(channels);
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, apart = gridDim.x * blockDim.x / packs * RUN;
    const int c = thread % packs * WIDTH;
    int at = thread / packs * RUN;
    begin(early);
    const int listed = read_counter(count);
    const Marks marks = {mask, changed, threshold, marked, marked_count};
#if STAGED
    __shared__ Shared shared;
    if (bits && listed > (ALWAYS_TILES ? 0 : apart)) {
        const Head h = *head;
        begin_marks();
        tiles(shared, h, operands, out, pitch, channels, bits, OH, OW, early, marks);
        return end_marks(marks);
    }
#endif
    // With COMPARE all threads of a block meet at its end.
    const int begins = COMPARE ? blockIdx.x * (blockDim.x / packs) * RUN : at;
    if (begins >= min(listed, apart)) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    begin_marks();
    const bool holds = !COMPARE || c < channels;
    const Head h = *head;
    number held[HOLD ? TAPS : 1][WIDTH], bias[WIDTH];
    if (holds) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) bias[j] = h.bias[c + j];
        if (HOLD)
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) fetch(held[HOLD ? tap : 0], h.weight + (size_t)tap * h.pitch + c);
    }
    if (early) wait_for_predecessor();
    const auto place_of = [&](int place) { return holds ? out + (size_t)place * pitch + c : nullptr; };
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
            Pack stored[RUN];
#pragma unroll
            for (int p = 0; p < RUN; p++) stored[p] = before(place_of(places[0] + p));
            if (holds) sum<RUN, true>(v, h, held, h.weight + c, from, top, left);
#pragma unroll
            for (int p = 0; p < RUN; p++)
                keep(v[p], operands, place_of(places[0] + p), stored[p], channels, places[0] + p, n, c, OW, marks);
        } else {
#pragma unroll 1
            for (int p = 0; p < RUN && first + p < listed; p++) {
                int place = places[0];  // places[p], by selection: an index would move the array out of registers
#pragma unroll
                for (int q = 1; q < RUN; q++) place = p == q ? places[q] : place;
                const value* from = corner(place, n, top, left);
                number v[1][WIDTH];
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[0][j] = bias[j];
                const Pack stored = before(place_of(place));
                if (holds) sum<1, false>(v, h, held, h.weight + c, from, top, left);
                keep(v[0], operands, place_of(place), stored, channels, place, n, c, OW, marks);
            }
        }
#pragma unroll
        for (int p = 0; p < RUN; p++) places[p] = next[p];
    }
    end_marks(marks);
}
