// A tile of a frame in shared memory: what the ROWS x 32 pixels of a block changed by, and those around them, of which
// `look` of gate.cu averages boxes.
//
// A tile whose differences are all small has no box that is not; and one whose sums down the columns are, none across.
#include "gate_boxes.cuh"
#define FOURS_AROUND ((2 * AROUND * WIDE + 2 * BESIDE * ROWS) / 4)

struct Tile {
    Numbers change[CHANNELS][HIGH * WIDE / 4];
    Numbers sums[CHANNELS][ROWS * WIDE / 4];  // down the columns
    // A bit of each of the block's pixels: whether it differs at all, and by more than `peak`; and whether a box around
    // it says that it changed, or that it is taken along.
    u32 other[ROWS], beyond_peak[ROWS], beyond_limit[ROWS], beyond_weak[ROWS];

    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < ROWS; i += blockDim.x)
            other[i] = beyond_peak[i] = beyond_limit[i] = beyond_weak[i] = 0;
    }
    __device__ __forceinline__ const number* changes(int j, int row, int col) const {
        return (const number*)change[j] + row * WIDE + col;
    }
};

// Where the i-th four pixels of those around a block's own lie in its tile: above, below, then beside it.
__device__ __forceinline__ void place_around(int i, int& row, int& col) {
    const int beside = i - 2 * AROUND * WIDE / 4, in_row = beside % (BESIDE / 2);
    row = i / (WIDE / 4), col = i % (WIDE / 4) * 4;
    if (row >= AROUND) row += ROWS;
    if (beside >= 0) row = AROUND + beside / (BESIDE / 2), col = in_row * 4 + (in_row < BESIDE / 4 ? 0 : 32);
}

// Channels c .. c + CHANNELS - 1 of the frame against what is stored: the block's own pixels, which are marked, then
// those around them. The largest change of what a thread has. To ask for both at once gave nothing (H100, 143 us of
// 1080p, batch 8, as without; with the registers for it 227 to 265 where rows have odd lengths).
__device__ __forceinline__ Rank compare_frame(Tile& tile, const View& view, int c, number peak) {
    Rank highest = 0;
    for (int i = threadIdx.x; i < ROWS * 8; i += blockDim.x) {
        const int row = i / 8, col = i % 8 * 4;
        Numbers by[CHANNELS] = {};
        Rank of_pixel[4] = {};
        u32 differ = 0, beyond = 0;
        view.compare(row, col, c, by, differ, of_pixel);
#pragma unroll
        for (int p = 0; p < 4; p++) beyond |= (u32)(of_pixel[p] > rank_of(peak)) << p, highest = max(highest, of_pixel[p]);
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) tile.change[j][((row + AROUND) * WIDE + BESIDE + col) / 4] = by[j];
        differ = row_of_eight(differ), beyond = row_of_eight(beyond);
        if (i % 8 == 0) tile.other[row] |= differ, tile.beyond_peak[row] |= beyond;
    }
    for (int i = threadIdx.x; i < FOURS_AROUND; i += blockDim.x) {
        int row, col;
        place_around(i, row, col);
        Numbers by[CHANNELS] = {};
        Rank of_pixel[4] = {};
        u32 differ = 0;
        view.compare(row - AROUND, col - BESIDE, c, by, differ, of_pixel);
#pragma unroll
        for (int p = 0; p < 4; p++) highest = max(highest, of_pixel[p]);
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) tile.change[j][(row * WIDE + col) / 4] = by[j];
    }
    return highest;
}

// The same for the mean over frames, against what it was.
__device__ __forceinline__ Rank compare_means(Tile& tile, const View& view, int c, const number* mean, const number* then) {
    Rank highest = 0;
    for (int i = threadIdx.x; i < HIGH * WIDE / 4; i += blockDim.x) {
        const int y = view.top - AROUND + i / (WIDE / 4), x = view.left - BESIDE + i % (WIDE / 4) * 4;
        const bool inside = (u32)y < (u32)view.H && (u32)x < (u32)view.W;
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            const size_t row = view.row_of_plane(c + j, y);
            const Numbers now = four(mean + row, x, view.W, inside), before = four(then + row, x, view.W, inside);
            Numbers by;
#pragma unroll
            for (int p = 0; p < 4; p++) by.of[p] = now.of[p] - before.of[p], highest = max(highest, rank_of(by.of[p]));
            tile.change[j][i] = by;
        }
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
