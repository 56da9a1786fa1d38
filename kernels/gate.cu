// A gate (deltaconvert/gate.py) in two launches: what moved, and what of a frame is stored.
//
// Between them lie three planes of bits, each as a mask in masks.cu: pixels that moved, pixels that may come along with
// one, and pixels that are stored whatever is near. Only a pixel whose bits differ is ever stored.
#include "common.cuh"

#ifndef RADIUS
#define RADIUS 0  // of the square whose differences are averaged
#endif
#define ROWS 16                     // of a block, which is a word wide
#define WIDE (32 + 2 * RADIUS)
#define HIGH (ROWS + 2 * RADIUS)
#define TILE 16                     // of a refresh

__device__ __forceinline__ bool beyond(number v, number limit) { return !((v < 0 ? -v : v) <= limit); }
__device__ __forceinline__ int within(int middle, int end) {
    return min(middle + RADIUS, end - 1) - max(middle - RADIUS, 0) + 1;
}

// frame: any strides; stored: N H W C; planes: 3 x N x H x words. turn: of each tile, its frame of `refresh`, or none.
extern "C" __global__ void __launch_bounds__(256)
    look(const value* frame, long long sn, long long sc, long long sh, long long sw, const value* stored, int pitch,
         u32* planes, const long long* turn, const long long* tick, int refresh, int N, int C, int H, int W,
         number limit, number peak, number weak) {
    __shared__ number moves[HIGH * WIDE];
    __shared__ number rows[HIGH * 32];
    wait_for_predecessor();
    const int words = (W + 31) / 32, n = blockIdx.y, word = blockIdx.x % words, first = blockIdx.x / words * ROWS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, x = word * 32 + lane;
    u32 moved = 0, faint = 0, other = 0;  // a bit of each row
    for (int c = 0; c < C; c++) {
        const value* fresh = frame + n * sn + c * sc;
        const value* kept = stored + (size_t)n * H * W * pitch + c;
        for (int i = threadIdx.x; i < HIGH * WIDE; i += blockDim.x) {
            const int row = first - RADIUS + i / WIDE, col = word * 32 - RADIUS + i % WIDE;
            const bool inside = (u32)row < (u32)H && (u32)col < (u32)W;
            moves[i] = inside ? get(put(get(fresh[row * sh + col * sw]) - get(kept[((size_t)row * W + col) * pitch]))) : 0;
        }
        __syncthreads();
        for (int i = threadIdx.x; RADIUS && i < HIGH * 32; i += blockDim.x) {
            number sum = 0;
            for (int k = 0; k <= 2 * RADIUS; k++) sum += moves[i / 32 * WIDE + i % 32 + k];
            rows[i] = sum;
        }
        if (RADIUS) __syncthreads();
        for (int r = warp; r < ROWS; r += warps) {
            const int y = first + r;
            if (y >= H || x >= W) continue;
            const number move = moves[(r + RADIUS) * WIDE + lane + RADIUS];
            number mean = move;
            if (RADIUS) {
                mean = 0;
                for (int k = 0; k <= 2 * RADIUS; k++) mean += rows[(r + k) * 32 + lane];
                mean /= within(y, H) * within(x, W);
            }
            moved |= (u32)(beyond(mean, limit) || beyond(move, peak)) << r;
            faint |= (u32)(weak <= 0 || beyond(mean, weak)) << r;
            const bits of_fresh = bits_of(fresh[y * sh + x * sw]), of_kept = bits_of(kept[((size_t)y * W + x) * pitch]);
            other |= (u32)(of_fresh != of_kept) << r;
        }
        __syncthreads();
    }
    for (int r = warp; r < ROWS; r += warps) {
        const int y = first + r, tiles = (W + TILE - 1) / TILE;
        const bool due = refresh && y < H && x < W && turn[y / TILE * tiles + x / TILE] == *tick % refresh;
        const u32 all = __ballot_sync(~0u, moved >> r & 1);
        const u32 along = __ballot_sync(~0u, (faint & other) >> r & 1);
        const u32 alone = __ballot_sync(~0u, other >> r & 1 && (moved >> r & 1 || due));
        if (lane == 0 && y < H) {
            u32* plane = planes + (size_t)(n * H + y) * words + word;
            plane[0] = all, plane[(size_t)N * H * words] = along, plane[(size_t)2 * N * H * words] = alone;
        }
    }
}

// A warp is a word of a mask: it looks for what moved up to `dilate` away, stores, and marks.
extern "C" __global__ void __launch_bounds__(256)
    take(const value* frame, long long sn, long long sc, long long sh, long long sw, value* stored, int pitch,
         const u32* planes, int dilate, u32* mask, int* changed, int* computed, int N, int C, int H, int W) {
    wait_for_predecessor();
    const int words = (W + 31) / 32, n = blockIdx.y, word = blockIdx.x % words, first = blockIdx.x / words * ROWS;
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5, x = word * 32 + lane;
    const size_t plane = (size_t)N * H * words;
    int ones = 0;
    for (int r = threadIdx.x >> 5; r < ROWS; r += warps) {  // as many rounds in each warp
        const int y = first + r;
        bool taken = false;
        if (y < H) {
            const size_t at = (size_t)(n * H + y) * words + word;
            taken = planes[2 * plane + at] >> lane & 1;
            if (dilate) {
                u32 near[5] = {0, 0, 0, 0, 0};  // the words beside this one, in all rows that count
                for (int row = max(y - dilate, 0) + lane; row <= min(y + dilate, H - 1); row += 32)
#pragma unroll
                    for (int j = 0; j < 5; j++)
                        if ((u32)(word + j - 2) < (u32)words)
                            near[j] |= planes[(size_t)(n * H + row) * words + word + j - 2];
                bool found = false;
#pragma unroll
                for (int j = 0; j < 5; j++) {
                    for (int lanes = 16; lanes > 0; lanes /= 2) near[j] |= __shfl_xor_sync(~0u, near[j], lanes);
                    const int low = max(lane - dilate + 32 * (2 - j), 0), high = min(lane + dilate + 32 * (2 - j), 31);
                    if (low <= high) found |= (near[j] & ~0u << low & ~0u >> (31 - high)) != 0;
                }
                taken |= found && planes[plane + at] >> lane & 1;
            }
            if (taken) {
                value* pixel = stored + ((size_t)(n * H + y) * W + x) * pitch;
                for (int c = 0; c < C; c++) pixel[c] = frame[n * sn + c * sc + y * sh + x * sw];
            }
            const u32 all = __ballot_sync(~0u, taken);
            if (lane == 0) mask[at] = all;
        }
        ones += __syncthreads_count(taken);
    }
    if (threadIdx.x == 0 && ones) atomicAdd(changed + n, ones);
    if (threadIdx.x == 0 && blockIdx.x == 0) atomicAdd(computed, H * W);
}
