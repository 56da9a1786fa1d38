// `look` of gate.cu: a block has ROWS x 32 pixels of a frame, and reads what is around them.
//
// Where differences are averaged over boxes they lie in shared memory. A box's mean as gate.py takes it, in its order and
// with its roundings, is 30 instructions a value. Only on which side of a threshold it lies is asked, so it is summed up
// in whatever order is short, and taken as gate.py does where it lies too near to tell. A tile whose differences are all
// small has no box that is not; and one whose sums down the columns are, none across.
#define AROUND (SMOOTH / 2)
#define BESIDE ((AROUND + 3) / 4 * 4)  // columns to the left and right of a block's that it reads
#define WIDE (32 + 2 * BESIDE)
#define HIGH (ROWS + 2 * AROUND)

// Magnitudes as whole numbers, which are in the same order; NaN is behind all of them.
#if TYPE == 0
typedef u64 Rank;
__device__ __forceinline__ Rank rank_of(double v) { return (u64)__double_as_longlong(v) & ~0ull >> 1; }
__device__ __forceinline__ double at_rank(Rank rank) { return __longlong_as_double((long long)rank); }
#define ROUNDING 1.2e-16  // of a number, at most
#else
typedef u32 Rank;
__device__ __forceinline__ Rank rank_of(float v) { return __float_as_uint(v) & 0x7fffffff; }
__device__ __forceinline__ float at_rank(Rank rank) { return __uint_as_float(rank); }
#define ROUNDING 6e-8f
#endif

#define IN_PAIRS (TYPE == 2 && FOURS && PACKED && !BYTES && !HOLD && CHANNELS > 1 && __CUDA_ARCH__ >= 800)
#if IN_PAIRS
// Two halves in a word. A difference of halves that is rounded to a half is the same by way of a float.
__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}
__device__ __forceinline__ u32 larger_ones(u32 a, u32 b) {  // NaN wins
    u32 larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
__device__ __forceinline__ void get_both(u32 pair, float& low, float& high) {
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}
struct __align__(16) Pairs { u32 of[8]; };  // four stored pixels

// `compare` below, of two pixels at a time.
__device__ __forceinline__ void compare_pairs(const seen* fresh, long long sc, const value* stored,
                                              Numbers (&by)[CHANNELS], u32& differ, Rank (&highest)[4]) {
    const Pairs kept = *(const Pairs*)stored;
    uint2 now[CHANNELS];
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) now[j] = *(const uint2*)(fresh + j * sc);
#pragma unroll
    for (int p = 0; p < 4; p += 2) {
        u32 other = 0, size = 0;
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            const u32 before = __byte_perm(kept.of[2 * p + j / 2], kept.of[2 * p + 2 + j / 2], j & 1 ? 0x7632 : 0x5410);
            const u32 after = p ? now[j].y : now[j].x, change = minus(after, before);
            other |= after ^ before, size = larger_ones(size, change & 0x7fff7fff);
            get_both(change, by[j].of[p], by[j].of[p + 1]);
        }
        differ |= (u32)((other & 0xffff) != 0) << p | (u32)(other >> 16 != 0) << (p + 1);
        float low, high;
        get_both(size, low, high);
        highest[p] = rank_of(low), highest[p + 1] = rank_of(high);
    }
}
#endif

// What channels c .. c + CHANNELS - 1 of up to four pixels changed by, 0 of those from `pixels` on; a bit for each of
// them that differs in one of the bits; and the rank of the largest change of each. fresh: the first of them in the frame.
__device__ __forceinline__ void compare(const seen* fresh, long long sc, long long sw, const value* stored, int pitch,
                                        int c, int C, int pixels, Numbers (&by)[CHANNELS], u32& differ,
                                        Rank (&highest)[4]) {
#if IN_PAIRS
    return compare_pairs(fresh, sc, stored, by, differ, highest);
#endif
    value now[CHANNELS][4];
    FourStored kept = {};  // with PACKED; asked for with what is compared with it
    if (PACKED && FOURS) {
        kept = *(const FourStored*)stored;
    } else if (PACKED) {
#pragma unroll
        for (int p = 0; p < 4; p++)
            if (p < pixels) kept.of[p] = *(const Stored*)(stored + p * pitch);
    }
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        const seen* from = fresh + (c + j) * sc;
        Seen read = {};
        if (FOURS) read = *(const Seen*)from;
#pragma unroll
        for (int p = 0; p < 4; p++) {
            if (!FOURS && p < pixels) read.of[p] = from[p * sw];
            now[j][p] = arrived(read.of[p]);
        }
    }
#pragma unroll
    for (int p = 0; p < 4; p++) {
        if (!FOURS && p >= pixels) break;
        const value* pixel = stored + p * pitch;
        bool keeps = false;  // as it was, or 0 where it was never seen
        if (HOLD)
            for (int k = 0; k < C; k++) keeps |= !is_finite(get(arrived(fresh[k * sc + p * sw])));
        bits other = 0;
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            const value before = PACKED ? kept.of[p].of[CHANNELS > 1 ? j : c % 4] : pixel[c + j];
            const value after = !keeps ? now[j][p] : get(before) == get(before) ? before : put(0);
            other |= bits_of(after) ^ bits_of(before);
            by[j].of[p] = get(put(get(after) - get(before)));
            highest[p] = max(highest[p], rank_of(by[j].of[p]));
        }
        differ |= (u32)(other != 0) << p;
    }
}
#if SMOOTH > 1
// How many pixels of a line of `length` the box around pixel `at` holds.
__device__ __forceinline__ int inside_of(int at, int length) {
    return max(min(at + AROUND + 1, length) - max(at - AROUND, 0), 1);
}

// The magnitude of the mean of the box whose first value is at `from` of a tile, around pixel (y, x): as gate.py's
// box_mean has it. Sums go from end to end, and pixels beside the map, which are 0, count for nothing.
__device__ __noinline__ number box_mean(const number* from, int y, int x, int H, int W) {
    const int down = inside_of(y, H), across = inside_of(x, W);
    number sum = 0;
    for (int col = 0; col < SMOOTH; col++) {
        number column = 0;
#pragma unroll
        for (int row = 0; row < SMOOTH; row++) column += from[row * WIDE + col];
        sum += column / (number)down;
    }
    return magnitude(sum / (number)across);
}

// The sums of RUN boxes of SMOOTH values in line, in any order: what all of them hold, and what is before and behind it.
template <int RUN> __device__ __forceinline__ void box_sums(const number* v, number (&sums)[RUN]) {
    if constexpr (SMOOTH < RUN) {
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            sums[i] = v[i];
#pragma unroll
            for (int k = 1; k < SMOOTH; k++) sums[i] += v[i + k];
        }
    } else {
        number all = v[RUN - 1], behind = 0;
#pragma unroll
        for (int k = RUN; k < SMOOTH; k++) all += v[k];
#pragma unroll
        for (int i = RUN - 1; i >= 0; i--) sums[i] = i == RUN - 1 ? all : sums[i + 1] + v[i];
#pragma unroll
        for (int i = 1; i < RUN; i++) behind = i == 1 ? v[SMOOTH] : behind + v[SMOOTH - 1 + i], sums[i] += behind;
    }
}

// The highest of a block. All threads call it, and have written shared memory when it returns. turn: of the last two
// calls' other numbers.
__device__ __forceinline__ Rank highest_of_block(Rank rank, int turn) {
    __shared__ Rank of_warps[2][32];
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) rank = max(rank, __shfl_xor_sync(~0u, rank, lanes));
    if ((threadIdx.x & 31) == 0) of_warps[turn & 1][threadIdx.x / 32] = rank;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) rank = max(rank, of_warps[turn & 1][warp]);
    return rank;
}

// What a sum of a box's values, none of them larger than `most`, says about its mean and a limit: that it is above, that
// it is not, or nothing. Both sums are off by up to 2 * SMOOTH roundings of such values.
struct Sides {
    number above, below;  // NaN, which says nothing, where sums could be infinite
    __device__ __forceinline__ Sides(number limit, number most) {
        const number off = (4 * SMOOTH + 16) * (number)ROUNDING * (most + limit) + (number)1e-36;
        const bool fits = most < (number)1e30;
        above = fits ? limit + off : at_rank((Rank)-1), below = fits ? limit - off : at_rank((Rank)-1);
    }
};

#endif

// moved: beyond the threshold and the noise. other: any bit differs. near: those of them that a change takes along.
// last: the frame before, N C H W; noise: N H W. deviations: how many of them a change must exceed. mean: as `average`
// left it; then: what it was when a pixel was stored, which says nothing before RECENT of `frames`. Registers for what four
// pixels read: as few as the compiler takes by itself let it wait for them one after the other.
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
        for (int i = threadIdx.x; i < HIGH * WIDE / 4; i += blockDim.x) {
            const int row = i / (WIDE / 4), col = i % (WIDE / 4) * 4, y = top - AROUND + row, x = left - BESIDE + col;
            const bool inside = (u32)y < (u32)H && (u32)x < (u32)W;
            Numbers by[CHANNELS] = {};
            Rank of_pixel[4] = {};
            if (of_frame && inside) {
                u32 differ = 0, beyond = 0;
                compare(frame + n * sn + y * sh + x * sw, sc, sw, stored + ((size_t)(n * H + y) * W + x) * pitch, pitch, c, C,
                        W - x, by, differ, of_pixel);
#pragma unroll
                for (int p = 0; p < 4; p++) beyond |= (u32)(of_pixel[p] > rank_of(peak)) << p;
                const int bit = col - BESIDE, line = row - AROUND;
                if ((u32)bit < 32 && (u32)line < ROWS) {
                    if (differ) atomicOr(other_bits + line, differ << bit);
                    if (beyond) atomicOr(beyond_peak + line, beyond << bit);
                }
            } else if (inside) {
#pragma unroll
                for (int j = 0; j < CHANNELS; j++) {
                    const size_t place = ((size_t)(n * C + c - C + j) * H + y) * W;
                    const Numbers now = four(mean + place, x, W, inside), before = four(then + place, x, W, inside);
#pragma unroll
                    for (int p = 0; p < 4; p++) {
                        by[j].of[p] = now.of[p] - before.of[p];
                        of_pixel[p] = max(of_pixel[p], rank_of(by[j].of[p]));
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) change[j][i] = by[j];
#pragma unroll
            for (int p = 0; p < 4; p++) highest = max(highest, of_pixel[p]);
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
            for (int c = 0; c < C; c += CHANNELS) {
                Numbers by[CHANNELS] = {};
                compare(frame + n * sn + y * sh + x * sw, sc, sw, stored + ((size_t)(n * H + y) * W + x) * pitch, pitch, c, C,
                        pixels, by, bits[2], of_pixel);
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
        for (int k = 0; k < 3; k++) {
            bits[k] <<= i % 8 * 4;
#pragma unroll
            for (int lanes = 4; lanes > 0; lanes /= 2) bits[k] |= __shfl_xor_sync(~0u, bits[k], lanes);
        }
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
