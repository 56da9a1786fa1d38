// `look` of gate.cu: a block has ROWS x 32 pixels of a frame, and reads what is around them.
//
// Where differences are averaged over boxes they lie in shared memory. A tile whose differences are all small has no box that
// is not; and one whose sums down the columns are, none across.
#include "gate_compare.cuh"
#if SMOOTH > 1
#include "gate_boxes.cuh"
#define FOURS_AROUND ((2 * AROUND * WIDE + 2 * BESIDE * ROWS) / 4)

// Where the i-th four pixels of those around a block's own lie in its tile: above, below, then beside it.
__device__ __forceinline__ void place_around(int i, int& row, int& col) {
    const int beside = i - 2 * AROUND * WIDE / 4, in_row = beside % (BESIDE / 2);
    row = i / (WIDE / 4), col = i % (WIDE / 4) * 4;
    if (row >= AROUND) row += ROWS;
    if (beside >= 0) row = AROUND + beside / (BESIDE / 2), col = in_row * 4 + (in_row < BESIDE / 4 ? 0 : 32);
}
#endif

// moved: beyond the threshold and the noise. other: any bit differs. near: those of them that a change takes along.
// last: the frame before, N C H W; noise: N H W. deviations: how many of them a change must exceed. mean: as `average`
// left it; then: what it was when a pixel was stored, which says nothing before RECENT of `frames`. Registers for what four
// pixels read: as few as the compiler takes by itself let it wait for them one after the other.
extern "C" __global__ void __launch_bounds__(256, 4)
    look(const seen* frame, const u64* at, long long sn, long long sc, long long sh, long long sw, const value* stored,
         int pitch, const int* awake, u32* moved, u32* near, u32* other, value* last, number* noise, u64* held,
         const number* mean, const number* then, const number* frames, int C, int H, int W, number limit, number peak,
         number weak, number deviations, number root) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int n = blockIdx.y, words = words_of(W), left = blockIdx.x % words * 32, top = blockIdx.x / words * ROWS;
    if (!awake[n]) return;
    const bool lasts = RECENT > 1 && frames[n] + 1 > RECENT;
#if SMOOTH > 1
    __shared__ Numbers change[CHANNELS][HIGH * WIDE / 4], sums[CHANNELS][ROWS * WIDE / 4];  // down the columns
    __shared__ u32 other_bits[ROWS], beyond_peak[ROWS], beyond_limit[ROWS], beyond_weak[ROWS];
    for (int i = threadIdx.x; i < ROWS; i += blockDim.x) other_bits[i] = beyond_peak[i] = beyond_limit[i] = beyond_weak[i] = 0;
    __syncthreads();
    // Frames themselves are compared at `root` thresholds, their means at one.
    for (int c = 0; c < (lasts ? 2 * C : C); c += CHANNELS) {
        const bool of_frame = c < C;
        const number times = of_frame ? root : 1;
        Rank highest = 0;
        // A thread has four pixels of the block's own, and four of those around them, if there are as many.
        for (int i = threadIdx.x; of_frame && i < max(ROWS * 8, FOURS_AROUND); i += blockDim.x) {
            Four own, around;
            const int row = i / 8, col = i % 8 * 4, y = top + row, x = left + col;
            int far_row, far_col;
            place_around(i, far_row, far_col);
            const int far_y = top - AROUND + far_row, far_x = left - BESIDE + far_col;
            const auto begin = [&](Four& four, bool is_one, int y, int x) {
                four.fresh = frame + n * sn + y * sh + x * sw, four.stored = stored + ((size_t)(n * H + y) * W + x) * pitch;
                four.pixels = is_one && (u32)y < (u32)H && (u32)x < (u32)W ? W - x : 0;
                four.read(sc, sw, pitch, c);
            };
            begin(own, i < ROWS * 8, y, x), begin(around, i < FOURS_AROUND, far_y, far_x);
            const auto end = [&](const Four& four, u32& differ, u32& beyond, int at) {
                Numbers by[CHANNELS] = {};
                Rank of_pixel[4] = {};
                if (four.pixels > 0) four.compare(sc, sw, pitch, c, C, by, differ, of_pixel);
#pragma unroll
                for (int p = 0; p < 4; p++) beyond |= (u32)(of_pixel[p] > rank_of(peak)) << p, highest = max(highest, of_pixel[p]);
#pragma unroll
                for (int j = 0; j < CHANNELS; j++) change[j][at] = by[j];
            };
            u32 differ = 0, beyond = 0, unused = 0;
            if (i < ROWS * 8) {  // whole warps
                end(own, differ, beyond, ((row + AROUND) * WIDE + BESIDE + col) / 4);
                differ = row_of_eight(differ), beyond = row_of_eight(beyond);
                if (i % 8 == 0) other_bits[row] |= differ, beyond_peak[row] |= beyond;
            }
            if (i < FOURS_AROUND) end(around, unused, unused, (far_row * WIDE + far_col) / 4);
        }
        for (int i = threadIdx.x; !of_frame && i < HIGH * WIDE / 4; i += blockDim.x) {
            const int row = i / (WIDE / 4), col = i % (WIDE / 4) * 4, y = top - AROUND + row, x = left - BESIDE + col;
            const bool inside = (u32)y < (u32)H && (u32)x < (u32)W;
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) {
                const size_t place = ((size_t)(n * C + c - C + j) * H + y) * W;
                const Numbers now = four(mean + place, x, W, inside), before = four(then + place, x, W, inside);
                Numbers by;
#pragma unroll
                for (int p = 0; p < 4; p++) by.of[p] = now.of[p] - before.of[p], highest = max(highest, rank_of(by.of[p]));
                change[j][i] = by;
            }
        }
        highest = highest_of_block(highest, c / CHANNELS);
        // A mean is no larger than what it is the mean of, but for roundings: most boxes need no look.
        const Sides of_limit(limit * times, at_rank(highest)), of_weak(weak * times, at_rank(highest));
        const number quiet = WEAK ? of_weak.below : of_limit.below;
        if (quiet >= 0 && highest <= rank_of(quiet)) continue;
        bool large = false;
        for (int i = threadIdx.x; i < CHANNELS * (WIDE / 2) * (ROWS / 8); i += blockDim.x) {
            const int col = i % (WIDE / 2) * 2, j = i / (WIDE / 2) % CHANNELS, row = i / (WIDE / 2) / CHANNELS * 8;
            const number* from = (const number*)change[j] + row * WIDE + col;
            number v[2][8 + 2 * AROUND], down[2][8];
#pragma unroll
            for (int k = 0; k < 8 + 2 * AROUND; k++) {
                const Two two = *(const Two*)(from + k * WIDE);
                v[0][k] = two.of[0], v[1][k] = two.of[1];
            }
            box_sums(v[0], down[0]), box_sums(v[1], down[1]);
            number* to = (number*)sums[j] + row * WIDE + col;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                *(Two*)(to + k * WIDE) = {down[0][k], down[1][k]};
                const number most = quiet * (number)inside_of(top + row + k, H);
                large |= !(magnitude(down[0][k]) <= most) || !(magnitude(down[1][k]) <= most);
            }
        }
        if (__syncthreads_count(large) == 0) continue;  // noise, of which sums down the columns leave a third
        for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {
            const int row = i / 8, col = i % 8 * 4, y = top + row, x = left + col;
            if (y >= H || x >= W) continue;
            number least[4];  // that a pixel must exceed
#pragma unroll
            for (int k = 0; k < 4; k++) {
                least[k] = limit;
#if NOISE
                if (x + k < W) least[k] = min(max(noise[(size_t)(n * H + y) * W + x + k] * deviations, limit), peak);
#endif
            }
            u32 over = 0, under = ~0u, over_weak = 0, under_weak = ~0u;
            number count[4];
#pragma unroll
            for (int k = 0; k < 4; k++) count[k] = (number)(inside_of(y, H) * inside_of(x + k, W));
            for (int j = 0; j < CHANNELS; j++) {
                number v[4 + 2 * BESIDE], across[4];
#pragma unroll
                for (int k = 0; k < 1 + BESIDE / 2; k++) {
                    const Numbers read = sums[j][(row * WIDE + col) / 4 + k];
#pragma unroll
                    for (int p = 0; p < 4; p++) v[4 * k + p] = read.of[p];
                }
                box_sums(v + BESIDE - AROUND, across);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const number sum = magnitude(across[k]);
                    const Sides sides = NOISE ? Sides(least[k] * times, at_rank(highest)) : of_limit;
                    over |= (u32)(sum > sides.above * count[k]) << k, under &= ~((u32)!(sum <= sides.below * count[k]) << k);
                    if (!WEAK) continue;
                    over_weak |= (u32)(sum > of_weak.above * count[k]) << k, under_weak &= ~((u32)!(sum <= of_weak.below * count[k]) << k);
                }
            }
            const u32 row_ends = ~0u >> max(0, 32 - (W - x)) & 15;
            for (u32 left_over = row_ends & (~(over | under) | (WEAK ? ~(over_weak | under_weak) : 0)); left_over;
                 left_over &= left_over - 1) {
                const int k = __ffs(left_over) - 1;
                number most = 0;
                for (int j = 0; j < CHANNELS; j++)
                    most = larger(most, box_mean((const number*)change[j] + row * WIDE + BESIDE - AROUND + col + k, y, x + k, H, W));
                most = of_frame && RECENT > 1 ? most / root : most;
                over = over & ~(1u << k) | (u32) !(most <= least[k]) << k;
                over_weak = over_weak & ~(1u << k) | (u32) !(most <= weak) << k;
            }
            if (over & row_ends) atomicOr(beyond_limit + row, (over & row_ends) << col);
            if (WEAK && over_weak & row_ends) atomicOr(beyond_weak + row, (over_weak & row_ends) << col);
        }
        __syncthreads();
    }
    __syncthreads();
#endif
#if SMOOTH == 1 && !NOISE && !HOLD
    for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {  // four pixels each, eight threads a word
        const int y = top + i / 8, x = left + i % 8 * 4, pixels = y < H ? min(W - x, 4) : 0;
        u32 bits[3] = {};  // moved, near and other
        if (pixels > 0) {
            Rank of_pixel[4] = {};
            Four run;
            run.fresh = frame + n * sn + y * sh + x * sw, run.stored = stored + ((size_t)(n * H + y) * W + x) * pitch;
            run.pixels = pixels;
            for (int c = 0; c < C; c += CHANNELS) {
                Numbers by[CHANNELS] = {};
                run.read(sc, sw, pitch, c);
                run.compare(sc, sw, pitch, c, C, by, bits[2], of_pixel);
            }
            number smoothed[4];
#pragma unroll
            for (int p = 0; p < 4; p++) smoothed[p] = RECENT > 1 ? at_rank(of_pixel[p]) / root : at_rank(of_pixel[p]);
            for (int c = 0; lasts && c < C; c++) {
                const size_t place = ((size_t)(n * C + c) * H + y) * W;
                const Numbers now = four(mean + place, x, W, true), before = four(then + place, x, W, true);
#pragma unroll
                for (int p = 0; p < 4; p++) smoothed[p] = larger(smoothed[p], magnitude(now.of[p] - before.of[p]));
            }
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const bool moves = !(smoothed[p] <= limit) || of_pixel[p] > rank_of(peak);
                bits[0] |= (u32)moves << p, bits[1] |= (u32)(!WEAK || !(smoothed[p] <= weak)) << p;
            }
            bits[0] = limit == 0 ? bits[2] : bits[0] & ~(~0u << pixels), bits[1] &= bits[2];
        }
#pragma unroll
        for (int k = 0; k < 3; k++) bits[k] = row_of_eight(bits[k]);
        const size_t word = (size_t)(n * H + y) * words + left / 32;
        if (i % 8 == 0 && y < H) moved[word] = bits[0], near[word] = bits[1], other[word] = bits[2];
    }
    return;
#endif
    const int lane = threadIdx.x & 31;
    for (int row = threadIdx.x / 32; row < ROWS && top + row < H; row += blockDim.x / 32) {
        const int y = top + row;
        bool passes = false, differ = false, faint = false, kept = false;
#if SMOOTH > 1 && !NOISE && !HOLD
        differ = other_bits[row] >> lane & 1;
        passes = limit == 0 ? differ : (beyond_limit[row] | beyond_peak[row]) >> lane & 1;
        faint = !WEAK || beyond_weak[row] >> lane & 1;
#else
        const int x = left + lane;
        if (x < W) {
            const Pixel pixel(frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y, x);
            number most = 0;
            for (int c = 0; c < C; c++) {
                differ |= bits_of(pixel.fresh(c)) != bits_of(pixel.before(c));
                most = larger(most, magnitude(pixel.change(c)));
            }
            kept = pixel.held;
#if NOISE
            const size_t place = (size_t)(n * H + y) * W + x;
            const number learnt = noise[place];
#endif
#if SMOOTH > 1
            const bool beyond = beyond_limit[row] >> lane & 1;
            faint = !WEAK || beyond_weak[row] >> lane & 1;
#else
            number smoothed = most / root, least = limit;
            for (int c = 0; lasts && c < C; c++) {
                const size_t at = ((size_t)(n * C + c) * H + y) * W + x;
                smoothed = larger(smoothed, magnitude(mean[at] - then[at]));
            }
#if NOISE
            least = min(max(learnt * deviations, limit), peak);
#endif
            const bool beyond = !(smoothed <= least);
            faint = !WEAK || !(smoothed <= weak);
#endif
            passes = limit == 0 ? differ : beyond || !(most <= peak);
#if NOISE
            number sum = 0;
            for (int c = 0; c < C; c++) {
                value* before = last + ((size_t)(n * C + c) * H + y) * W + x;
                sum += magnitude(get(pixel.fresh(c)) - get(*before));
                *before = pixel.fresh(c);
            }
            const number off = sum / C / (number)1.128;  // the mean difference of two values with noise of deviation 1
            if (!passes && is_finite(off)) noise[place] = learnt + (off - learnt) / 16;
#endif
        }
#endif
        const u32 of_moved = __ballot_sync(~0u, passes), of_other = __ballot_sync(~0u, differ);
        const u32 of_near = __ballot_sync(~0u, differ && faint), of_held = __ballot_sync(~0u, kept);
        if (lane > 0) continue;
        const size_t word = (size_t)(n * H + y) * words + left / 32;
        moved[word] = of_moved, other[word] = of_other, near[word] = of_near;
        if (of_held) atomicAdd(held, (u64)__popc(of_held));
    }
}
