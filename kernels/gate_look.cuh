// `look` of gate.cu: a block has ROWS x 32 pixels of a frame, and reads what is around them.
#include "gate_compare.cuh"
#if SMOOTH > 1
#include "gate_tile.cuh"
#endif

// moved: beyond the threshold and the noise. other: any bit differs. near: those of them that a change takes along.
// last: the frame before, N C H W; noise: N H W. deviations: how many of them a change must exceed. mean: as `average`
// left it; then: what it was when a pixel was stored, which says nothing before RECENT of `frames`. Registers for what
// four pixels read: as few as the compiler takes by itself let it wait for them one after the other.
extern "C" __global__ void __launch_bounds__(256, 5)
    look(const seen* frame, const u64* at, long long sn, long long sc, long long sh, long long sw, const value* stored,
         int pitch, const int* awake, u32* moved, u32* near, u32* other, value* last, number* noise, u64* held,
         const number* mean, const number* then, const number* frames, int C, int H, int W, number limit, number peak,
         number weak, number deviations, number root) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int n = blockIdx.y, words = words_of(W), left = blockIdx.x % words * 32, top = blockIdx.x / words * ROWS;
    if (!awake[n]) return;
    const bool lasts = RECENT > 1 && frames[n] + 1 > RECENT;
    const View view{frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, top, left};
#if SMOOTH > 1
    __shared__ Tile tile;
    tile.clear();
    __syncthreads();
    for (int c = 0; c < (lasts ? 2 * C : C); c += CHANNELS) {
        const bool of_frame = c < C;
        const Rank of_thread = of_frame ? compare_frame(tile, view, c, peak) : compare_means(tile, view, c - C, mean, then);
        // Frames themselves are compared at `root` thresholds, their means at one.
        const Levels levels{limit, weak, of_frame ? root : 1, at_rank(highest_of_block(of_thread, c / CHANNELS))};
        const number quiet = Sides((WEAK ? weak : limit) * levels.root, levels.most).below;
        if (levels.most <= quiet) continue;
        if (__syncthreads_count(sum_down(tile, view, quiet)) == 0) continue;  // noise, of which they leave a third
        judge(tile, view, levels, [&](int y, int x) {
#if NOISE
            if (x < W) return min(max(noise[(size_t)(n * H + y) * W + x] * deviations, limit), peak);
#endif
            return limit;
        });
        __syncthreads();
    }
    __syncthreads();
#endif
#if SMOOTH == 1 && !NOISE && !HOLD
    for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {  // four pixels each, eight threads a word
        const int y = top + i / 8, x = left + i % 8 * 4;
        u32 bits[3] = {};  // moved, near and other
        if (y < H && x < W) {
            Rank of_pixel[4] = {};
            for (int c = 0; c < C; c += CHANNELS) {
                Numbers by[CHANNELS] = {};
                view.compare(i / 8, i % 8 * 4, c, by, bits[2], of_pixel);
            }
            number smoothed[4];
#pragma unroll
            for (int p = 0; p < 4; p++) smoothed[p] = RECENT > 1 ? at_rank(of_pixel[p]) / root : at_rank(of_pixel[p]);
            for (int c = 0; lasts && c < C; c++) {
                const size_t row = view.row_of_plane(c, y);
                const Numbers now = four(mean + row, x, W, true), before = four(then + row, x, W, true);
#pragma unroll
                for (int p = 0; p < 4; p++) smoothed[p] = larger(smoothed[p], magnitude(now.of[p] - before.of[p]));
            }
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const bool moves = !(smoothed[p] <= limit) || of_pixel[p] > rank_of(peak);
                bits[0] |= (u32)moves << p, bits[1] |= (u32)(!WEAK || !(smoothed[p] <= weak)) << p;
            }
            bits[0] = limit == 0 ? bits[2] : bits[0] & ~0u >> max(0, 32 - (W - x)), bits[1] &= bits[2];
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
        differ = tile.other[row] >> lane & 1;
        passes = (tile.beyond_limit[row] | tile.beyond_peak[row]) >> lane & 1;
        faint = !WEAK || tile.beyond_weak[row] >> lane & 1;
#else
        const int x = left + lane;
        if (x < W) {
            const Pixel pixel(true, frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y, x);
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
            const bool beyond = tile.beyond_limit[row] >> lane & 1;
            faint = !WEAK || tile.beyond_weak[row] >> lane & 1;
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
            const number step = (off - learnt) / 16, rise = limit / 64;  // NOISE_RISE of gate.py
            if (most <= peak && is_finite(off)) noise[place] = learnt + (passes && step > rise ? rise : step);
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
