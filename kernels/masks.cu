// Masks of changed pixels: one bit a pixel, a row of W pixels in (W + 31) / 32 words whose last bits are 0; and lists of
// pixels, which the computing kernels walk.
//
// `changed` holds the number of changed pixels of each stream, 0 before a frame. A stream in which nothing changed
// costs no look at its mask, and one in which everything did is a mask of ones, whatever the operator: that is all
// that a first frame is (deltaconvert/reach.py).
#include "common.cuh"

enum { PIXEL, WINDOW, TRANSPOSED, SOURCES, EVERYTHING };

// Which pixels of one input an output pixel reads; deltaconvert.reach, packed by backends/cuda/marks.py.
struct Reach {
    const u32* mask;
    const int* changed;
    const int* rows;  // SOURCES: OH x row_taps, OW x col_taps
    const int* cols;
    int kind, H, W, kh, kw, sh, sw, ph, pw, dh, dw, row_taps, col_taps, unused;
};

// The candidates of a step, from the masks of its inputs: `list` of their places n * H * W + y * W + x, `count` of them.
struct Listing {
    u32* mask;  // of the output
    int* changed;
    int* list;
    int* count;
    int first, inputs;  // its reaches
    int all;     // no threshold follows, so that every candidate is a change; else the mask is cleared for `commit`
    int behind;  // it reads the mask of a listing before it
    int H, W;
};

__device__ __forceinline__ int words_of(int width) { return (width + 31) / 32; }

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
#ifndef BYTES
#define BYTES 0  // whether a frame holds bytes, which become values on the way
#endif
#if BYTES
typedef u8 seen;
__device__ __forceinline__ value arrived(seen v) { return put((number)v); }
#else
typedef value seen;
__device__ __forceinline__ value arrived(seen v) { return v; }
#endif
struct __align__(PIXELS * sizeof(value)) Run { value of[PIXELS]; };
struct __align__(4 * sizeof(value)) Stored { value of[4]; };

extern "C" __global__ void sparsify(const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                    value* stored, int pitch, u32* mask, int* changed, int* computed, int C, int H,
                                    int W, number threshold) {
    wait_for_predecessor();
    const int words = words_of(W), n = blockIdx.y;
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS, y = i / (words * 32), x = i - y * words * 32;
    u32 moved = 0;  // a bit of each pixel
    if (y < H && x < W) {
        const seen* fresh = frame + n * sn + y * sh + x * sw;
        value* pixel = stored + ((size_t)(n * H + y) * W + x) * pitch;
#if CHANNELS
        Run runs[CHANNELS];
        Stored kept[PIXELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) runs[c] = *(const Run*)(fresh + c * sc);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) kept[p] = *(const Stored*)(pixel + p * 4);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
            bool other = false;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                other |= differs(runs[c].of[p], kept[p].of[c], threshold);
                kept[p].of[c] = runs[c].of[p];
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
#pragma unroll
    for (int p = 0; p < PIXELS; p++) count_up(changed + n, moved >> p & 1);
    if (i == 0) atomicAdd(computed, H * W);
}

// The 32 bits of a row of `words` words from column `first` on, wherever that is.
__device__ __forceinline__ u32 bits_from(const u32* row, int words, int first) {
    const int at = first >> 5;
    const u32 low = (u32)at < (u32)words ? row[at] : 0, high = (u32)(at + 1) < (u32)words ? row[at + 1] : 0;
    return __funnelshift_r(low, high, first & 31);
}

__device__ __forceinline__ bool is_set(const u32* row, int col) { return row[col >> 5] >> (col & 31) & 1; }

// Whether an output pixel reads a change. Pixel by pixel: for reaches that `candidates` below has no words for.
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
    const bool by_words = r.kind == WINDOW && r.dw == 1 && r.kw <= 32;
    for (int i = 0; i < r.kh; i++) {
        int row = r.kind == WINDOW ? y * r.sh - r.ph + i * r.dh : y + r.ph - i * r.dh;
        if (r.kind == TRANSPOSED) {
            if (row < 0 || row % r.sh) continue;
            row /= r.sh;
        }
        if ((u32)row >= (u32)r.H) continue;
        if (by_words) {
            if (bits_from(mask + row * words, words, x * r.sw - r.pw) << (32 - r.kw)) return true;
            continue;
        }
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
    return r.kind == PIXEL || (r.kind == WINDOW && r.dw == 1 && r.kw <= 32 && r.sw <= 2);
}

// Every second bit, from the first on.
__device__ __forceinline__ u32 even(u32 bits) {
    bits &= 0x55555555;
    bits = (bits | bits >> 1) & 0x33333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff;
    return (bits | bits >> 8) & 0xffff;
}

// The output pixels x .. x + 31 of a row that read a change; x is a multiple of 32.
__device__ __forceinline__ u32 candidates(const Reach& r, int n, int y, int x) {
    const int words = words_of(r.W);
    const u32* mask = r.mask + (size_t)n * r.H * words;
    if (r.kind == PIXEL) return mask[y * words + x / 32];
    const int first = x * r.sw - r.pw, at = first >> 5;
    u32 seen[4] = {};  // what the window's rows hold from word `at` on
    for (int i = 0; i < r.kh; i++) {
        const int row = y * r.sh - r.ph + i * r.dh;
        if ((u32)row >= (u32)r.H) continue;
#pragma unroll
        for (int k = 0; k < 4; k++)
            if ((u32)(at + k) < (u32)words) seen[k] |= mask[row * words + at + k];
    }
    u32 from[3], out[2] = {};
#pragma unroll
    for (int k = 0; k < 3; k++) from[k] = __funnelshift_r(seen[k], seen[k + 1], first & 31);
    for (int j = 0; j < r.kw; j++) {
        out[0] |= __funnelshift_r(from[0], from[1], j);
        out[1] |= __funnelshift_r(from[1], from[2], j);
    }
    return r.sw == 1 ? out[0] : even(out[0]) | even(out[1]) << 16;
}

#ifndef SHARERS
#define SHARERS 1  // blocks that share the masks of a stream; more than one from compute capability 9.0 on
#endif
#if SHARERS > 1 && __CUDA_ARCH__ >= 900
#define CLUSTER __cluster_dims__(SHARERS, 1, 1)
// Everyone who shares a stream is here, and sees what the others wrote.
__device__ __forceinline__ void meet() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#else
#define CLUSTER
__device__ __forceinline__ void meet() { __syncthreads(); }
#endif

// The candidates of several steps, one after the other: at threshold 0 masks depend on masks alone, so those of a whole
// network are known before its first convolution. blockIdx.y is a stream, a warp 32 words of its mask at a time.
//
// table: `listings` Listings, then their Reaches, `longs` words of 8 bytes together. A list's order is the hardware's:
// no pixel's value may depend on its place in it.
extern "C" __global__ void CLUSTER __launch_bounds__(1024) spread(const u64* table, int longs, int listings) {
    extern __shared__ u64 shared[];
    for (int i = threadIdx.x; i < longs; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
    wait_for_predecessor();
    const Reach* reaches = (const Reach*)((const Listing*)shared + listings);
    const int n = blockIdx.y, lane = threadIdx.x & 31;
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, warps = gridDim.x * blockDim.x >> 5;
    for (int k = 0; k < listings; k++) {
        const Listing& to = ((const Listing*)shared)[k];
        if (to.behind) meet();
        const int row_words = words_of(to.W), words = to.H * row_words;
        for (int first = warp * 32; first < words; first += warps * 32) {
            const int mine = first + lane, y = mine / row_words, x = (mine - y * row_words) * 32;
            u32 word = 0;
            for (int i = to.first; i < to.first + to.inputs; i++) {
                const Reach& r = reaches[i];
                const int changed = r.changed[n];
                if (changed == 0) continue;
                if (r.kind == EVERYTHING || changed == r.H * r.W) {
                    word = ~0u;
                } else if (has_words(r)) {
                    if (mine < words) word |= candidates(r, n, y, x);
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
            if (mine < words) to.mask[(size_t)n * words + mine] = to.all ? word : 0;
            int before = __popc(word);  // candidates of the lanes up to this one
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                const int others = __shfl_up_sync(~0u, before, lanes);
                if (lane >= lanes) before += others;
            }
            const int total = __shfl_sync(~0u, before, 31);
            if (total == 0) continue;
            int start = 0;
            if (lane == 0) {
                start = atomicAdd(to.count, total);
                if (to.all) atomicAdd(to.changed + n, total);
            }
            start = __shfl_sync(~0u, start, 0) + before - __popc(word);
            const int place = (n * to.H + y) * to.W + x;
            for (u32 left = __ballot_sync(~0u, word != 0); left; left &= left - 1) {  // a word at a time, a lane a pixel
                const int other = __ffs(left) - 1;
                const u32 bits = __shfl_sync(~0u, word, other);
                const int to_place = __shfl_sync(~0u, start, other), of_place = __shfl_sync(~0u, place, other);
                if (bits >> lane & 1) to.list[to_place + __popc(bits & ((1u << lane) - 1))] = of_place + lane;
            }
        }
    }
}

// Store the listed pixels of `fresh` (any strides) that changed, and mark them. A warp is a pixel.
// threshold < 0: all of them changed and are marked already.
extern "C" __global__ void commit(const value* fresh, long long sn, long long sc, long long sh, long long sw,
                                  value* stored, int pitch, u32* mask, int* changed, const int* list,
                                  const int* count, int C, int H, int W, number threshold) {
    wait_for_predecessor();
    const int lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5, total = *count;
    int marked = 0, stream = 0;  // counted for one stream at a time: most of a list lies in few
    for (int w = (blockIdx.x * blockDim.x + threadIdx.x) >> 5; w < total; w += warps) {
        const int place = list[w], n = place / (H * W), y = (place - n * H * W) / W, x = place - (n * H + y) * W;
        const value* from = fresh + n * sn + y * sh + x * sw;
        value* pixel = stored + (size_t)place * pitch;
        if (threshold >= 0) {
            bool moved = false;
            for (int c = lane; c < C; c += 32) moved |= differs(from[c * sc], pixel[c], threshold);
            if (!__any_sync(~0u, moved)) continue;
            if (n != stream && lane == 0 && marked) atomicAdd(changed + stream, marked);
            if (n != stream) marked = 0;
            stream = n, marked++;
            if (lane == 0) atomicOr(mask + (n * H + y) * words_of(W) + x / 32, 1u << (x & 31));
        }
        for (int c = lane; c < C; c += 32) pixel[c] = from[c * sc];
    }
    if (lane == 0 && marked) atomicAdd(changed + stream, marked);
}

// The counts of a frame, for every edge: counted[2 * edge] pixels were computed and counted[2 * edge + 1] changed.
// computed: the counter of each edge; changed: the first of its `streams` counters.
extern "C" __global__ void tally(const int* counters, const int* __restrict__ computed,
                                 const int* __restrict__ changed, const int* __restrict__ streams, long long* counted,
                                 int edges) {
    wait_for_predecessor();
    const int edge = blockIdx.x * blockDim.x + threadIdx.x;
    if (edge >= edges) return;
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += counters[changed[edge] + n];
    counted[2 * edge] = counters[computed[edge]];
    counted[2 * edge + 1] = sum;
}
