// The means of boxes that `look` of gate.cu compares with a threshold, in a tile of shared memory: WIDE x HIGH values,
// those of a block's ROWS x 32 pixels and what is around them.
//
// A box's mean as gate.py takes it, in its order and with its roundings, is 30 instructions a value. Only on which side
// of a threshold it lies is asked. So it is summed up in whatever order is short, and taken as gate.py does where it
// lies too near to tell.
#define AROUND (SMOOTH / 2)
#define BESIDE ((AROUND + 3) / 4 * 4)  // columns to the left and right of a block's that it reads
#define WIDE (32 + 2 * BESIDE)
#define HIGH (ROWS + 2 * AROUND)

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

// The sums of RUN boxes of SMOOTH values in line, in any order: what all of them hold, and what is before and behind
// it.
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

// On which side of a limit the mean of a box lies, by a sum of its values, none of which is larger than `most`. Both
// sums are off by up to 2 * SMOOTH roundings of such values.
struct Sides {
    number above, below;  // NaN, which says nothing, where sums could be infinite
    __device__ __forceinline__ Sides(number limit, number most) {
        const number off = (4 * SMOOTH + 16) * (number)ROUNDING * (most + limit) + (number)1e-36;
        const bool fits = most < (number)1e30;
        above = fits ? limit + off : at_rank((Rank)-1), below = fits ? limit - off : at_rank((Rank)-1);
    }
    // Bit k of `over` is set where the mean of `count` values is larger, that of `under` cleared where it may be.
    __device__ __forceinline__ void tell(number sum, number count, int k, u32& over, u32& under) const {
        over |= (u32)(sum > above * count) << k;
        under &= ~((u32) !(sum <= below * count) << k);
    }
};
