// `look` of gate.cu: a block has ROWS x 32 pixels of a frame, and reads what is around them.
//
// Where differences are averaged over boxes they lie in shared memory: boxes down the columns first, then across. A tile
// whose differences are all small has no box that is not; and one whose means down the columns are, none across.
#define AROUND (SMOOTH / 2)
#define BESIDE ((AROUND + 3) / 4 * 4)  // columns to the left and right of a block's that it reads
#define WIDE (32 + 2 * BESIDE)
#define HIGH (ROWS + 2 * AROUND)
#define PITCH (WIDE + 1)  // threads that walk rows of the means beside each other meet no bank twice

#if SMOOTH > 1
// sum / count as it is rounded, for a whole number up to 31: a product and its correction, since a division takes four
// times as long. Every mantissa was tried.
template <int count> __device__ __forceinline__ float quotient(float sum) {
    constexpr float share = 1 / (float)count;
    const float about = sum * share;
    return fma(fma((float)-count, about, sum), share, about);
}
template <int count> __device__ __forceinline__ double quotient(double sum) { return sum / count; }

// The means of the boxes around RUN pixels in line, `apart` values from each other in shared memory, the first of them
// at `from`. Sums go from end to end, and pixels beside the map, which are 0, count for nothing: as gate.py's box_mean.
template <int RUN, class Store>
__device__ __forceinline__ void box_means(const number* from, int apart, int first, int length, Store store) {
    number v[RUN + 2 * AROUND];
#pragma unroll
    for (int i = 0; i < RUN + 2 * AROUND; i++) v[i] = from[i * apart];
    number sums[RUN] = {};
#pragma unroll
    for (int i = 0; i < RUN; i++)
#pragma unroll
        for (int k = 0; k < SMOOTH; k++) sums[i] += v[i + k];
    if (first >= AROUND && first + RUN + AROUND <= length) {  // without a branch for each of them
#pragma unroll
        for (int i = 0; i < RUN; i++) store(i, quotient<SMOOTH>(sums[i]));
    } else {
#pragma unroll
        for (int i = 0; i < RUN; i++)
            store(i, sums[i] / max(min(first + i + AROUND + 1, length) - max(first + i - AROUND, 0), 1));
    }
}

// What channels c .. c + CHANNELS - 1 of up to four pixels changed by, 0 of those from `pixels` on; and a bit for each of
// them that differs in one of the bits. fresh: the first of them in the frame.
__device__ __forceinline__ void compare(const seen* fresh, long long sc, long long sw, const value* stored, int pitch,
                                        int c, int C, int pixels, Numbers (&by)[CHANNELS], u32& differ) {
    value now[CHANNELS][4];
    Stored kept[4] = {};  // with PACKED; asked for with what is compared with it
#pragma unroll
    for (int p = 0; p < 4; p++)
        if (PACKED && (FOURS || p < pixels)) kept[p] = *(const Stored*)(stored + p * pitch);
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
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            const value before = PACKED ? kept[p].of[CHANNELS > 1 ? j : c % 4] : pixel[c + j];
            const value after = !keeps ? now[j][p] : get(before) == get(before) ? before : put(0);
            differ |= (u32)(bits_of(after) != bits_of(before)) << p;
            by[j].of[p] = get(put(get(after) - get(before)));
        }
    }
}
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
    __shared__ Numbers change[CHANNELS][HIGH * WIDE / 4];
    __shared__ number means[CHANNELS][ROWS * PITCH], largest[ROWS * 32];
    __shared__ u32 other_bits[ROWS], beyond_peak[ROWS];
    for (int i = threadIdx.x; i < ROWS * 32; i += blockDim.x) {
        largest[i] = 0;
        if (i < ROWS) other_bits[i] = beyond_peak[i] = 0;
    }
    __syncthreads();
    // A mean is no larger than what it is the mean of, but for roundings: most boxes need no look.
    const number small = (WEAK ? weak : limit) * (number)0.999;
    // Frames themselves are compared at `root` thresholds, their means at one.
    for (int c = 0; c < (lasts ? 2 * C : C); c += CHANNELS) {
        const bool of_frame = c < C;
        const number quiet = of_frame ? small * root : small;
        bool large = false;
        for (int i = threadIdx.x; i < HIGH * WIDE / 4; i += blockDim.x) {
            const int row = i / (WIDE / 4), col = i % (WIDE / 4) * 4, y = top - AROUND + row, x = left - BESIDE + col;
            const bool inside = (u32)y < (u32)H && (u32)x < (u32)W;
            Numbers by[CHANNELS] = {};
            u32 differ = 0, beyond = 0;
            if (of_frame && inside) {
                compare(frame + n * sn + y * sh + x * sw, sc, sw, stored + ((size_t)(n * H + y) * W + x) * pitch, pitch, c, C,
                        W - x, by, differ);
#pragma unroll
                for (int j = 0; j < CHANNELS; j++)
#pragma unroll
                    for (int p = 0; p < 4; p++) beyond |= (u32) !(magnitude(by[j].of[p]) <= peak) << p;
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
                    for (int p = 0; p < 4; p++) by[j].of[p] = now.of[p] - before.of[p];
                }
            }
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) {
                change[j][i] = by[j];
#pragma unroll
                for (int p = 0; p < 4; p++) large |= !(magnitude(by[j].of[p]) <= quiet);
            }
        }
        if (__syncthreads_count(large) == 0) continue;
        large = false;
        for (int i = threadIdx.x; i < CHANNELS * WIDE * (ROWS / 8); i += blockDim.x) {
            const int col = i % WIDE, j = i / WIDE % CHANNELS, row = i / WIDE / CHANNELS * 8;
            number* to = means[j] + row * PITCH + col;
            box_means<8>((const number*)change[j] + row * WIDE + col, WIDE, top + row, H, [&](int k, number of_box) {
                to[k * PITCH] = of_box;
                large |= !(magnitude(of_box) <= quiet);
            });
        }
        if (__syncthreads_count(large) == 0) continue;  // noise, of which means down the columns leave a third
        for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {
            const int row = i / 8, col = i % 8 * 4;
            number* to = largest + row * 32 + col;
            number most[4] = {};
            for (int j = 0; j < CHANNELS; j++)
                box_means<4>(means[j] + row * PITCH + BESIDE - AROUND + col, 1, left + col, W,
                             [&](int k, number of_box) { most[k] = larger(most[k], magnitude(of_box)); });
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (left + col + k < W) to[k] = larger(to[k], of_frame && RECENT > 1 ? most[k] / root : most[k]);
        }
        __syncthreads();
    }
    __syncthreads();
#endif
    const int lane = threadIdx.x & 31;
    for (int row = threadIdx.x / 32; row < ROWS && top + row < H; row += blockDim.x / 32) {
        const int y = top + row;
        bool passes = false, differ = false, faint = false, kept = false;
#if SMOOTH > 1 && !NOISE && !HOLD
        const number smoothed = largest[row * 32 + lane];
        differ = other_bits[row] >> lane & 1;
        passes = limit == 0 ? differ : !(smoothed <= limit) || beyond_peak[row] >> lane & 1;
        faint = !WEAK || !(smoothed <= weak);
#else
        const int x = left + lane;
        if (x < W) {
            const Pixel pixel(frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y, x);
            number most = 0, least = limit;
            for (int c = 0; c < C; c++) {
                differ |= bits_of(pixel.fresh(c)) != bits_of(pixel.before(c));
                most = larger(most, magnitude(pixel.change(c)));
            }
            kept = pixel.held;
#if SMOOTH > 1
            const number smoothed = largest[row * 32 + lane];
#else
            number smoothed = most / root;
            for (int c = 0; lasts && c < C; c++) {
                const size_t at = ((size_t)(n * C + c) * H + y) * W + x;
                smoothed = larger(smoothed, magnitude(mean[at] - then[at]));
            }
#endif
#if NOISE
            const size_t place = (size_t)(n * H + y) * W + x;
            const number learnt = noise[place];
            least = min(max(learnt * deviations, limit), peak);
#endif
            passes = limit == 0 ? differ : !(smoothed <= least) || !(most <= peak);
            faint = !WEAK || !(smoothed <= weak);
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
