// A gang: four warps that multiply and finish tiles of 64 listed pixels, and four that load their pixels, as in
// kernels/few.cuh; the weights of all steps are in shared memory already. Several gangs of a block take turns at what the
// multiprocessor has.

template <int N, int S> struct __align__(16) Gang {
    Rows<64, N> rows;
    u64 arrived[S], released[S], known[TURNS], finished[TURNS];  // barriers: of the slots, of the turns

    __device__ __forceinline__ void set_up_barriers() {
        for (int s = 0; s < S; s++) set_up(shared_address(arrived + s), LOADERS), set_up(shared_address(released + s), THREADS);
        for (int t = 0; t < TURNS; t++) set_up(shared_address(known + t), LOADERS), set_up(shared_address(finished + t), THREADS);
    }

    // What the warps that load do, from the tile that was described first. ring: S slots. barrier: of the gang alone.
    __device__ __forceinline__ void load(Gather<64, N>& gather, const Work& work, int steps, u32 ring, int tile, int stride,
                                         int barrier) {
        const u32 arrived = shared_address(this->arrived), released = shared_address(this->released);
        const u32 known = shared_address(this->known), finished = shared_address(this->finished);
        int turn = 0, slot = 0;
        u32 phase = 1;
        arrive(known);
        for (int described = 1;; described++) {
            const int next = tile + stride;
            gather.take(tile);
            meet(barrier, LOADERS);  // all have read what `describe` writes
            if (described == 1 && work.early) wait_for_predecessor();
            for (int step = 0; step < steps; step++) {
                await(released + slot * 8, phase);
                gather.load_pixels(gather.tap_of(step), ring + slot * (64 * STEP));
                arrive_with_copies(arrived + slot * 8);
                if (++slot == S) slot = 0, phase ^= 1;
                if (step == min(S, steps) - 1 && next < gather.total) {
                    turn = (turn + 1) % TURNS;
                    await(finished + turn * 8, described / TURNS & 1 ^ 1);  // what was there before
                    gather.describe(next, turn);
                    arrive(known + turn * 8);
                    gather.look_up(next + stride);
                }
            }
            if (next >= gather.total) return wait_for_copies();  // a thread stays until they are there
            meet(barrier, LOADERS);
            tile = next;
        }
    }
};
