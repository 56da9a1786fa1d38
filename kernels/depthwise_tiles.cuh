// The tiles of depthwise.cu. A block brings the pixels that a tile's listed pixels read into shared memory, and sums
// them up while the next tile is copied. A pixel has SLOT channels there, those of LANES threads; with COMPARE it has
// all, and tiles have fewer rows. A thread sums up RUN pixels of a row together if one of them is listed.
constexpr int SLOT = COMPARE ? VOTERS * WIDTH : 32, LANES = SLOT / WIDTH, ROW_PART = RUN;
#include "staged.cuh"

// Neighbouring runs read RUN * SW columns apart, in different banks.
__device__ __forceinline__ int piece_at(int col, int piece) {
    return (col ^ (col / (RUN * SW) & 1)) * PIECES + piece;
}

struct Shared : Tiles {
    u8 order[2][32];  // of a tile's runs: even ones and odd ones
};

// v: the sums of RUN pixels side by side; begin: the first value that they read; odd_run: whether it is an odd run of a
// row.
__device__ __forceinline__ void sum_up(number (&v)[RUN][WIDTH], const number (&held)[TAPS][WIDTH], const value* begin,
                                       int odd_run) {
    const value *evens = begin + odd_run * SLOT, *odds = begin - odd_run * SLOT;  // as `slot_of` has them
#pragma unroll
    for (int i = 0; i < KH; i++) {
        constexpr int COLS = (RUN - 1) * SW + KW;
        Pack read[COLS];
#pragma unroll
        for (int k = 0; k < COLS; k++) {
            const bool other = k >= RUN * SW, odd = k % 2;
            const value* from = odd == other ? evens : odds;
            read[k] = *(const Pack*)(from + (i * IN_W + (other ? k ^ 1 : k)) * SLOT);
        }
#pragma unroll
        for (int k = 0; k < KW; k++)
#pragma unroll
            for (int p = 0; p < RUN; p++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[p][j] += get(read[p * SW + k].of[j]) * held[i * KW + k][j];
    }
}

// listed: a bit of each pixel, as in kernels/masks.cu. A block keeps to SLOT channels, whose weights its threads hold.
// early: see `walk`.
__device__ __forceinline__ void tiles(Shared& shared, const Head& h, const Operand* operands, value* out, int pitch,
                                      int channels, const u32* listed, int OH, int OW, int early, const Marks& marks) {
    const int chunks = (channels + SLOT - 1) / SLOT, thread = threadIdx.x;
    const int lane = thread % LANES, odd_run = thread / LANES % 2, group = thread / LANES / 2, groups = THREADS / LANES / 2;
    const int grid = gridDim.x, teams = max(1, grid / chunks), team = blockIdx.x / chunks;
    if (team >= teams) return;
    for (int chunk = blockIdx.x % chunks; chunk < chunks; chunk += max(grid, chunks)) {
        const int first = chunk * SLOT, c = first + lane * WIDTH;
        const bool has_channels = first + thread % PIECES * VECTOR < h.pitch;
        number held[TAPS][WIDTH] = {}, bias[WIDTH] = {};
        if (c < channels) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) bias[j] = h.bias[c + j];
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) fetch(held[tap], h.weight + (size_t)tap * h.pitch + c);
        }
        const auto ready = [&](int k) {
            const u32 runs = shared.runs[k], alike = runs & 0x55555555u << thread % 2;
            if (thread < 32 && runs >> thread & 1)
                shared.order[thread % 2][__popc(alike & ((1u << thread) - 1))] = (u8)thread;
        };
        const auto sum = [&](int k, int n, int top, int left) {
            const int mine = COMPARE || c < channels ? __popc(shared.runs[k] & 0x55555555u << odd_run) : 0;
            for (int i = group; i < mine; i += groups) {
                const int run = shared.order[odd_run][i], row = run / RUNS, col = run % RUNS * RUN;
                number v[RUN][WIDTH];
#pragma unroll
                for (int p = 0; p < RUN; p++)
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) v[p][j] = bias[j];
                const u32 wanted = shared.rows[k][row] >> col;
                const int place = (n * OH + top + row) * OW + left + col;
                const auto to = [&](int p) {
                    return COMPARE && c >= channels ? nullptr : out + (size_t)(place + p) * pitch + c;
                };
                Pack stored[RUN];
#pragma unroll
                for (int p = 0; p < RUN; p++) stored[p] = wanted >> p & 1 ? before(to(p)) : Pack{};
                const value* staged = (const value*)shared.staged[k % 2];
                sum_up(v, held, staged + (row * IN_W + col) * SW * SLOT + lane * WIDTH, odd_run);
#pragma unroll
                for (int p = 0; p < RUN; p++)
                    if (wanted >> p & 1) keep(v[p], operands, to(p), stored[p], channels, place + p, n, c, OW, marks);
            }
        };
        walk(shared, h, first, has_channels, listed, team, teams, OH, OW, early, ready, sum);
    }
}
