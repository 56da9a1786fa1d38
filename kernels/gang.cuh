// A gang: four warps that multiply and finish tiles of 64 rows, and four that load what they multiply, as in
// kernels/few.cuh; the weights of all steps are in shared memory already. A block has several gangs, so that one
// multiplies while another loads or stores.
//
// Its Loads know what passes through the slots of its ring, and how many slots a tile takes: ByTaps, or those of
// kernels/octets.cuh.

// Loads pixels tap by tap: each step of the sum fills a slot.
template <int N> struct ByTaps : Gather<64, N> {
    static constexpr int SLOT = 64 * STEP;
    __device__ __forceinline__ void load_step(int step, u32 to) { this->load_pixels(this->tap_of(step), to); }
};

template <int N, int MOST> struct __align__(16) Gang {
    Rows<64, N> rows;
    u64 arrived[MOST], released[MOST], known[TURNS], finished[TURNS];  // barriers: of the slots, of the turns

    __device__ __forceinline__ void set_up_barriers() {
        for (int s = 0; s < MOST; s++)
            set_up(shared_address(arrived + s), LOADERS), set_up(shared_address(released + s), THREADS);
        for (int t = 0; t < TURNS; t++)
            set_up(shared_address(known + t), LOADERS), set_up(shared_address(finished + t), THREADS);
    }

    // Called by the loading warps, from the tile that was described first. barrier: of this gang.
    template <int IN_RING, typename Loads>
    __device__ __forceinline__ void load(Loads& loads, const Work& work, int steps, u32 ring, int tile, int stride,
                                         int barrier) {
        const u32 arrived = shared_address(this->arrived), released = shared_address(this->released);
        const u32 known = shared_address(this->known), finished = shared_address(this->finished);
        int turn = 0, slot = 0;
        u32 phase = 1;
        arrive(known);
        for (int described = 1;; described++) {
            const int next = tile + stride;
            loads.take(tile);
            meet(barrier, LOADERS);  // all have read what `describe` writes
            if (described == 1 && work.early) wait_for_predecessor();
            for (int step = 0; step < steps; step++) {
                await(released + slot * 8, phase);
                loads.load_step(step, ring + slot * Loads::SLOT);
                arrive_with_copies(arrived + slot * 8);
                if (++slot == IN_RING) slot = 0, phase ^= 1;
                if (step == min(IN_RING, steps) - 1 && next < loads.total) {
                    turn = (turn + 1) % TURNS;
                    await(finished + turn * 8, described / TURNS & 1 ^ 1);  // the tile that had this turn before
                    loads.describe(next, turn);
                    arrive(known + turn * 8);
                    loads.look_up(next + stride);
                }
            }
            if (next >= loads.total) return wait_for_copies();  // a thread must not end before its copies
            meet(barrier, LOADERS);
            tile = next;
        }
    }

    // Called by the multiplying warps for what passes through the ring. multiply(sums, step, slot) starts a step's
    // products.
    template <int IN_RING, typename Multiply>
    __device__ __forceinline__ void sum_up(float (&sums)[N / 2], const Multiply& multiply, int steps, int& slot, u32& phase) {
        const u32 arrived = shared_address(this->arrived), released = shared_address(this->released);
        for (int step = 0; step < steps; step++) {
            await(arrived + slot * 8, phase);
            publish();  // makes what the copies wrote visible to wgmma
            start_multiplying();
            multiply(sums, step, slot);
            end_of_step();
            wait_for_sums<1>();
            if (step > 0) arrive(released + (slot == 0 ? IN_RING - 1 : slot - 1) * 8);
            if (++slot == IN_RING) slot = 0, phase ^= 1;
        }
        wait_for_sums<0>();
        arrive(released + (slot == 0 ? IN_RING - 1 : slot - 1) * 8);
    }

    // Called by the multiplying warps. there: the barrier of the weights. SPARE: registers, as in Finisher.
    template <int IN_RING, int SPARE, typename Multiply>
    __device__ __forceinline__ void finish(const Multiply& multiply, const Work& work, int steps, u32 there, int tile,
                                           int total, int stride, int barrier) {
        const int warp = __shfl_sync(~0u, (int)threadIdx.x % THREADS / 32, 0);
        const u32 known = shared_address(this->known), finished = shared_address(this->finished);
        int turn = 0, slot = 0;
        u32 phase = 0;
        if (work.early) wait_for_predecessor();
        for (int tiles = 0;; tiles++) {
            const int next = tile + stride;
            await(known + turn * 8, tiles / TURNS & 1);
            Finisher<N, SPARE, false> finisher(work, rows.places[turn], warp * 16, 0);
            finisher.load_early();
            float sums[N / 2];
            if (tiles == 0) await(there, 0);
            sum_up<IN_RING>(sums, multiply, steps, slot, phase);
            finisher.run(sums, rows.bias[turn], nullptr, counts_of(rows));
            if (next >= total) return end_counts(work, rows, barrier);
            arrive(finished + turn * 8);
            tile = next, turn = (turn + 1) % TURNS;
        }
    }
};
