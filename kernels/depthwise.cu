// Depthwise convolution of listed pixels. A thread is WIDTH channels and RUN pixels that follow each other in the list,
// and every so many of those; where they fit, the weights of its channels stay in registers. Pixels that lie side by
// side, as most of a list do, share what they read. A pixel sums over taps in their order, whatever else changed.
//
// STAGED: where all pixels are listed tiles of the map come into shared memory first, and each pixel is read once. Not
// with COMPARE.
#include "tail.cuh"
#include "compare.cuh"

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
#ifndef STAGED  // without dilations, one stride, whole vectors of 16 bytes from pixel to pixel, weights in registers
#define STAGED 0
#endif
constexpr int TAPS = KH * KW;
constexpr bool HOLD = TAPS * WIDTH * sizeof(number) <= 288;
constexpr int ROWS_AT_ONCE = HOLD ? KH : 1;

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

#if STAGED
// A block brings a tile of the map, and what is around it, into shared memory: a pixel is SLOT channels there, those of
// LANES threads. A thread sums up RUN pixels of a row at a time.
constexpr int LANES = 16, SLOT = LANES * WIDTH, PIECES = SLOT * sizeof(value) / 16;
constexpr int WIDE = 16, RUNS = WIDE / RUN, IN_W = ((WIDE - 1) * SW + KW + 1) / 2 * 2;
constexpr int rows_in(int high) { return (high - 1) * SW + KH; }
constexpr bool has_room(int high) { return rows_in(high) * IN_W * SLOT * sizeof(value) <= 45 << 10; }
constexpr int HIGH = SW == 1 && has_room(16) ? 16 : has_room(8) ? 8 : has_room(4) ? 4 : 2;
constexpr int IN_H = rows_in(HIGH);

__device__ __forceinline__ void copy_behind(value* to, const value* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
#else
    *(Vector*)to = inside ? *(const Vector*)from : Vector{};
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Where a column of a tile lies: the two halves of a warp read RUN * SW columns apart, and in different banks.
__device__ __forceinline__ int slot_of(int col) { return col ^ (col / (RUN * SW) & 1); }

// staged: IN_H x IN_W x SLOT values of shared memory.
__device__ __forceinline__ void tiles(value* staged, const Head& h, const Operand* operands, value* out, int pitch,
                                      int channels, int OH, int OW) {
    const int chunks = (channels + SLOT - 1) / SLOT, across = (OW + WIDE - 1) / WIDE, down = (OH + HIGH - 1) / HIGH;
    const int total = h.images * down * across * chunks, lane = threadIdx.x % LANES;
    for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
        const int place = tile / chunks, y = place / across, n = y / down;  // y goes on over the images
        const int first = (tile - place * chunks) * SLOT, c = first + lane * WIDTH;
        const int top = (y - n * down) * HIGH, left = (place - y * across) * WIDE;
        const value* image = h.at + (long long)n * h.H * h.W * h.pitch + first;
        for (int i = threadIdx.x; i < IN_H * IN_W * PIECES; i += blockDim.x) {
            const int pixel = i / PIECES, piece = i % PIECES * VECTOR, row = pixel / IN_W, col = pixel - row * IN_W;
            const int at_y = top * SW - h.ph + row, at_x = left * SW - h.pw + col;
            const bool inside = (u32)at_y < (u32)h.H && (u32)at_x < (u32)h.W && first + piece < h.pitch;
            copy_behind(staged + (row * IN_W + slot_of(col)) * SLOT + piece,
                        image + (inside ? (long long)(at_y * h.W + at_x) * h.pitch + piece : 0), inside);
        }
        number held[TAPS][WIDTH], bias[WIDTH];
        if (c < channels) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) bias[j] = h.bias[c + j];
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) fetch(held[tap], h.weight + (size_t)tap * h.pitch + c);
        }
        wait_for_copies();
        __syncthreads();
        for (int run = threadIdx.x / LANES; run < RUNS * HIGH; run += blockDim.x / LANES) {
            const int row = run / RUNS, col = run % RUNS * RUN, odd_run = run % 2;
            if (c >= channels || top + row >= OH || left + col >= OW) continue;
            const value* begin = staged + (row * IN_W + col) * SW * SLOT + lane * WIDTH;
            const value *evens = begin + odd_run * SLOT, *odds = begin - odd_run * SLOT;  // as `slot_of` has them
            number v[RUN][WIDTH];
#pragma unroll
            for (int p = 0; p < RUN; p++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[p][j] = bias[j];
#pragma unroll
            for (int i = 0; i < KH; i++) {
                constexpr int COLS = (RUN - 1) * SW + KW;
                Pack read[COLS];
#pragma unroll
                for (int k = 0; k < COLS; k++) {
                    const bool other = k >= RUN * SW, odd = k % 2;
                    const value* from = odd == other ? evens : odds;
                    read[k] = *(const Pack*)(from + (i * IN_W + (other ? k ^ 1 : k)) * SLOT);
                }
#pragma unroll
                for (int k = 0; k < KW; k++)
#pragma unroll
                    for (int p = 0; p < RUN; p++)
#pragma unroll
                        for (int j = 0; j < WIDTH; j++) v[p][j] += get(read[p * SW + k].of[j]) * held[i * KW + k][j];
            }
#pragma unroll
            for (int p = 0; p < RUN; p++)
                if (left + col + p < OW)
                    finish(v[p], operands, out, pitch, channels, (n * OH + top + row) * OW + left + col + p, n, c);
        }
        __syncthreads();
    }
}
#endif

// out: N x OH x OW pixels of `channels`, `pitch` values apart; list: places of pixels, *count of them; early: it is older
// than the kernel before this one; the others: struct Marks.
extern "C" __global__ void __launch_bounds__(128, AT_ONCE)
    depthwise(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
              const int* list, const int* count, int OH, int OW, int early, u32* mask, int* changed,
              number threshold, int* marked, int* marked_count) {
    const int packs = threads_of_pixel(channels);
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, apart = gridDim.x * blockDim.x / packs * RUN;
    const int c = thread % packs * WIDTH;
    int at = thread / packs * RUN;
    begin(early);
    const int listed = *count;
#if STAGED
    __shared__ Vector staged[IN_H * IN_W * PIECES];
    if (listed == head->images * OH * OW) {
        const Head h = *head;
        if (early) wait_for_predecessor();
        return tiles((value*)staged, h, operands, out, pitch, channels, OH, OW);
    }
#endif
    // With COMPARE all threads of a block meet at its end.
    const int begins = COMPARE ? blockIdx.x * (blockDim.x / packs) * RUN : at;
    if (begins >= min(listed, apart)) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const Marks marks = {mask, changed, threshold, marked, marked_count};
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
                int place = places[0];  // places[p], which stay in registers
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
