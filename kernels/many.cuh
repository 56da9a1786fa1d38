// Blocks of 128 rows: all threads load, multiply and finish. While a tile is finished, the first steps of the next one
// are loaded.

// Compute all listed pixels in tiles of M pixels times N channels, in S stages, P steps at a time.
template <int M, int N, int S, int P> __device__ __forceinline__ void walk(const Head& h, const Work& work) {
    // A step is still multiplied while the next one is waited for, where its pixels are not in registers.
    constexpr bool OPEN = P == 1 && S >= 4 && !ROUNDS;
    constexpr int STAGE = (M + N) * STEP, AHEAD = S - P - OPEN;  // steps that are being loaded
    constexpr int GROUP_N = N * M / 64 * 128 / THREADS;        // channels of a warpgroup, which multiplies 64 rows
    constexpr int SPARE = REGISTERS - GROUP_N / 2 - (ROUNDS ? 16 * P : 0) - 48;
    static_assert(P <= 2 && AHEAD >= P, "two steps at a time, others on their way");
    static_assert(GROUP_N % 32 == 0 && S * STAGE <= BYTES, "the same threads and memory for every tile");

    extern __shared__ __align__(1024) char memory[];
    Rows<M, N>& rows = *(Rows<M, N>*)(memory + BYTES);
    const u32 stages = shared_address(memory), arrived = stages + BYTES + (int)sizeof(rows);
    // A shuffle, so that the compiler sees that it is the same for the whole warp: addresses of tiles then stay
    // uniform.
    const int thread = threadIdx.x, warp = __shfl_sync(~0u, thread >> 5, 0), group = warp / 4;
    const int group_m = group % (M / 64) * 64, group_n = group / (M / 64) * GROUP_N;
    const int blocks_n = (work.channels + N - 1) / N, total = (work.listed + M - 1) / M * blocks_n;
    const int steps = (h.steps + P - 1) / P * P;  // zeros change no sum
    Gather<M, N> gather{h, work, rows, (Tap*)(memory + BYTES + sizeof(rows) + S * 8), thread, blocks_n, total, 0};

    if (thread == 0) {
#pragma unroll
        for (int i = 0; i < S; i++) set_up(arrived + i * 8, 1);
    }
    gather.load_taps(steps);
    begin_counts(rows);
    publish();

    int slot = 0, load_slot = 0;
    u32 phase = 0;
    const auto load_step = [&](int step) {
        gather.load_pixels(gather.tap_of(step), stages + load_slot * STAGE);
        load_slot = load_slot + 1 == S ? 0 : load_slot + 1;
    };
    const auto start = [&](int tile, bool first) {
        gather.take(tile);
#pragma unroll
        for (int step = 0; step < AHEAD; step++) {
            const int to = (load_slot + step) % S;
            if (step < steps && warp == step % (LOADS / 32)) gather.load_weights(step, stages + to * STAGE, arrived + to * 8);
        }
        if (first && work.early) wait_for_predecessor();  // it wrote the pixels; all that was read before is older
#pragma unroll
        for (int step = 0; step < AHEAD; step++) {
            if (step < steps) load_step(step);
            end_of_stage();
        }
    };

    int tile = blockIdx.x, turn = 0;
    if (tile >= total) {
        if (work.early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    gather.look_up(tile), gather.describe(tile, 0);
    __syncthreads();
    start(tile, true);
    while (true) {
        const int next = tile + gridDim.x, first_n = tile % blocks_n * N;
        float sums[GROUP_N / 2];
        int more = 0;
        Finisher<GROUP_N, SPARE, (GROUP_N < N)> finisher(work, rows.places[turn], group_m + warp % 4 * 16,
                                                         first_n + group_n);
        finisher.load_early();
        for (int step = 0; step < steps; step += P) {
            wait<AHEAD - P>();
            publish();  // makes what was loaded visible to all after the next barrier
            int slots[P];
#pragma unroll
            for (int p = 0; p < P; p++) {
                slots[p] = slot;
                await(arrived + slot * 8, phase);
                slot++;
                if (slot == S) slot = 0, phase ^= 1;
            }
            __syncthreads();
            Rounded rounded[P];
#pragma unroll
            for (int p = 0; p < P; p++) load_rounded(rounded[p], stages + slots[p] * STAGE + group_m * STEP);
            start_multiplying();
#pragma unroll
            for (int p = 0; p < P; p++) {
                const u32 a = stages + slots[p] * STAGE;
                multiply_step(sums, a + group_m * STEP, rounded[p], a + (M + group_n) * STEP, more);
                more = 1;
            }
            end_of_step();
            if (step == 0) gather.look_up(next), gather.describe(next, turn ^ 1);
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int later = step + AHEAD + p;
                if (later < steps) {
                    if (warp == later % (LOADS / 32))
                        gather.load_weights(later, stages + load_slot * STAGE, arrived + load_slot * 8);
                    load_step(later);
                }
                end_of_stage();
            }
            wait_for_sums<OPEN>();
        }
        wait_for_sums<0>();
        __syncthreads();
        if (next < total) start(next, false);
        finisher.run(sums, rows.bias[turn] - first_n, rows.moved[turn], counts_of(rows));
        if (next >= total) return end_counts(work, rows);
        tile = next, turn ^= 1;
    }
}
