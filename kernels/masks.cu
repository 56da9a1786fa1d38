// Masks of changed pixels: one bit a pixel, a row of W pixels in (W + 31) / 32 words whose last bits are 0; and lists of
// pixels, which the computing kernels walk.
//
// `changed` holds the number of changed pixels of each stream, 0 before a frame. A stream in which nothing changed
// costs no look at its mask, and one in which everything did is a mask of ones, whatever the operator: that is all
// that a first frame is (deltaconvert/reach.py).
#include "frame.cuh"

enum { PIXEL, WINDOW, TRANSPOSED, SOURCES, EVERYTHING };

// Which pixels of one input an output pixel reads; deltaconvert.reach, packed by backends/cuda/marks.py.
struct Reach {
    const u32* mask;
    const int* changed;
    const int* rows;  // SOURCES: OH x row_taps, OW x col_taps
    const int* cols;
    const int* spans;  // SOURCES: the first of the columns that 32 output pixels read, of each 32; null if they lie apart
    int kind, H, W, kh, kw, sh, sw, ph, pw, dh, dw, row_taps, col_taps;
    int of;  // which listing of the same launch makes the mask; or -1
};

// The candidates of a step, from the masks of its inputs: `bits`, one a pixel, and `list` of their places
// n * H * W + y * W + x, `count` of them.
struct Listing {
    u32* bits;
    u32* compared;  // the output's mask if a threshold follows: cleared for `commit`. Without one `bits` are that mask
    int* changed;
    int* list;
    int* count;
    int first, inputs;  // its reaches
    int behind;         // it reads the bits of a listing before it
    int turn;           // words of 32 pixels of those before it, in warps
    int kept, unused;   // where its bits are kept in shared memory, in words; or -1
    int H, W;
};

// The counters of a frame, before it begins.
extern "C" __global__ void clear(int* counters, int length) {
    wait_for_predecessor();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) counters[i] = 0;
}

// Dense values -> delta: compare with the stored map, store, mark.   stored: N H W C; frame: any strides.
// A thread is PIXELS pixels of a row, blockIdx.y a stream; a row has threads for whole words of its mask.
//
// Nearly every pixel stands still, so what counts is to have many loads on their way: the pixels of a row lie side by
// side in the frame, and a stored one is one load.
#ifndef PIXELS
#define PIXELS 1
#endif
#ifndef CHANNELS
#define CHANNELS 0  // known when the kernel is compiled where there are few; else 0
#endif
#ifndef LAST
#define LAST 0  // whether a pixel's channels lie side by side in the frame, and pixels behind each other
#endif
struct __align__(PIXELS * sizeof(seen)) Run { seen of[PIXELS]; };
struct __align__(4 * sizeof(value)) Stored { value of[4]; };

extern "C" __global__ void sparsify(const seen* frame, const u64* at, long long sn, long long sc, long long sh,
                                    long long sw, value* stored, int pitch, const int* awake, u32* mask, int* changed,
                                    int* computed, int C, int H, int W, number threshold) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int words = words_of(W), n = blockIdx.y;
    const bool looks = awake[n];  // the image of a stream that sleeps is the one that was compared before
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS, y = i / (words * 32), x = i - y * words * 32;
    u32 moved = 0;  // a bit of each pixel
    if (looks && y < H && x < W) {
        const seen* fresh = frame + n * sn + y * sh + x * sw;
        value* pixel = stored + ((size_t)(n * H + y) * W + x) * pitch;
#if CHANNELS
        Run runs[CHANNELS];
        Stored kept[PIXELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) runs[c] = *(const Run*)(fresh + c * (LAST ? PIXELS : sc));
        const auto came = [&](int p, int c) {
            const int k = LAST ? p * CHANNELS + c : c * PIXELS + p;
            return arrived(runs[k / PIXELS].of[k % PIXELS]);
        };
#pragma unroll
        for (int p = 0; p < PIXELS; p++) kept[p] = *(const Stored*)(pixel + p * 4);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
            bool other = false;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                other |= differs(came(p, c), kept[p].of[c], threshold);
                kept[p].of[c] = came(p, c);
            }
            if (other) *(Stored*)(pixel + p * 4) = kept[p];
            moved |= (u32)other << p;
        }
#else
        for (int c = 0; c < C; c++) moved |= differs(arrived(fresh[c * sc]), pixel[c], threshold);
        if (moved)
            for (int c = 0; c < C; c++) pixel[c] = arrived(fresh[c * sc]);
#endif
    }
    u32 word = moved << (x & 31);
#pragma unroll
    for (int lanes = 16 / PIXELS; lanes > 0; lanes /= 2) word |= __shfl_xor_sync(~0u, word, lanes);
    if (y < H && x % 32 == 0) mask[(n * H + y) * words + x / 32] = word;
    int ones = 0;
#pragma unroll
    for (int p = 0; p < PIXELS; p++) ones += __syncthreads_count(moved >> p & 1);
    if (threadIdx.x == 0 && ones) atomicAdd(changed + n, ones);
    if (looks && i == 0) atomicAdd(computed, H * W);
}

// The 32 bits of a row of `words` words from column `first` on, wherever that is.
__device__ __forceinline__ u32 bits_from(const u32* row, int words, int first) {
    const int at = first >> 5;
    const u32 low = (u32)at < (u32)words ? row[at] : 0, high = (u32)(at + 1) < (u32)words ? row[at + 1] : 0;
    return __funnelshift_r(low, high, first & 31);
}

__device__ __forceinline__ bool is_set(const u32* row, int col) { return row[col >> 5] >> (col & 31) & 1; }

// The input row of tap i, or one outside the map.
__device__ __forceinline__ int row_of(const Reach& r, int y, int i) {
    if (r.kind != TRANSPOSED) return y * r.sh - r.ph + i * r.dh;
    const int row = y + r.ph - i * r.dh;
    return row % r.sh ? -1 : row / r.sh;
}

// Whether an output pixel reads a change. Pixel by pixel: for reaches that have no words below.
__device__ __forceinline__ bool reads_change(const Reach& r, int n, int y, int x) {
    const int words = words_of(r.W);
    const u32* mask = r.mask + (size_t)n * r.H * words;
    if (r.kind == SOURCES) {
        for (int i = 0; i < r.row_taps; i++)
            for (int j = 0; j < r.col_taps; j++) {
                const int row = r.rows[y * r.row_taps + i], col = r.cols[x * r.col_taps + j];  // -1 outside
                if (row >= 0 && col >= 0 && is_set(mask + row * words, col)) return true;
            }
        return false;
    }
    if (r.kind == WINDOW && r.dw == 1) {  // by words: boxes of a mean are hundreds of pixels
        u32 any = 0;
#pragma unroll 4
        for (int i = 0; i < r.kh; i++) {
            const int row = row_of(r, y, i);
            if ((u32)row >= (u32)r.H) continue;
            for (int j = 0; j < r.kw; j += 32)
                any |= bits_from(mask + row * words, words, x * r.sw - r.pw + j) & ~0u >> max(0, 32 - (r.kw - j));
        }
        return any != 0;
    }
    for (int i = 0; i < r.kh; i++) {
        const int row = row_of(r, y, i);
        if ((u32)row >= (u32)r.H) continue;
        for (int j = 0; j < r.kw; j++) {
            int col = r.kind == WINDOW ? x * r.sw - r.pw + j * r.dw : x + r.pw - j * r.dw;
            if (r.kind == TRANSPOSED) {
                if (col < 0 || col % r.sw) continue;
                col /= r.sw;
            }
            if ((u32)col < (u32)r.W && is_set(mask + row * words, col)) return true;
        }
    }
    return false;
}

// Whether `candidates` knows a reach.
__device__ __forceinline__ bool has_words(const Reach& r) {
    if (r.kind == TRANSPOSED) return r.sw == 2 && r.dw == 1 && r.kw <= 32;
    return r.kind == PIXEL || (r.kind == WINDOW && r.sw <= 2 && r.kw <= 32);
}

// Every second bit, from the first on.
__device__ __forceinline__ u32 even(u32 bits) {
    bits &= 0x55555555;
    bits = (bits | bits >> 1) & 0x33333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff;
    return (bits | bits >> 8) & 0xffff;
}

// The other way round: 16 bits, a 0 behind each.
__device__ __forceinline__ u32 apart(u32 bits) {
    bits = (bits | bits << 8) & 0x00ff00ff;
    bits = (bits | bits << 4) & 0x0f0f0f0f;
    bits = (bits | bits << 2) & 0x33333333;
    return (bits | bits << 1) & 0x55555555;
}

// Which of the output pixels x .. x + 31 of row y read a change in `wide` columns side by side, the first of them at
// column `first` for pixel x. A transposed window of stride 2 is one of stride 1 over a map with zeros between.
__device__ __forceinline__ u32 near(const Reach& r, const u32* mask, int y, int first, int wide) {
    const bool zeros = r.kind == TRANSPOSED;
    const int words = words_of(r.W), at = first >> 5, stride = zeros ? 1 : r.sw;
    u32 seen[4] = {};  // what the window's rows hold from word `at` on
    int cols[4];
#pragma unroll
    for (int k = 0; k < 4; k++) cols[k] = min(max(zeros ? (at + k) >> 1 : at + k, 0), words - 1);
    for (int top = 0; top < r.kh; top += 4) {
        u32 read[4][4];  // all of them on their way at once
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row_of(r, y, top + i);
            const bool inside = top + i < r.kh && (u32)row < (u32)r.H;
#pragma unroll
            for (int k = 0; k < 4; k++) read[i][k] = inside && k < stride + 2 ? mask[row * words + cols[k]] : 0;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) seen[k] |= read[i][k];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (cols[k] != (zeros ? (at + k) >> 1 : at + k)) seen[k] = 0;  // beside the map
        if (zeros) seen[k] = apart(seen[k] >> (((at + k) & 1) * 16) & 0xffff);
    }
    u32 from[3], out[2] = {};
#pragma unroll
    for (int k = 0; k < 3; k++) from[k] = __funnelshift_r(seen[k], seen[k + 1], first & 31);
    for (int j = 0; j < wide; j++) {
        out[0] |= __funnelshift_r(from[0], from[1], j);
        out[1] |= __funnelshift_r(from[1], from[2], j);
    }
    return stride == 1 ? out[0] : even(out[0]) | even(out[1]) << 16;
}

// The output pixels x .. x + 31 of a row that read a change; x is a multiple of 32.
__device__ __forceinline__ u32 candidates(const Reach& r, int n, int y, int x) {
    const int words = words_of(r.W);
    const u32* mask = r.mask + (size_t)n * r.H * words;
    if (r.kind == PIXEL) return mask[y * words + x / 32];
    const int first = r.kind == TRANSPOSED ? x + r.pw - r.kw + 1 : x * r.sw - r.pw;
    const int times = r.dw == 1 ? 1 : r.kw;  // with a dilation its columns are looked at one by one
    u32 word = 0;
    for (int j = 0; j < times; j++) word |= near(r, mask, y, first + j * r.dw, times == 1 ? r.kw : 1);
    return word;
}

// The same for tables whose columns lie near each other, by a warp: (y, x) is the first pixel of a lane's word, y past
// the map where there is none.
__device__ __forceinline__ u32 listed_sources(const Reach& r, int n, int y, int x, int H, int W) {
    const int words = words_of(r.W), lane = threadIdx.x & 31;
    const u32* mask = r.mask + (size_t)n * r.H * words;
    u32 seen = 0, found = 0;  // the 32 columns from `span` on, of all rows
    const int span = y < H ? r.spans[x / 32] : 0;
    for (int i = 0; i < r.row_taps; i++) {
        const int row = y < H ? r.rows[y * r.row_taps + i] : -1;
        if (row >= 0) seen |= bits_from(mask + row * words, words, span);
    }
    for (u32 left = __ballot_sync(~0u, seen != 0); left; left &= left - 1) {  // a word at a time, a lane a pixel
        const int other = __ffs(left) - 1;
        const u32 bits = __shfl_sync(~0u, seen, other);
        const int from = __shfl_sync(~0u, span, other), pixel = __shfl_sync(~0u, x, other) + lane;
        bool reads = false;
        if (pixel < W)
            for (int j = 0; j < r.col_taps; j++) {
                const int col = r.cols[pixel * r.col_taps + j];
                reads |= col >= 0 && bits >> (col - from) & 1;
            }
        const u32 of_word = __ballot_sync(~0u, reads);
        if (lane == other) found = of_word;
    }
    return found;
}

// Copy the parameters of a launch: `listings` Listings, then their Reaches, `longs` words of 8 bytes together.
__device__ __forceinline__ Listing* parameters(const u64* table, int longs) {
    extern __shared__ u64 shared[];
    for (int i = threadIdx.x; i < longs; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
    return (Listing*)shared;
}

// The first of as many places of a list as a block has candidates, and behind it those of the warps before this one.
// total: of this warp; of the block afterwards. All threads call it.
__device__ __forceinline__ int start_of_warp(int* count, int& total) {
    __shared__ int totals[33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    __syncthreads();  // whoever called before has read them
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int other = 0; other < (int)blockDim.x / 32; other++) {
        if (other < warp) before += totals[other];
        total += totals[other];
    }
    if (threadIdx.x == 0) totals[32] = atomicAdd(count, total);
    __syncthreads();
    return totals[32] + before;
}

// List the candidates in the words of a warp; (y, x) is the first pixel of a lane's. The order of a list is the
// hardware's: no pixel's value may depend on its place in it. together: all warps of a block call it, and it returns how
// many candidates they have: what thousands of warps add to one number takes 2 ns each.
__device__ __forceinline__ int list_words(const Listing& to, int n, int y, int x, u32 word, bool together) {
    const int lane = threadIdx.x & 31, place = (n * to.H + y) * to.W + x;
    int before = __popc(word);  // candidates of the lanes up to this one
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int others = __shfl_up_sync(~0u, before, lanes);
        if (lane >= lanes) before += others;
    }
    int total = __shfl_sync(~0u, before, 31), start = 0;
    if (together) {
        start = start_of_warp(to.count, total);
    } else {
        if (total == 0) return 0;
        if (lane == 0) start = atomicAdd(to.count, total);
        start = __shfl_sync(~0u, start, 0);
    }
    start += before - __popc(word);
    for (u32 left = __ballot_sync(~0u, word != 0); left; left &= left - 1) {  // a word at a time, a lane a pixel
        const int other = __ffs(left) - 1;
        const u32 bits = __shfl_sync(~0u, word, other);
        const int to_place = __shfl_sync(~0u, start, other), of_place = __shfl_sync(~0u, place, other);
        if (bits >> lane & 1) to.list[to_place + __popc(bits & ((1u << lane) - 1))] = of_place + lane;
    }
    return total;
}

// The candidates of several steps. blockIdx.y is a stream, a warp 32 words of its mask at a time.
//
// At threshold 0 masks depend on masks alone, so those of a whole network are known before its first convolution. Large
// masks are a launch each. Small ones, one after the other, are the work of one block (gridDim.x == 1), which keeps their
// bits, and in `counts` the number of them, in shared memory: 0.3 us each, where blocks that meet take 2 to 3.
//
// then_list: list them too; else `list` does, with more blocks, and no mask waits for it.
extern "C" __global__ void __launch_bounds__(1024) spread(const u64* table, int longs, int listings, int then_list) {
    Listing* all = parameters(table, longs);
    Reach* reaches = (Reach*)(all + listings);
    int* counts = (int*)((u64*)all + longs);
    u32* kept = (u32*)(counts + listings);
    const int n = blockIdx.y, lane = threadIdx.x & 31;
    const bool alone = gridDim.x == 1;
    if (alone) {
        for (int k = threadIdx.x; k < listings; k += blockDim.x) counts[k] = 0;
        for (Reach* r = reaches + threadIdx.x; (u64*)r < (u64*)all + longs; r += blockDim.x) {
            if (r->of < 0) continue;
            r->changed = counts + r->of - n;
            if (all[r->of].kept >= 0) r->mask = kept + all[r->of].kept - (size_t)n * r->H * words_of(r->W);
        }
        __syncthreads();
    }
    wait_for_predecessor();
    for (int k = 0; k < listings; k++) {
        const Listing& to = all[k];
        if (to.behind) __syncthreads();
        const int row_words = words_of(to.W), words = to.H * row_words;
        // Each listing begins with other blocks, so that those of a launch are made side by side.
        const u32 blocks = gridDim.x, before = (to.turn * 32 + blockDim.x - 1) / blockDim.x % blocks;
        const int block_of_it = (blockIdx.x + blocks - before) % blocks;
        for (int block = block_of_it * blockDim.x; block < words; block += blocks * blockDim.x) {
            const int mine = block + threadIdx.x, first = mine - lane;
            const int y = mine / row_words, x = (mine - y * row_words) * 32;
            u32 word = 0;
            for (int i = to.first; i < to.first + to.inputs; i++) {
                const Reach& r = reaches[i];
                const int changed = r.changed[n];
                if (changed == 0) continue;
                if (r.kind == EVERYTHING || changed == r.H * r.W) {
                    word = ~0u;
                } else if (has_words(r)) {
                    if (mine < words) word |= candidates(r, n, y, x);
                } else if (r.kind == SOURCES && r.spans) {
                    word |= listed_sources(r, n, y, x, to.H, to.W);
                } else {
                    for (int other = 0; other < 32 && first + other < words; other++) {
                        const int oy = (first + other) / row_words, ox = (first + other - oy * row_words) * 32 + lane;
                        const u32 bits = __ballot_sync(~0u, ox < to.W && reads_change(r, n, oy, ox));
                        if (lane == other) word |= bits;
                    }
                }
            }
            if (mine >= words) word = 0;
            if (to.W - x < 32) word &= (1u << (to.W - x)) - 1;
            if (mine < words) {
                to.bits[(size_t)n * words + mine] = word;
                if (to.compared) to.compared[(size_t)n * words + mine] = 0;
                if (alone && to.kept >= 0) kept[to.kept + mine] = word;
            }
            if (!alone && then_list) {
                if (__syncthreads_count(word != 0) == 0) continue;
                const int total = list_words(to, n, y, x, word, true);
                if (!to.compared && threadIdx.x == 0) atomicAdd(to.changed + n, total);
                continue;
            }
            if (!__any_sync(~0u, word != 0)) continue;
            if (!to.compared) {
                int total = __popc(word);
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
                if (lane == 0) atomicAdd(alone ? counts + k : to.changed + n, total);
            }
            if (then_list) list_words(to, n, y, x, word, false);
        }
    }
    if (!alone) return;
    __syncthreads();
    for (int k = threadIdx.x; k < listings; k += blockDim.x)
        if (!all[k].compared) all[k].changed[n] = counts[k];
}

// The lists of what `spread` found. blockIdx.y is a stream, a warp takes every `warps`-th 32 words of it.
extern "C" __global__ void list(const u64* table, int longs, int listings) {
    const Listing* all = parameters(table, longs);
    wait_for_predecessor();
    const int n = blockIdx.y, lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5;
    int k = 0;
    for (int turn = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;; turn += warps) {
        while (k < listings && turn >= all[k].turn + (words_of(all[k].W) * all[k].H + 31) / 32) k++;
        if (k == listings) return;
        const Listing& to = all[k];
        const int row_words = words_of(to.W), words = row_words * to.H, mine = (turn - to.turn) * 32 + lane;
        const int y = mine / row_words, x = (mine - y * row_words) * 32;
        list_words(to, n, y, x, mine < words ? to.bits[(size_t)n * words + mine] : 0, false);
    }
}

// Bring C values into the second-level cache. A warp does it.
__device__ __forceinline__ void prefetch(const value* from, int C) {
#if __CUDA_ARCH__ >= 800
    for (int c = (threadIdx.x & 31) * 8 * VECTOR; c < C; c += 32 * 8 * VECTOR)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + c));
#endif
}

// A threshold for all channels, or one for each of them.
#ifndef WEIGHTED
#define WEIGHTED 0
#endif
#if WEIGHTED
typedef const number* Threshold;
__device__ __forceinline__ bool stands(Threshold) { return true; }
__device__ __forceinline__ bool differs(value fresh, value stored, Threshold thresholds, int c) {
    const number change = get(put(get(fresh) - get(stored)));
    return !((change < 0 ? -change : change) <= thresholds[c]);
}
#else
typedef number Threshold;
__device__ __forceinline__ bool stands(Threshold threshold) { return threshold >= 0; }
__device__ __forceinline__ bool differs(value fresh, value stored, Threshold threshold, int) {
    return differs(fresh, stored, threshold);
}
#endif

// Whether a pixel of C channels, sc apart, moved by more than the threshold. A warp looks at it.
__device__ __forceinline__ bool pixel_differs(const value* fresh, long long sc, const value* stored, int C,
                                              Threshold threshold, bool vectors) {
    const int lane = threadIdx.x & 31;
    bool moved = false;
    if (vectors) {
#pragma unroll 4
        for (int c = lane * VECTOR; c < C; c += 32 * VECTOR) {
            const Vector a = load(fresh + c), b = load(stored + c);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) moved |= differs(a.of[j], b.of[j], threshold, c + j);
        }
    } else {
#pragma unroll 4
        for (int c = lane; c < C; c += 32) moved |= differs(fresh[c * sc], stored[c], threshold, c);
    }
    return __any_sync(~0u, moved);
}

#define STREAMS 64  // whose marks a block of `commit` counts

// Store the listed pixels of `fresh` (any strides) that changed, and mark them. A warp is a pixel.
// A threshold below 0: all of them changed and are marked already. early: the list is older than the kernel before this one.
extern "C" __global__ void commit(const value* fresh, long long sn, long long sc, long long sh, long long sw,
                                  value* stored, int pitch, u32* mask, int* changed, const int* list,
                                  const int* count, int C, int H, int W, Threshold threshold, int early) {
    begin(early);
    const int lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5, total = *count;
    int w = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (blockIdx.x > 0 && w - (int)(threadIdx.x >> 5) >= total) return;
    int place = w < total ? list[w] : 0;
    // Counted by the block, of the first streams: thousands of warps that add to one number take 2 ns each.
    __shared__ int counted[STREAMS];
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x) counted[i] = 0;
    __syncthreads();
    if (early) {
        prefetch(stored + (size_t)place * pitch, C);
        wait_for_predecessor();
    }
    for (; w < total; w += warps, place = w < total ? list[w] : 0) {
        const int n = place / (H * W), y = (place - n * H * W) / W, x = place - (n * H + y) * W;
        const value* from = fresh + n * sn + y * sh + x * sw;
        value* pixel = stored + (size_t)place * pitch;
        const bool vectors = sc == 1 && C % VECTOR == 0 && pitch % VECTOR == 0 && (u64)from % sizeof(Vector) == 0;
        if (stands(threshold)) {
            if (!pixel_differs(from, sc, pixel, C, threshold, vectors)) continue;
            if (lane == 0) atomicAdd(n < STREAMS ? counted + n : changed + n, 1);
            if (lane == 0) atomicOr(mask + (n * H + y) * words_of(W) + x / 32, 1u << (x & 31));
        }
        if (vectors) {
#pragma unroll 4
            for (int c = lane * VECTOR; c < C; c += 32 * VECTOR) *(Vector*)(pixel + c) = load(from + c);
        } else {
#pragma unroll 4
            for (int c = lane; c < C; c += 32) pixel[c] = from[c * sc];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x)
        if (counted[i]) atomicAdd(changed + i, counted[i]);
}

// The counts of a frame, for every edge: counted[2 * edge] pixels were computed and counted[2 * edge + 1] changed; and
// behind those of all edges the same of all frames.
// computed: the counter of each edge; changed: the first of its `streams` counters.
extern "C" __global__ void tally(const int* counters, const int* __restrict__ computed,
                                 const int* __restrict__ changed, const int* __restrict__ streams, long long* counted,
                                 int edges) {
    wait_for_predecessor();
    const int edge = blockIdx.x * blockDim.x + threadIdx.x;
    if (edge >= edges) return;
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += counters[changed[edge] + n];
    const long long found[2] = {counters[computed[edge]], sum};
    for (int i = 0; i < 2; i++) {
        counted[2 * edge + i] = found[i];
        counted[2 * (edges + edge) + i] += found[i];
    }
}
