// The boxes of a gate that smooths, where `look` (gate_look.cuh) found that one may have moved: what the pixels of a tile
// and those around them changed by, in shared memory, and what the means of boxes of it say.
//
// A tile whose sums down the columns are all small has no box that is not: that is how most noise ends here.
#include "gate_pixel.cuh"
#include "gate_boxes.cuh"

#ifndef ROWS
#define ROWS 32  // of a tile's pixels, 32 in each
#endif
#define TILES 8  // that a block asks about at once; far apart, as what moves is not

struct Tile {
    Numbers change[CHANNELS][HIGH * WIDE / 4];
    Numbers sums[CHANNELS][ROWS * WIDE / 4];  // down the columns
    u32 beyond_limit[ROWS], beyond_weak[ROWS];  // a bit a pixel: the box around it says that it changed, is taken along

    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < ROWS; i += blockDim.x) beyond_limit[i] = beyond_weak[i] = 0;
    }
    __device__ __forceinline__ const number* changes(int j, int row, int col) const {
        return (const number*)change[j] + row * WIDE + col;
    }
};

// Where a tile lies.
struct View {
    int C, H, W, n, top, left;
};

// What its pixels and those around them changed by, 0 beside the map: `change` says it of channel c + j of pixel (y, x).
// The highest of what a thread has.
template <class Change>
__device__ __forceinline__ Rank fill(Tile& tile, const View& view, Change change) {
    Rank highest = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < HIGH * WIDE; i += blockDim.x) {
        const int y = view.top - AROUND + i / WIDE, x = view.left - BESIDE + i % WIDE;
        number by[CHANNELS] = {};
        if ((u32)y < (u32)view.H && (u32)x < (u32)view.W) change(y, x, by);
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) ((number*)tile.change[j])[i] = by[j], highest = max(highest, rank_of(by[j]));
    }
    return highest;
}

// Sums down the columns; whether any of them is as large as a mean above `quiet` would make it.
__device__ __forceinline__ bool sum_down(Tile& tile, const View& view, number quiet) {
    bool large = false;
    for (int i = threadIdx.x; i < CHANNELS * (WIDE / 2) * (ROWS / 8); i += blockDim.x) {
        const int col = i % (WIDE / 2) * 2, j = i / (WIDE / 2) % CHANNELS, row = i / (WIDE / 2) / CHANNELS * 8;
        number v[2][8 + 2 * AROUND], down[2][8];
#pragma unroll
        for (int k = 0; k < 8 + 2 * AROUND; k++) {
            const Two two = *(const Two*)tile.changes(j, row + k, col);
            v[0][k] = two.of[0], v[1][k] = two.of[1];
        }
        box_sums(v[0], down[0]), box_sums(v[1], down[1]);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            *(Two*)((number*)tile.sums[j] + (row + k) * WIDE + col) = {down[0][k], down[1][k]};
            const number most = quiet * (number)inside_of(view.top + row + k, view.H);
            large |= !(magnitude(down[0][k]) <= most) || !(magnitude(down[1][k]) <= most);
        }
    }
    return large;
}

// What a pixel's box is compared with: its mean at least, and for pixels that are taken along. root: by how much the
// means of the frame itself are divided before; most: what no value is larger than.
struct Levels {
    number limit, weak, root, most;
};

// Sums across, and what they say of four pixels of each thread. least: of pixel k of them, what it must exceed.
template <class Least>
__device__ __forceinline__ void judge(Tile& tile, const View& view, const Levels& levels, Least least_of) {
    const Sides of_weak(levels.weak * levels.root, levels.most);
    for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {
        const int row = i / 8, col = i % 8 * 4, y = view.top + row, x = view.left + col;
        if (y >= view.H || x >= view.W) continue;
        number least[4], count[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            least[k] = least_of(y, x + k), count[k] = (number)(inside_of(y, view.H) * inside_of(x + k, view.W));
        u32 over = 0, under = 15, over_weak = 0, under_weak = 15;  // bits of what is certain
        for (int j = 0; j < CHANNELS; j++) {
            number v[4 + 2 * BESIDE], across[4];
#pragma unroll
            for (int k = 0; k < 1 + BESIDE / 2; k++) {
                const Numbers read = tile.sums[j][(row * WIDE + col) / 4 + k];
#pragma unroll
                for (int p = 0; p < 4; p++) v[4 * k + p] = read.of[p];
            }
            box_sums(v + BESIDE - AROUND, across);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const Sides sides(least[k] * levels.root, levels.most);
                sides.tell(magnitude(across[k]), count[k], k, over, under);
                if (WEAK) of_weak.tell(magnitude(across[k]), count[k], k, over_weak, under_weak);
            }
        }
        const u32 in_row = ~0u >> max(0, 32 - (view.W - x)) & 15;
        u32 open = in_row & (~(over | under) | (WEAK ? ~(over_weak | under_weak) : 0));
        for (; open; open &= open - 1) {
            const int k = __ffs(open) - 1;
            number most = 0;
            for (int j = 0; j < CHANNELS; j++)
                most = larger(most, box_mean(tile.changes(j, row, BESIDE - AROUND + col + k), y, x + k, view.H, view.W));
            if (RECENT > 1) most /= levels.root;
            over = over & ~(1u << k) | (u32) !(most <= least[k]) << k;
            over_weak = over_weak & ~(1u << k) | (u32) !(most <= levels.weak) << k;
        }
        if (over & in_row) atomicOr(tile.beyond_limit + row, (over & in_row) << col);
        if (WEAK && over_weak & in_row) atomicOr(tile.beyond_weak + row, (over_weak & in_row) << col);
    }
}

// Whether a box around a pixel of a tile can have a mean above `quiet`: the cells that it may reach hold all of it. All
// lanes of a warp call it. Sums of halves are off by 0.3 %, others, and gate.py's, by less.
__device__ __forceinline__ bool may_move(const number* cells, const View& view, number quiet) {
    const int down = cells_of(view.H), across = cells_of(view.W), reach = (AROUND + CELL - 1) / CELL;
    bool may = false;
    for (int i = threadIdx.x & 31; i < ROWS / CELL * (32 / CELL); i += 32) {
        const int row = view.top / CELL + i / (32 / CELL), col = view.left / CELL + i % (32 / CELL);
        if (row >= down || col >= across) continue;
        number sum = 0;
#pragma unroll
        for (int y = row - reach; y <= row + reach; y++)
#pragma unroll
            for (int x = col - reach; x <= col + reach; x++)
                if ((u32)y < (u32)down && (u32)x < (u32)across) sum += cells[((size_t)view.n * down + y) * across + x];
        const int last_y = min(row * CELL + CELL, view.H) - 1, last_x = min(col * CELL + CELL, view.W) - 1;
        const int high = min(inside_of(row * CELL, view.H), inside_of(last_y, view.H));  // of a box around one of them
        const int wide = min(inside_of(col * CELL, view.W), inside_of(last_x, view.W));
        may |= !(sum <= quiet * (number)(high * wide) * (number).99 - (number)1e-36);
    }
    return __any_sync(~0u, may);
}

// moved: what a box says is added. near: those that differ of what is taken along, with WEAK. The others are as `look` has
// them. Frames themselves are compared at `root` thresholds, the means over them at one.
extern "C" __global__ void __launch_bounds__(256)
    boxes(const seen* frame, const u64* at, long long sn, long long sc, long long sh, long long sw, const value* stored,
          int pitch, const int* awake, u32* moved, u32* near, const u32* other, const number* cells, const number* noise,
          const number* mean, const number* then, const number* frames, int C, int H, int W, number limit, number peak,
          number weak, number deviations, number root) {
    __shared__ Tile tile;
    __shared__ u32 may;
    wait_for_predecessor();
    frame = found(frame, at);
    const int n = blockIdx.y, words = words_of(W), tiles = words * ((H + ROWS - 1) / ROWS);
    if (!awake[n]) return;
    const bool lasts = RECENT > 1 && frames[n] + 1 > RECENT;
    const auto view_of = [&](int k) {
        const int place = blockIdx.x + k * gridDim.x;
        return View{C, H, W, n, place / words * ROWS, place % words * 32};
    };
    if (threadIdx.x == 0) may = 0;
    __syncthreads();
    for (int k = threadIdx.x / 32; k < TILES; k += blockDim.x / 32)
        if ((int)(blockIdx.x + k * gridDim.x) < tiles && may_move(cells, view_of(k), WEAK ? weak : limit))
            if (threadIdx.x % 32 == 0) atomicOr(&may, 1u << k);
    __syncthreads();
    int turn = 0;
    for (u32 left = may; left; left &= left - 1) {
        const View view = view_of(__ffs(left) - 1);
        tile.clear();
        for (int c = 0; c < (lasts ? 2 * C : C); c += CHANNELS) {
            const bool of_frame = c < C;
            const Rank of_thread = of_frame ? fill(tile, view, [&](int y, int x, number (&by)[CHANNELS]) {
                const Pixel pixel(true, frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y, x);
#pragma unroll
                for (int j = 0; j < CHANNELS; j++) by[j] = pixel.change(c + j);
            }) : fill(tile, view, [&](int y, int x, number (&by)[CHANNELS]) {
                const size_t place = ((size_t)(n * C + c - C) * H + y) * W + x;
#pragma unroll
                for (int j = 0; j < CHANNELS; j++) by[j] = mean[place + (size_t)j * H * W] - then[place + (size_t)j * H * W];
            });
            const Levels levels{limit, weak, of_frame ? root : 1, at_rank(highest_of_block(of_thread, turn++))};
            const number quiet = Sides((WEAK ? weak : limit) * levels.root, levels.most).below;
            if (levels.most <= quiet || __syncthreads_count(sum_down(tile, view, quiet)) == 0) continue;
            judge(tile, view, levels, [&](int y, int x) {
#if NOISE
                if (x < W) return min(max(noise[(size_t)(n * H + y) * W + x] * deviations, limit), peak);
#endif
                return limit;
            });
            __syncthreads();
        }
        __syncthreads();
        for (int row = threadIdx.x; row < ROWS && view.top + row < H; row += blockDim.x) {
            const size_t word = (size_t)(n * H + view.top + row) * words + view.left / 32;
            if (tile.beyond_limit[row]) moved[word] |= tile.beyond_limit[row];
            if (WEAK) near[word] = other[word] & tile.beyond_weak[row];
        }
        __syncthreads();
    }
}
