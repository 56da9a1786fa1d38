// Masks of changed pixels: one byte a pixel, 0 or 1, N x H x W; and lists of them, which the computing kernels walk.
//
// `changed` holds the number of changed pixels of each stream, 0 before a frame. A stream in which nothing changed
// costs no look at its mask, and one in which everything did is a mask of ones, whatever the operator: that is all
// that a first frame is (deltaconvert/reach.py).
#include "common.cuh"

enum { PIXEL, WINDOW, TRANSPOSED, SOURCES, EVERYTHING };

// Which pixels of one input an output pixel reads; deltaconvert.reach, packed by backends/cuda.py.
struct Reach {
    const u8* mask;
    const int* changed;
    const int* rows;  // SOURCES: OH x row_taps, OW x col_taps
    const int* cols;
    int kind, H, W, kh, kw, sh, sw, ph, pw, dh, dw, row_taps, col_taps, unused;
};

// Dense values -> delta: compare with the stored map, store, mark.   stored: N H W C; frame: any strides.
// A thread is PIXELS pixels of a row, blockIdx.y a stream.
//
// Nearly every pixel stands still, so what counts is to have many loads on their way: the pixels of a row lie side by
// side in the frame, and a stored one is one load.
#ifndef PIXELS
#define PIXELS 1
#endif
#ifndef CHANNELS
#define CHANNELS 0  // known when the kernel is compiled where there are few; else 0
#endif
struct __align__(PIXELS * sizeof(value)) Run { value of[PIXELS]; };
struct __align__(4 * sizeof(value)) Stored { value of[4]; };

extern "C" __global__ void sparsify(const value* __restrict__ frame, long long sn, long long sc, long long sh,
                                    long long sw, value* __restrict__ stored, int pitch, u8* __restrict__ mask,
                                    int* changed, int* computed, int C, int H, int W, number threshold) {
    const int n = blockIdx.y, i = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS, marked = n * H * W + i;
    bool moved[PIXELS] = {};
    if (i < H * W) {
        const value* fresh = frame + n * sn + i / W * sh + i % W * sw;
        value* pixel = stored + (size_t)marked * pitch;
#if CHANNELS
        Run runs[CHANNELS];
        Stored kept[PIXELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) runs[c] = *(const Run*)(fresh + c * sc);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) kept[p] = *(const Stored*)(pixel + p * 4);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                moved[p] |= differs(runs[c].of[p], kept[p].of[c], threshold);
                kept[p].of[c] = runs[c].of[p];
            }
            if (moved[p]) *(Stored*)(pixel + p * 4) = kept[p];
        }
#else
        for (int c = 0; c < C; c++) moved[0] |= differs(fresh[c * sc], pixel[c], threshold);
        if (moved[0])
            for (int c = 0; c < C; c++) pixel[c] = fresh[c * sc];
#endif
    }
#pragma unroll
    for (int p = 0; p < PIXELS; p++) {
        if (i < H * W) mask[marked + p] = moved[p];
        count_up(changed + n, moved[p]);
    }
    if (i == 0) atomicAdd(computed, H * W);
}

// Whether one of the bytes first .. first + count - 1 of a row of `width` bytes is set; count is at most 8, bytes beside
// the row are not looked at, and the words around it lie in memory.
__device__ __forceinline__ bool any_of(const u8* row, int first, int count, int width) {
    const int from = first < 0 ? 0 : first, to = first + count < width ? first + count : width;
    if (from >= to) return false;
    const u64 at = (u64)(row + from);
    const u64* words = (const u64*)(at & ~7ull);
    const int skip = at & 7;
    u64 bytes = words[0] >> skip * 8;
    if (skip + to - from > 8) bytes |= words[1] << (8 - skip) * 8;
    return bytes << (8 - (to - from)) * 8;
}

__device__ __forceinline__ bool reads_change(const Reach& r, int n, int y, int x) {
    const int changed = r.changed[n];
    if (changed == 0) return false;
    if (r.kind == EVERYTHING || changed == r.H * r.W) return true;
    const u8* mask = r.mask + (size_t)n * r.H * r.W;
    if (r.kind == PIXEL) return mask[y * r.W + x];
    if (r.kind == SOURCES) {
        for (int i = 0; i < r.row_taps; i++)
            for (int j = 0; j < r.col_taps; j++) {
                const int row = r.rows[y * r.row_taps + i], col = r.cols[x * r.col_taps + j];  // -1 outside
                if (row >= 0 && col >= 0 && mask[row * r.W + col]) return true;
            }
        return false;
    }
    const bool by_words = r.kind == WINDOW && r.dw == 1 && r.kw <= 8;
    for (int i = 0; i < r.kh; i++) {
        int row = r.kind == WINDOW ? y * r.sh - r.ph + i * r.dh : y + r.ph - i * r.dh;
        if (r.kind == TRANSPOSED) {
            if (row < 0 || row % r.sh) continue;
            row /= r.sh;
        }
        if ((u32)row >= (u32)r.H) continue;
        if (by_words) {
            if (any_of(mask + row * r.W, x * r.sw - r.pw, r.kw, r.W)) return true;
            continue;
        }
        for (int j = 0; j < r.kw; j++) {
            int col = r.kind == WINDOW ? x * r.sw - r.pw + j * r.dw : x + r.pw - j * r.dw;
            if (r.kind == TRANSPOSED) {
                if (col < 0 || col % r.sw) continue;
                col /= r.sw;
            }
            if ((u32)col < (u32)r.W && mask[row * r.W + col]) return true;
        }
    }
    return false;
}

// Whether the input may hold a change for one of the output pixels first .. last of a stream: false for most blocks, which
// then look at nothing else. A window's rows are read from end to end, or what one row of outputs sees of them.
__device__ __forceinline__ bool block_may_read_change(const Reach& r, int n, int first, int last, int OW) {
    const int changed = r.changed[n];
    if (changed == 0) return false;
    if (r.kind != WINDOW || changed == r.H * r.W) return true;
    const int top = first / OW, bottom = last / OW;
    int left = 0, right = r.W - 1;
    if (top == bottom) {
        left = max(left, first % OW * r.sw - r.pw);
        right = min(right, last % OW * r.sw - r.pw + (r.kw - 1) * r.dw);
    }
    const int from = max(0, top * r.sh - r.ph), to = min(r.H - 1, bottom * r.sh - r.ph + (r.kh - 1) * r.dh);
    const int words = (right - left) / 8 + 2;  // of a row, wherever its bytes begin
    bool any = false;
    for (int k = threadIdx.x; k < (to - from + 1) * words; k += blockDim.x) {
        const u64 start = (u64)(r.mask + ((size_t)n * r.H + from + k / words) * r.W);
        const u64* word = (const u64*)((start + left) & ~7ull) + k % words;
        if ((u64)word <= start + right) any |= *word != 0;
    }
    return __syncthreads_or(any);
}

// The candidates of a step: `list` of their places n * OH * OW + y * OW + x, `count` of them.   mask: N x OH x OW.
//
// all: no threshold follows, so that every candidate is a change: `mask` and `changed` are the output's. Else the mask
// is cleared for `commit`. The list's order is the hardware's: no pixel's value may depend on its place in it.
extern "C" __global__ void spread(const Reach* __restrict__ reaches, int inputs, u8* __restrict__ mask, int all,
                                  int* changed, int* __restrict__ list, int* count, int OH, int OW) {
    __shared__ int first[33];  // of each warp; the last is the block's
    const int n = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int begin = blockIdx.x * blockDim.x, last = min(begin + (int)blockDim.x, OH * OW) - 1;
    bool candidate = false;
    for (int k = 0; k < inputs; k++)
        if (block_may_read_change(reaches[k], n, begin, last, OW) && i <= last && !candidate)
            candidate = reads_change(reaches[k], n, i / OW, i % OW);
    if (i <= last) {
        mask[(size_t)n * OH * OW + i] = candidate && all;
    }
    const u32 ballot = __ballot_sync(~0u, candidate);
    if (lane == 0) first[warp] = __popc(ballot);
    __syncthreads();
    if (threadIdx.x == 0) {
        int total = 0;
        for (int w = 0; w < warps; w++) {
            const int mine = first[w];
            first[w] = total;
            total += mine;
        }
        first[32] = total ? atomicAdd(count, total) : 0;
        if (total && all) atomicAdd(changed + n, total);
    }
    __syncthreads();
    if (candidate) list[first[32] + first[warp] + __popc(ballot & ((1u << lane) - 1))] = n * OH * OW + i;
}

// Store the listed pixels of `fresh` (any strides) that changed, and mark them. A warp is a pixel.
// threshold < 0: all of them changed and are marked already.
extern "C" __global__ void commit(const value* __restrict__ fresh, long long sn, long long sc, long long sh,
                                  long long sw, value* __restrict__ stored, int pitch, u8* __restrict__ mask,
                                  int* changed, const int* __restrict__ list, const int* __restrict__ count, int C,
                                  int H, int W, number threshold) {
    const int lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5, total = *count;
    int marked = 0, stream = 0;  // counted for one stream at a time: most of a list lies in few
    for (int w = (blockIdx.x * blockDim.x + threadIdx.x) >> 5; w < total; w += warps) {
        const int place = list[w], n = place / (H * W), i = place % (H * W);
        const value* from = fresh + n * sn + i / W * sh + i % W * sw;
        value* pixel = stored + (size_t)place * pitch;
        if (threshold >= 0) {
            bool moved = false;
            for (int c = lane; c < C; c += 32) moved |= differs(from[c * sc], pixel[c], threshold);
            if (!__any_sync(~0u, moved)) continue;
            if (n != stream && lane == 0 && marked) atomicAdd(changed + stream, marked);
            if (n != stream) marked = 0;
            stream = n, marked++;
            if (lane == 0) mask[place] = 1;
        }
        for (int c = lane; c < C; c += 32) pixel[c] = from[c * sc];
    }
    if (lane == 0 && marked) atomicAdd(changed + stream, marked);
}

// The counts of a frame, for every edge: counted[2 * edge] pixels were computed and counted[2 * edge + 1] changed.
// computed: the counter of each edge; changed: the first of its `streams` counters.
extern "C" __global__ void tally(const int* __restrict__ counters, const int* __restrict__ computed,
                                 const int* __restrict__ changed, const int* __restrict__ streams,
                                 long long* __restrict__ counted, int edges) {
    const int edge = blockIdx.x * blockDim.x + threadIdx.x;
    if (edge >= edges) return;
    long long sum = 0;
    for (int n = 0; n < streams[edge]; n++) sum += counters[changed[edge] + n];
    counted[2 * edge] = counters[computed[edge]];
    counted[2 * edge + 1] = sum;
}
