// Tiles of conv_exact.cu: what its four warps multiply, and the copies into shared memory that they wait for.
//
// A multiply-add reads three registers, a pixel's value, a weight and a sum, and one register at a time from each of
// two banks; the value is kept for all channels. So a vector of weights holds two values of two channels each: a
// channel's weights lie in one bank, and its sums in the other.

// Lanes of a warp: what they read of shared memory at once is merged where lanes 1 or 2 apart read the same.
__device__ __forceinline__ int lane_m() { return (threadIdx.x >> 1 & 1) + (threadIdx.x >> 3 & 2); }
__device__ __forceinline__ int lane_n() { return (threadIdx.x & 1) + (threadIdx.x >> 1 & 6); }

// Volatile, so that compilers do not move these loads to right before they are needed.
__device__ __forceinline__ void read(float (&v)[4], u32 from) {
    asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(from));
}

// Of so many rows and channels, `across` warps side by side.
template <int rows, int channels, int across> struct Tile {
    static constexpr int M = rows, N = channels, DOWN = THREADS / 32 / across;
    static constexpr int TM = M / DOWN / 4, TN = N / across / 8, PACKS = TM * TN / 4;
    static constexpr int BATCH = PACKS / SPLIT < 8 ? PACKS / SPLIT : 8;  // packs that are finished together
    static_assert(TN % 4 == 0 && PACKS % (SPLIT * BATCH) == 0, "whole packs");

    struct Shared {
        char stages[STAGES][(M + N) * STEP];
        Head head;
        Corner corners[2][M];  // of this tile and the next one, in turns
        float4 parts[SPLIT > 1 ? PACKS : 1][SPLIT > 1 ? THREADS : 1];
    };
    typedef float Sums[TM][TN];
    // What a thread has read ahead: the weights of a chunk, which is four values of the sum, and its first row. A
    // vector of weights has two values of two channels.
    struct Ahead {
        float weights[TN / 2][2][4], row[4];
    };

    __device__ __forceinline__ static int warp_m() { return threadIdx.x / 32 % DOWN * (M / DOWN); }
    __device__ __forceinline__ static int warp_n() { return threadIdx.x / 32 / DOWN * (N / across); }
    // Where a chunk of a stage lies: a thread's rows, in turns, and both vectors of its pairs of channels.
    struct Places {
        u32 row[2], pair[2];
    };
    __device__ __forceinline__ static Places places_of(u32 stage, int chunk) {
        const u32 row = place_of(stage + warp_m() * STEP, lane_m(), chunk);
        const u32 pair = place_of(stage + (M + warp_n() + chunk / 4 * 16) * STEP, lane_n(), chunk % 4 * 2);
        return {{row, row ^ 64}, {pair, pair ^ 16}};
    }
    __device__ __forceinline__ static void read_row(Ahead& ahead, const Places& places, int i) {
        read(ahead.row, places.row[i % 2] + i * 4 * STEP);
    }
    __device__ __forceinline__ static void read_weights(Ahead& ahead, const Places& places, int j) {
        read(ahead.weights[j / 2][j % 2], places.pair[j % 2] + (j / 4 * 32 + j / 2 % 2 * 8) * STEP);
    }
    __device__ __forceinline__ static void read_first(Ahead& ahead, const Places& places) {
#pragma unroll
        for (int j = 0; j < TN; j++) read_weights(ahead, places, j);
        read_row(ahead, places, 0);
    }
    // Multiply a chunk while the next one is read.
    __device__ __forceinline__ static void multiply(Sums& sums, Ahead& now, const Places& here, Ahead& next,
                                                    const Places& there) {
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const float row[4] = {now.row[0], now.row[1], now.row[2], now.row[3]};
            if (i + 1 < TM)
                read_row(now, here, i + 1);
            else
                read_row(next, there, 0);
#pragma unroll
            for (int j = 0; j < TN; j++)
                if (j * TM / TN == i) read_weights(next, there, j);
#pragma unroll
            for (int k = 0; k < FILLED; k++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    sums[i][j] = __fmaf_rn(row[k], now.weights[j / 2][k / 2][k % 2 * 2 + j % 2], sums[i][j]);
        }
    }
    __device__ __forceinline__ static int row_of(int p) { return warp_m() + p / (TN / 4) * 4 + lane_m(); }
    __device__ __forceinline__ static int channel_of(int p) { return warp_n() + p % (TN / 4) * 32 + lane_n() * 4; }
    __device__ __forceinline__ static float4 pack(const Sums& sums, int p) {
        const float* const sum = &sums[p / (TN / 4)][p % (TN / 4) * 4];
        return make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
};

// The copies of a tile. A thread copies a piece of every (THREADS / 8)-th row.
template <class T> struct Gather {
    typename T::Shared& shared;
    const int first_step, steps;
    const Corner* corners;
    const char* weights;
    Tap tap;  // of the next step, read ahead

    __device__ __forceinline__ static int piece() { return threadIdx.x % 8; }
    __device__ __forceinline__ static int first_row() { return threadIdx.x / 8; }
    // The first steps of a tile. wait: whether to wait for the kernel that wrote the pixels; what was read before is
    // older.
    __device__ __forceinline__ void start(int turn, int first_channel, bool wait) {
        const Head& h = shared.head;
        corners = shared.corners[turn];
        weights = h.weight + ((size_t)(first_channel + first_row()) * h.steps + first_step) * STEP + piece() * 16;
        tap = h.taps[min(first_step, h.steps - 1) * 8 + piece()];
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++)
            if (step < steps) load_weights(step);
        if (wait) wait_for_predecessor();
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++) {
            if (step < steps) load_pixels(step);
            end_of_stage();
        }
    }
    __device__ __forceinline__ void load(int step) {
        if (step < steps) load_pixels(step), load_weights(step);
        end_of_stage();
    }
    __device__ __forceinline__ void load_pixels(int step) {
        const u32 to = shared_address(shared.stages[step % STAGES]);
        const Head h = shared.head;
#pragma unroll
        for (int i = 0; i < T::M * 8 / THREADS; i++) {
            const int row = first_row() + i * (THREADS / 8);
            bool inside;
            const char* from = source(h, corners[row], tap, inside);
            copy<16>(place_of(to, row, piece()), from, inside);
        }
        if (step + 1 < steps) tap = h.taps[(first_step + step + 1) * 8 + piece()];
    }
    __device__ __forceinline__ void load_weights(int step) {
        const u32 to = shared_address(shared.stages[step % STAGES] + T::M * STEP);
        const size_t apart = (size_t)(THREADS / 8) * shared.head.steps * STEP;
#pragma unroll
        for (int i = 0; i < T::N * 8 / THREADS; i++) {
            const int row = first_row() + i * (THREADS / 8);
            copy<16>(place_of(to, row, piece()), weights + i * apart + (size_t)step * STEP, true);
        }
    }
};
