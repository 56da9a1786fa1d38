// The gate at a network's input: which pixels of a frame are new. deltaconvert/gate.py is the meaning.
//
// `average` takes a frame into the running mean, `look` judges each pixel by the box around it, `decide` lets changes
// take their neighbours along, `take` stores; before it ceiling.cu may choose. All leave out streams that
// sleep. Masks are those of masks.cu: a bit a pixel.
#include "gate_pixel.cuh"
#include "gate_look.cuh"
#include "ceiling.cuh"

#ifndef CEILING
#define CEILING 0  // whether ceiling.cu chose the tiles that may change
#endif

// The running mean of a stream's frames, N C H W, NaN before the first: at first of all of them, then at the rate at
// which it has the noise of one of RECENT frames. frames: how many there were. A kernel of its own, since boxes read
// the means of pixels that other blocks take care of.
extern "C" __global__ void average(const seen* frame, const u64* at, long long sn, long long sc, long long sh,
                                   long long sw, const value* stored, int pitch, const int* awake, number* mean,
                                   const number* frames, int C, int H, int W, number slowest) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int n = blockIdx.y;
    if (!awake[n]) return;
    const number share = 1 / (frames[n] + 1), rate = share < slowest ? slowest : share;
    const auto next = [&](number old, number fresh) { return old != old ? fresh : old + times(fresh - old, rate); };
#if FLAT && !HOLD
    const size_t all = (size_t)C * H * W, head = min(all, (size_t)(-(n * all) & 3)), tail = head + (all - head) / 4 * 4;
    frame += n * all, mean += n * all;
    for (size_t i = head + (blockIdx.x * blockDim.x + threadIdx.x) * 4; i < tail; i += gridDim.x * blockDim.x * 4) {
        const Seen fresh = *(const Seen*)(frame + i);
        Numbers old = *(Numbers*)(mean + i);
#pragma unroll
        for (int p = 0; p < 4; p++) old.of[p] = next(old.of[p], get(arrived(fresh.of[p])));
        *(Numbers*)(mean + i) = old;
    }
    if (blockIdx.x > 0 || threadIdx.x >= 8) return;
    const size_t i = threadIdx.x < 4 ? threadIdx.x : tail + threadIdx.x - 4;  // before the first four and behind the last
    if (i < (threadIdx.x < 4 ? head : all)) mean[i] = next(mean[i], get(arrived(frame[i])));
#elif FOURS && !HOLD
    for (int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4; i < H * W; i += gridDim.x * blockDim.x * 4) {
        const seen* from = frame + n * sn + i / W * sh + i % W * sw;
        Seen side_by_side[CHANNELS];
        if (LAST) read_last(from, side_by_side);
#pragma unroll
        for (int c = 0; c < (LAST ? CHANNELS : C); c++) {
            const Seen fresh = LAST ? side_by_side[c] : *(const Seen*)(from + c * sc);
            Numbers* of = (Numbers*)(mean + (size_t)(n * C + c) * H * W + i);
            Numbers old = *of;
#pragma unroll
            for (int p = 0; p < 4; p++) old.of[p] = next(old.of[p], get(arrived(fresh.of[p])));
            *of = old;
        }
    }
#else
    const int apart = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < H * W; i += 4 * apart)
        for (int c = 0; c < C; c++) {
            number* of = mean + (size_t)(n * C + c) * H * W;
            number old[4], fresh[4];  // all of them on their way at once
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const int at = i + p * apart;
                if (at >= H * W) continue;
                old[p] = of[at];
                fresh[p] = get(Pixel(true, frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, at / W, at % W).fresh(c));
            }
#pragma unroll
            for (int p = 0; p < 4; p++)
                if (i + p * apart < H * W) of[i + p * apart] = next(old[p], fresh[p]);
        }
#endif
}

#define BAND 16    // rows of a block in `decide`, which has
#define ACROSS 64  // words of them, and two more on both sides

// Bit i: whether one of the bits i .. i + width - 1 is set.
__device__ __forceinline__ u32 any_from(u64 bits, int width) {
    for (int have = 1, more; have < width; have += more) more = min(have, width - have), bits |= bits >> more;
    return (u32)bits;
}

// Of five words the pixels of the middle one that lie up to `by`, at most 64, from one that is set.
__device__ __forceinline__ u32 grown(const u32* five, int by) {
    const int width = min(2 * by + 1, 33), last = 64 + by + 1 - width;  // of what 64 bits hold for 32 pixels
    u32 found = 0;
    for (int first = 64 - by;; first = min(first + width, last)) {
        const int at = first >> 5;
        const u32 low = __funnelshift_r(five[at], five[at + 1], first & 31);
        const u32 high = __funnelshift_r(five[at + 1], at < 3 ? five[at + 2] : 0, first & 31);
        found |= any_from((u64)high << 32 | low, width);
        if (first == last) return found;
    }
}

// The mask of what changed: a change takes those up to `dilate` away along, which a block does for a band of rows, first
// down, then across. Tiles of 16 pixels are taken over in turn, in `refresh` frames; 0 is off. It counts `frames`, which
// the kernels before and behind it read.
extern "C" __global__ void decide(const int* awake, const u32* moved, const u32* near, const u32* other, u32* mask,
                                  int* changed, const long long* ticks, number* frames, int H, int W, int dilate,
                                  int refresh) {
    __shared__ u32 read[BAND + 128][ACROSS + 4], down[BAND][ACROSS + 4];
    wait_for_predecessor();
    const int n = blockIdx.y, words = words_of(W), turn = refresh ? (int)(ticks[n] % refresh) : 0;
    const int across = (W + 15) / 16, tiles = across * ((H + 15) / 16), parts = (words + ACROSS - 1) / ACROSS;
    const int top = blockIdx.x / parts * BAND, left = blockIdx.x % parts * ACROSS;
    const size_t first = (size_t)n * H * words;
    if (blockIdx.x == 0 && threadIdx.x == 0 && awake[n]) frames[n] += 1;
    bool any = !dilate || refresh;  // of the pixels that the block sees moved: where none did nothing is to be done
    if (dilate && awake[n]) {
#pragma unroll 4
        for (int i = threadIdx.x; i < (BAND + 2 * dilate) * (ACROSS + 4); i += blockDim.x) {
            const int row = i / (ACROSS + 4), col = i % (ACROSS + 4), y = top - dilate + row, x = left - 2 + col;
            const u32 word = (u32)y < (u32)H && (u32)x < (u32)words ? moved[first + y * words + x] : 0;
            read[row][col] = word, any |= word != 0;
        }
        any = __syncthreads_count(any) != 0;
    }
    if (dilate && awake[n] && any) {
        const int wide = min(ACROSS, words - left) + 4;
        for (int i = threadIdx.x; i < BAND / 4 * wide; i += blockDim.x) {  // four rows, which share most of what they see
            const int row = i / wide * 4, col = i % wide;
            u32 common = 0, above[4] = {}, below[4] = {};
            for (int k = 3; k <= 2 * dilate; k++) common |= read[row + k][col];
#pragma unroll
            for (int k = 2; k >= 0; k--) above[k] = above[k + 1] | read[row + k][col];
#pragma unroll
            for (int k = 1; k < 4; k++) below[k] = below[k - 1] | read[row + 2 * dilate + k][col];
#pragma unroll
            for (int k = 0; k < 4; k++) down[row + k][col] = common | above[k] | below[k];
        }
        __syncthreads();
    }
    int total = 0;
    for (int i = threadIdx.x; i < BAND * ACROSS; i += blockDim.x) {
        const int row = i / ACROSS, col = i % ACROSS, y = top + row, x = (left + col) * 32;
        if (y >= H || left + col >= words) continue;
        const size_t at = first + y * words + left + col;
        const int tile = y / 16 * across + x / 16;
        u32 word = 0;
        if (awake[n] && any) {
            const u32 differ = other[at];
            word = moved[at] & differ;
            if (dilate && differ) word |= grown(down[row] + col, dilate) & near[at];
            if (refresh && (long long)tile * refresh / tiles == turn) word |= 0xffff & differ;
            if (refresh && (long long)(tile + 1) * refresh / tiles == turn) word |= 0xffff0000 & differ;
        }
        mask[at] = word;
        total += __popc(word);
    }
    total = sum_of_warp(total);
    if ((threadIdx.x & 31) == 0 && total) atomicAdd(changed + n, total);
}

#define AT_ONCE (RECENT > 1 ? 2 : 4)  // words whose pixels a warp of `take` reads before it stores them

// Store what changed; all of it where that is a share of `cut` or more. A mean of few frames is noise: until it is one of
// RECENT, `then` follows it. With CEILING of what changed only what `choice`, a byte a tile, lets go. nonfinite: the pixels
// of each stream that were stored with NaN or infinity so far; to count them let the compiler take 80 to 96 registers where
// it took 69, and two blocks fit where three did.
extern "C" __global__ void __launch_bounds__(256, 3)
    take(const seen* frame, const u64* at, long long sn, long long sc, long long sh, long long sw, value* stored, int pitch,
         const int* awake, u32* mask, int* changed, int* computed, u64* nonfinite, long long* ticks, u64* cuts,
         const number* mean, number* then, const number* frames, int C, int H, int W, float cut, const u32* other,
         const u8* choice) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int n = blockIdx.y, words = words_of(W), lane = threadIdx.x & 31;
    if (!awake[n]) return;
    const bool young = RECENT > 1 && frames[n] < RECENT;
    const bool full = (float)read_counter(changed + n) / (float)(H * W) >= cut;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(computed, H * W);
        ticks[n]++;
        if (full) atomicAdd(cuts, (u64)1), changed[n] = H * W;  // others that read it now see a full frame as well
    }
    const int warps = gridDim.x * blockDim.x >> 5, warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    int broken = 0;  // pixels that are not finite
    for (int first = warp * 32; first < H * words; first += warps * 32) {
        const int mine = first + lane;
        u32 word = mine < H * words ? mask[(size_t)n * H * words + mine] : 0;
#if CEILING
        if (mine < H * words) {
            const u8* const of = choice + ((size_t)n * ((H + 15) / 16) + mine / words / 16) * 2 * words + mine % words * 2;
            const u32 turns = halves(of[0] & TURN, of[1] & TURN);
            word &= halves(of[0] & GOES, of[1] & GOES);
            if (turns) word |= other[(size_t)n * H * words + mine] & turns;
            mask[(size_t)n * H * words + mine] = word;
        }
#endif
        if (full && mine < H * words) {
            word = ~0u >> max(0, 32 - (W - mine % words * 32));
            mask[(size_t)n * H * words + mine] = word;
        }
        for (u32 left = __ballot_sync(~0u, word != 0 || (young && mine < H * words)); left;) {  // words, a lane a pixel
            int y[AT_ONCE], x[AT_ONCE];
            bool is_new[AT_ONCE], is_kept[AT_ONCE];  // kept: its mean is
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++) {
                const int of_lane = left ? __ffs(left) - 1 : 0, at = first + of_lane;
                const u32 bits = __shfl_sync(~0u, word, of_lane);
                y[q] = at / words, x[q] = at % words * 32 + lane;
                is_new[q] = left && bits >> lane & 1, is_kept[q] = RECENT > 1 && left && x[q] < W && (is_new[q] || young);
                left &= left - 1;
            }
            u32 odd = 0;  // a bit of each word's pixel: it is not finite
            for (int c = 0; c < C; c += 4) {
                number means[AT_ONCE][4];
                Stored fresh[AT_ONCE] = {};
#pragma unroll
                for (int q = 0; q < AT_ONCE; q++) {
                    const size_t place = ((size_t)(n * C + c) * H + y[q]) * W + x[q], plane = (size_t)H * W;
                    const Pixel pixel(is_new[q], frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y[q], x[q]);
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        if (c + k >= C) break;
                        if (is_kept[q]) means[q][k] = mean[place + k * plane];
                        if (is_new[q]) fresh[q].of[k] = pixel.fresh(c + k);
                    }
                }
#pragma unroll
                for (int q = 0; q < AT_ONCE; q++) {
                    const size_t place = ((size_t)(n * C + c) * H + y[q]) * W + x[q], plane = (size_t)H * W;
                    value* const to = stored + ((size_t)(n * H + y[q]) * W + x[q]) * pitch + c;
                    if (PACKED && is_new[q]) *(Stored*)to = fresh[q];
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        if (c + k >= C) break;
                        if (!BYTES && !HOLD) odd |= (u32)!is_finite(get(fresh[q].of[k])) << q;  // 0 where none is new
                        if (is_kept[q]) then[place + k * plane] = means[q][k];
                        if (!PACKED && is_new[q]) to[k] = fresh[q].of[k];
                    }
                }
            }
            broken += __popc(odd);
        }
    }
    if (!BYTES && !HOLD) add_nonfinite(nonfinite + n, broken);
}
