// The gate at a network's input: which pixels of a frame are new. deltaconvert/gate.py is the meaning.
//
// `average` takes a frame into the running mean, `look` judges each pixel by the box around it, `decide` lets changes
// take their neighbours along, `take` stores. All leave out streams that sleep. Masks are those of masks.cu: a bit a
// pixel.
#include "frame.cuh"

#ifndef SMOOTH
#define SMOOTH 1  // the side of the box that differences are averaged over
#endif
#ifndef NOISE
#define NOISE 0  // whether each pixel's noise is learnt
#endif
#ifndef RECENT
#define RECENT 1  // about so many frames are averaged
#endif
#ifndef WEAK
#define WEAK 0  // whether only faint changes are taken along
#endif
#ifndef HOLD
#define HOLD 0  // whether a pixel that is not finite keeps its last value
#endif
#ifndef ROWS
#define ROWS 32  // of a block's pixels, 32 in each
#endif
#ifndef CHANNELS
#define CHANNELS 1  // that are smoothed at a time
#endif
#define AROUND (SMOOTH / 2)
#define WIDE (32 + 2 * AROUND)
#define PITCH (WIDE + 1)  // odd: threads that walk rows of shared memory beside each other meet no bank twice

__device__ __forceinline__ bool is_finite(number v) { return v - v == 0; }
__device__ __forceinline__ number magnitude(number v) { return v < 0 ? -v : v; }
__device__ __forceinline__ number larger(number a, number b) { return b > a || b != b ? b : a; }  // NaN wins

// A pixel of a frame beside what is stored of it.
struct Pixel {
    const seen* frame;
    const value* stored;
    long long sc;
    bool held;

    __device__ __forceinline__ Pixel(const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                     const value* stored, int pitch, int C, int H, int W, int n, int y, int x)
        : frame(frame + n * sn + y * sh + x * sw), stored(stored + ((size_t)(n * H + y) * W + x) * pitch), sc(sc),
          held(false) {
        if (HOLD)
            for (int c = 0; c < C; c++) held |= !is_finite(get(arrived(this->frame[c * sc])));
    }
    __device__ __forceinline__ value before(int c) const { return stored[c]; }
    __device__ __forceinline__ value fresh(int c) const {
        if (!held) return arrived(frame[c * sc]);
        return get(stored[c]) == get(stored[c]) ? stored[c] : put(0);
    }
    __device__ __forceinline__ number change(int c) const { return get(put(get(fresh(c)) - get(before(c)))); }
};

#if SMOOTH > 1
// The means of the boxes around RUN pixels in line, `apart` values from each other in shared memory, the first of them
// at `from`. Sums go from end to end, and pixels beside the map, which are 0, count for nothing: as gate.py's box_mean.
template <int RUN, class Store>
__device__ __forceinline__ void box_means(const number* from, int apart, int first, int length, Store store) {
    number v[RUN + 2 * AROUND];
#pragma unroll
    for (int i = 0; i < RUN + 2 * AROUND; i++) v[i] = from[i * apart];
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        const int count = min(first + i + AROUND + 1, length) - max(first + i - AROUND, 0);
        number sum = 0;
#pragma unroll
        for (int k = 0; k < SMOOTH; k++) sum += v[i + k];
        store(i, sum / max(count, 1));
    }
}
#endif

// A product that is rounded before it is added to something, as torch's are.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

// The running mean of a stream's frames, N C H W, NaN before the first: at first of all of them, then at the rate at
// which it has the noise of one of RECENT frames. frames: how many there were. A kernel of its own, since boxes read
// the means of pixels that other blocks take care of.
extern "C" __global__ void average(const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                   const value* stored, int pitch, const int* awake, number* mean,
                                   const number* frames, int C, int H, int W, number slowest) {
    wait_for_predecessor();
    const int n = blockIdx.y;
    if (!awake[n]) return;
    const number share = 1 / (frames[n] + 1), rate = share < slowest ? slowest : share;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < H * W; i += gridDim.x * blockDim.x) {
        const Pixel pixel(frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, i / W, i % W);
        for (int c = 0; c < C; c++) {
            number* of = mean + (size_t)(n * C + c) * H * W + i;
            const number old = *of, fresh = get(pixel.fresh(c));
            *of = old != old ? fresh : old + times(fresh - old, rate);
        }
    }
}

// moved: beyond the threshold and the noise. other: any bit differs. near: those of them that a change takes along.
// last: the frame before, N C H W; noise: N H W. deviations: how many of them a change must exceed. mean: as `average`
// left it; then: what it was when a pixel was stored, which says nothing before RECENT of `frames`.
extern "C" __global__ void look(const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                const value* stored, int pitch, const int* awake, u32* moved, u32* near, u32* other,
                                value* last, number* noise, u64* held, const number* mean, const number* then,
                                const number* frames, int C, int H, int W, number limit, number peak, number weak,
                                number deviations, number root) {
    wait_for_predecessor();
    const int n = blockIdx.y, words = words_of(W), left = blockIdx.x % words * 32, top = blockIdx.x / words * ROWS;
    if (!awake[n]) return;
    const bool lasts = RECENT > 1 && frames[n] + 1 > RECENT;
    const auto lasting = [&](int c, int y, int x) {
        const size_t place = ((size_t)(n * C + c) * H + y) * W + x;
        return mean[place] - then[place];
    };
#if SMOOTH > 1
    __shared__ number change[CHANNELS][(ROWS + 2 * AROUND) * PITCH], means[CHANNELS][ROWS * PITCH], largest[ROWS * 32];
    for (int i = threadIdx.x; i < ROWS * 32; i += blockDim.x) largest[i] = 0;
    // A mean is no larger than what it is the mean of, but for roundings: most boxes need no look.
    const number small = (WEAK ? weak : limit) * (number)0.999;
    // Frames themselves are compared at `root` thresholds, their means at one.
    for (int c = 0; c < (lasts ? 2 * C : C); c += CHANNELS) {
        const bool of_frame = c < C;
        const number scale = of_frame ? root : 1;
        bool large = false;
        for (int i = threadIdx.x; i < (ROWS + 2 * AROUND) * WIDE; i += blockDim.x) {
            const int row = i / WIDE, col = i % WIDE, y = top - AROUND + row, x = left - AROUND + col;
            const bool inside = (u32)y < (u32)H && (u32)x < (u32)W;
            const Pixel pixel(frame, sn, sc, sh, sw, stored, pitch, inside && of_frame ? C : 0, H, W, n,
                              inside ? y : 0, inside ? x : 0);
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) {
                const number by = !inside ? 0 : of_frame ? pixel.change(c + j) : lasting(c + j - C, y, x);
                change[j][row * PITCH + col] = by;
                large |= !(magnitude(by) <= small * scale);
            }
        }
        if (__syncthreads_count(large) == 0) continue;
        for (int i = threadIdx.x; i < CHANNELS * WIDE * (ROWS / 8); i += blockDim.x) {
            const int col = i % WIDE, j = i / WIDE % CHANNELS, row = i / WIDE / CHANNELS * 8;
            number* to = means[j] + row * PITCH + col;
            box_means<8>(change[j] + row * PITCH + col, PITCH, top + row, H,
                         [&](int k, number of_box) { to[k * PITCH] = of_box; });
        }
        __syncthreads();
        for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {
            const int row = i / 8, col = i % 8 * 4;
            number* to = largest + row * 32 + col;
            for (int j = 0; j < CHANNELS; j++)
                box_means<4>(means[j] + row * PITCH + col, 1, left + col, W, [&](int k, number of_box) {
                    to[k] = larger(to[k], magnitude(of_box) / scale);
                });
        }
        __syncthreads();
    }
    __syncthreads();
#endif
    const int lane = threadIdx.x & 31, x = left + lane;
    for (int row = threadIdx.x / 32; row < ROWS && top + row < H; row += blockDim.x / 32) {
        const int y = top + row;
        bool passes = false, differ = false, faint = false, kept = false;
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
            for (int c = 0; lasts && c < C; c++) smoothed = larger(smoothed, magnitude(lasting(c, y, x)));
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
        const u32 of_moved = __ballot_sync(~0u, passes), of_other = __ballot_sync(~0u, differ);
        const u32 of_near = __ballot_sync(~0u, differ && faint), of_held = __ballot_sync(~0u, kept);
        if (lane > 0) continue;
        const size_t word = (size_t)(n * H + y) * words + left / 32;
        moved[word] = of_moved, other[word] = of_other, near[word] = of_near;
        if (of_held) atomicAdd(held, (u64)__popc(of_held));
    }
}

// The pixels up to `by` away from those set; x is a multiple of 32, by at most 64.
__device__ __forceinline__ u32 grown(const u32* bits, int H, int words, int y, int x, int by) {
    u32 rows[6] = {};  // of the words from x - 64 on
    const int first = x / 32 - 2;
    for (int row = max(y - by, 0); row < min(y + by + 1, H); row++)
#pragma unroll
        for (int k = 0; k < 5; k++)
            if ((u32)(first + k) < (u32)words) rows[k] |= bits[row * words + first + k];
    if ((rows[0] | rows[1] | rows[2] | rows[3] | rows[4]) == 0) return 0;
    u32 found = 0;
    for (int at = 64 - by; at <= 64 + by; at++)
        found |= __funnelshift_r(rows[at >> 5], rows[(at >> 5) + 1], at & 31);
    return found;
}

// The mask of what changed, a thread 32 pixels at a time. Tiles of 16 pixels are taken over in turn, in `refresh`
// frames; 0 is off. It counts `frames`, which the kernels before and behind it read.
extern "C" __global__ void decide(const int* awake, const u32* moved, const u32* near, const u32* other, u32* mask,
                                  int* changed, const long long* ticks, number* frames, int H, int W, int dilate,
                                  int refresh) {
    wait_for_predecessor();
    const int n = blockIdx.y, words = words_of(W), turn = refresh ? (int)(ticks[n] % refresh) : 0;
    const int across = (W + 15) / 16, tiles = across * ((H + 15) / 16);
    const size_t first = (size_t)n * H * words;
    int total = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0 && awake[n]) frames[n] += 1;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < H * words; i += gridDim.x * blockDim.x) {
        const int y = i / words, x = i % words * 32, tile = y / 16 * across + x / 16;
        u32 word = 0;
        if (awake[n]) {
            word = moved[first + i] & other[first + i];
            if (dilate) word |= grown(moved + first, H, words, y, x, dilate) & near[first + i];
            if (refresh && (long long)tile * refresh / tiles == turn) word |= 0xffff & other[first + i];
            if (refresh && (long long)(tile + 1) * refresh / tiles == turn) word |= 0xffff0000 & other[first + i];
        }
        mask[first + i] = word;
        total += __popc(word);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
    if ((threadIdx.x & 31) == 0 && total) atomicAdd(changed + n, total);
}

// Store what changed; all of it where that is a share of `cut` or more. A warp takes every `warps`-th 32 pixels. A mean
// of few frames is noise: until it is one of RECENT, `then` follows it.
extern "C" __global__ void take(const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                value* stored, int pitch, const int* awake, u32* mask, int* changed, int* computed,
                                long long* ticks, u64* cuts, const number* mean, number* then, const number* frames,
                                int C, int H, int W, float cut) {
    wait_for_predecessor();
    const int n = blockIdx.y, words = words_of(W), lane = threadIdx.x & 31;
    if (!awake[n]) return;
    const bool young = RECENT > 1 && frames[n] < RECENT;
    const bool full = (float)changed[n] / (float)(H * W) >= cut;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(computed, H * W);
        ticks[n]++;
        if (full) atomicAdd(cuts, (u64)1), changed[n] = H * W;  // others that read it now see a full frame as well
    }
    const int warps = gridDim.x * blockDim.x >> 5;
    for (int i = (blockIdx.x * blockDim.x + threadIdx.x) >> 5; i < H * words; i += warps) {
        const int y = i / words, x = i % words * 32 + lane;
        u32 word = mask[(size_t)n * H * words + i];
        if (full) {
            word = __ballot_sync(~0u, x < W);
            if (lane == 0) mask[(size_t)n * H * words + i] = word;
        }
        const bool is_new = word >> lane & 1;
        if (RECENT > 1 && x < W && (is_new || young))
            for (int c = 0; c < C; c++) {
                const size_t place = ((size_t)(n * C + c) * H + y) * W + x;
                then[place] = mean[place];
            }
        if (!is_new) continue;
        const Pixel pixel(frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y, x);
        for (int c = 0; c < C; c++) stored[((size_t)(n * H + y) * W + x) * pitch + c] = pixel.fresh(c);
    }
}
