// Blocks of 64 rows, for few pixels: four warps multiply and finish, four load.
//
// A slot of shared memory holds a step. The loading warps fill it when it is `released`, the multiplying warps read it
// when it has `arrived`; there is no barrier of the whole block. Loading may be up to TURNS - 1 tiles ahead.
//
// BY_THEMSELVES: copies that wgmma reads signal their arrival themselves, which is 4 % faster
// (docs/performance_tried.md). Where rows are read into registers to be rounded, threads wait for their own copies
// instead, LATE steps after they started them: racecheck cannot follow copies that signal by themselves.
//
// SPLIT: the blocks of a cluster share the steps of a sum where that is faster. Each block then finishes some of the
// rows.

// Finishes the sums of a cluster; each block takes some of the rows.
template <int M, int N> struct Together {
    static constexpr int OWN = (M / SPLIT * (N / WIDTH) + THREADS - 1) / THREADS, EARLY = !ADDS ? 0 : OWN < 4 ? OWN : 4;
    static constexpr int PITCH = N + 8;  // of a row; keeps a warp's stores in different banks
    const Work& work;
    const int* places;  // of the tile's rows
    int rank, first;    // the tile's first channel
    Pack added[EARLY ? EARLY : 1];

    __device__ __forceinline__ Together(const Work& work, const int* places, int rank, int first)
        : work(work), places(places), rank(rank), first(first) {}
    __device__ __forceinline__ int row_of(int i) const {
        return rank * (M / SPLIT) + (i * THREADS + (int)threadIdx.x) / (N / WIDTH);
    }
    __device__ __forceinline__ int first_of(int i) const {
        return first + (i * THREADS + (int)threadIdx.x) % (N / WIDTH) * WIDTH;
    }
    __device__ __forceinline__ bool is_own(int row) const { return row < (rank + 1) * (M / SPLIT); }
    __device__ __forceinline__ int place_of(int i) const { return is_own(row_of(i)) ? places[row_of(i)] : -1; }
    __device__ __forceinline__ bool holds(int i) const { return place_of(i) >= 0 && first_of(i) < work.channels; }
    __device__ __forceinline__ void load_early() {
#pragma unroll
        for (int i = 0; i < EARLY; i++)
            if (is_own(row_of(i))) load_added(added[i], work, places[row_of(i)], first_of(i));
    }
    // staged: M * PITCH sums of this block, where the others read them. bias: of channel 0. counts: see `mark`.
    __device__ __forceinline__ void run(const float (&sums)[N / 2], float* staged, const float* bias, int* counts) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
        meet(1, THREADS);  // all steps are multiplied
        float* const to = staged + (warp * 16 + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            *(float2*)(to + j * 8) = make_float2(sums[j * 4], sums[j * 4 + 1]);
            *(float2*)(to + j * 8 + 8 * PITCH) = make_float2(sums[j * 4 + 2], sums[j * 4 + 3]);
        }
        cluster_barrier();
        float v[OWN][WIDTH] = {};  // all are loaded before the first one is finished
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int j = 0; j < WIDTH; j += 4)
#pragma unroll
                for (int other = 0; other < SPLIT; other++)
                    add_from(v[i], j, staged + row_of(i) * PITCH + first_of(i) - first + j, other, holds(i));
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            constexpr int OF_ROW = N / WIDTH;  // threads
            int c = first_of(i), place = place_of(i);
            const bool holds = this->holds(i);
#pragma unroll
            for (int j = 0; j < WIDTH; j += 4) add_four(v[i], j, *(const float4*)(bias + c + j));
            if (!holds) place = c = 0;
            const Pack pack = finish(v[i], work, place, c, i < EARLY ? &added[i < EARLY ? i : 0] : nullptr);
            const bool keeps = !COMPARE || vote(holds && moved(pack, *work.at(place, c), work, c), OF_ROW);
            if (COMPARE) mark(work, counts, place, keeps && lane % OF_ROW == 0);
            if (holds && keeps) *work.at(place, c) = pack;
        }
        publish();
        cluster_barrier();  // before the sums are overwritten
    }
};

// Compute all listed pixels in tiles of 64 pixels times N channels, with S slots. TOGETHER: whether the blocks of a
// cluster share each sum.
template <int N, int S, bool TOGETHER> __device__ __forceinline__ void walk(const Head& h, const Work& work) {
    constexpr int M = 64, STAGE = (M + N) * STEP, WARPS = THREADS / 32;
    constexpr bool OPEN = !ROUNDS;  // a step is still multiplied while the next one is waited for
    constexpr bool IN_SHARES = SPLIT > 1 && !TOGETHER;  // as a cluster adds them
    constexpr bool BY_THEMSELVES = !ROUNDS;
    // Steps whose copies are on their way. S / 2: ResNet-50, half, batch 1 at 1 and 5 % 0.295, 0.384 ms; S - 2: 0.303,
    // 0.391.
    constexpr int LATE = S > 4 ? S / 2 : S - 2;
    constexpr int SPARE = REGISTERS - N / 2 * (IN_SHARES ? 2 : 1) - (ROUNDS ? 16 : 0) - 48;
    static_assert(LATE > 0 && S > LATE + OPEN, "a slot is filled while others are multiplied");
    static_assert(S * STAGE <= BYTES && N <= LOADERS, "the same memory for every tile, a thread for each bias");
    static_assert(!TOGETHER || (M % SPLIT == 0 && M * Together<M, N>::PITCH * 4 <= S * STAGE),
                  "a cluster's sums lie where the slots were, and each block finishes as many rows");

    extern __shared__ __align__(1024) char memory[];
    Rows<M, N>& rows = *(Rows<M, N>*)(memory + BYTES);
    const u32 stages = shared_address(memory);
    const u32 arrived = stages + BYTES + (int)sizeof(rows), released = arrived + S * 8;  // barriers of each slot
    const u32 known = released + S * 8, finished = known + TURNS * 8;  // of each turn: its tile is described; it is done
    Tap* const taps = (Tap*)(memory + BYTES + sizeof(rows) + 2 * (S + TURNS) * 8);
    const int thread = threadIdx.x, warp = __shfl_sync(~0u, thread >> 5, 0);
    const int blocks_n = (work.channels + N - 1) / N, total = (work.listed + M - 1) / M * blocks_n;
    const int members = TOGETHER ? SPLIT : 1, rank = blockIdx.x % members, stride = gridDim.x / members;
    const int first_step = rank * h.steps / members, steps = (rank + 1) * h.steps / members - first_step;
    const auto slot_at = [&](int slot) { return stages + slot * STAGE; };

    int tile = blockIdx.x / members, turn = 0, slot = 0;
    if (tile >= total) {
        if (work.early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    if (thread == 0) {
#pragma unroll
        for (int i = 0; i < S; i++) set_up(arrived + i * 8, LOADERS + 1), set_up(released + i * 8, THREADS);
#pragma unroll
        for (int i = 0; i < TURNS; i++) set_up(known + i * 8, LOADERS), set_up(finished + i * 8, THREADS);
    }
    begin_counts(rows);
    publish();
    Gather<M, N> gather{h, work, rows, taps, thread - THREADS, blocks_n, total, first_step};
    if (warp >= WARPS) {
        gather.load_taps(steps), gather.look_up(tile), gather.describe(tile, 0);
        gather.look_up(tile + stride);
    }
    __syncthreads();

    if (warp >= WARPS) {
        // This thread's copies of the step `before` slots back have arrived.
        const auto announce = [&](int slot, int before) {
            publish();
            arrive(arrived + (slot < before ? slot - before + S : slot - before) * 8);
        };
        u32 phase = 1;
        int ask = warp - WARPS;  // the next step whose weights this warp loads
        arrive(known);
        for (int described = 1;; described++) {
            const int next = tile + stride;
            gather.take(tile);
            meet(2, LOADERS);  // all have read what `describe` writes
            if (described == 1 && work.early) {
                for (; ask < S && ask < steps; ask += LOADERS / 32)
                    gather.load_weights(ask, slot_at(ask), arrived + ask * 8);
                wait_for_predecessor();  // it wrote the pixels; all that was read before is older
            }
            Tap tap = gather.tap_of(0);
            for (int step = 0; step < steps; step++) {
                await(released + slot * 8, phase);
                if (step == ask) {  // a branch of few warps: it takes as long as the copies of pixels
                    gather.load_weights(step, slot_at(slot), arrived + slot * 8);
                    ask += LOADERS / 32;
                }
                gather.load_pixels(tap, slot_at(slot));
                if (BY_THEMSELVES)
                    arrive_with_copies(arrived + slot * 8);
                else
                    end_of_stage();
                tap = gather.tap_of(min(step + 1, steps - 1));
                if (!BY_THEMSELVES) {
                    wait<LATE>();
                    if (step >= LATE) announce(slot, LATE);
                }
                if (++slot == S) slot = 0, phase ^= 1;
                if (step == min(S, steps) - 1 && next < total) {
                    turn = (turn + 1) % TURNS;
                    await(finished + turn * 8, described / TURNS & 1 ^ 1);  // the tile that had this turn before
                    gather.describe(next, turn);
                    arrive(known + turn * 8);
                    gather.look_up(next + stride);
                }
            }
            if (!BY_THEMSELVES) one_by_one<LATE - 1>([&](int open) { if (open < steps) announce(slot, open + 1); });
            if (BY_THEMSELVES && next >= total) wait_for_copies();  // a thread must not end before its copies
            if (TOGETHER) cluster_barrier(), cluster_barrier();
            if (next >= total) return;
            meet(2, LOADERS);
            tile = next, ask = warp - WARPS;
        }
    }

    u32 phase = 0;
    if (work.early) wait_for_predecessor();
    for (int tiles = 0;; tiles++) {
        const int next = tile + stride;
        int first_n = tile % blocks_n * N;
        asm volatile("" : "+r"(first_n));  // computed here, not after the steps, where it is needed
        float sums[N / 2], totals[IN_SHARES ? N / 2 : 1] = {};
        int more = 0, share = 1;
        await(known + turn * 8, tiles / TURNS & 1);
        Finisher<N, TOGETHER ? 0 : SPARE, false> finisher(work, rows.places[turn], warp * 16, first_n);
        Together<M, N> together(work, rows.places[turn], rank, first_n);
        if (TOGETHER)
            together.load_early();
        else
            finisher.load_early();
        for (int step = 0; step < steps; step++) {
            const int before = slot == 0 ? S - 1 : slot - 1;
            await(arrived + slot * 8, phase);
            if (BY_THEMSELVES) publish();  // makes what the copies wrote visible to wgmma
            Rounded rounded;
            load_rounded(rounded, slot_at(slot));
            start_multiplying();
            multiply_step(sums, slot_at(slot), rounded, slot_at(slot) + M * STEP, more);
            more = 1;
            end_of_step();
            wait_for_sums<OPEN>();
            if (!OPEN) arrive(released + slot * 8);
            if (OPEN && step > 0) arrive(released + before * 8);
            if (++slot == S) slot = 0, phase ^= 1;
            if (IN_SHARES && step + 1 == share * h.steps / SPLIT) {
                wait_for_sums<0>();
#pragma unroll
                for (int j = 0; j < N / 2; j++) totals[IN_SHARES ? j : 0] += sums[j];
                more = 0, share++;
            }
        }
        wait_for_sums<0>();
        if (OPEN) arrive(released + (slot == 0 ? S - 1 : slot - 1) * 8);
        if (IN_SHARES) {
#pragma unroll
            for (int j = 0; j < N / 2; j++) sums[j] = totals[IN_SHARES ? j : 0];
        }
        if (TOGETHER) {
            together.run(sums, (float*)memory, rows.bias[turn] - first_n, counts_of(rows));
        } else {
            finisher.run(sums, rows.bias[turn] - first_n, nullptr, counts_of(rows));
        }
        if (next >= total) return end_counts(work, rows);
        arrive(finished + turn * 8);
        tile = next, turn = (turn + 1) % TURNS;
    }
}
