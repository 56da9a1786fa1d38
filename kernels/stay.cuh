// Blocks whose weights stay in shared memory, for sums of few steps: of what a tile of 64 channels draws from the
// second-level cache a third to a half are weights otherwise.
//
// A block is STAY gangs (kernels/gang.cuh), each with STAGES slots and tiles of its own. A tile holds all channels.
//
// Launch: STAY * 256 threads; shared memory: steps * BN * 128 + STAY * (STAGES * 8 KB + sizeof(Gang) + 8 * STEP_TAPS *
// steps) + 16 bytes. Only for types that need no rounding.
#include "gang.cuh"

__device__ __forceinline__ void stay(const Head& h, const Work& work) {
    constexpr int N = BN, S = STAGES, SLOT = 64 * STEP, WARPS = THREADS / 32;
    typedef Gang<N, S> Own;
    extern __shared__ __align__(1024) char memory[];
    const int thread = threadIdx.x % (THREADS + LOADERS), warp = __shfl_sync(~0u, thread / 32, 0);
    const int gang = __shfl_sync(~0u, (int)threadIdx.x / (THREADS + LOADERS), 0);
    const u32 weights = shared_address(memory), ring = weights + h.steps * (N * STEP) + gang * (S * SLOT);
    Own* const gangs = (Own*)(memory + h.steps * (N * STEP) + STAY * (S * SLOT));
    Own& own = gangs[gang];
    u64* const there = (u64*)(gangs + STAY);  // barrier: the weights are
    Tap* const taps = (Tap*)(there + 2) + gang * h.steps * STEP_TAPS;
    const int total = (work.listed + 63) / 64, stride = STAY * gridDim.x;
    // Gangs of a block take tiles far apart, so that few tiles are spread over all multiprocessors.
    int tile = blockIdx.x + gang * gridDim.x;
    if (blockIdx.x >= total) {
        if (work.early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    if (threadIdx.x == 0) {
        set_up(shared_address(there), 1);
        for (int g = 0; g < STAY; g++) gangs[g].set_up_barriers();
        publish();
        bulk_copy(weights, h.weight, h.steps * (N * STEP), shared_address(there));
    }
    for (int g = 0; g < STAY; g++) begin_counts(gangs[g].rows);
    Gather<64, N> gather{h, work, own.rows, taps, thread - THREADS, 1, total, 0};
    if (warp >= WARPS && tile < total) {
        gather.load_taps(h.steps), gather.look_up(tile), gather.describe(tile, 0);
        gather.look_up(tile + stride);
    }
    __syncthreads();
    if (tile >= total) return;
    if (warp >= WARPS) return own.load(gather, work, h.steps, ring, tile, stride, 1 + gang);

    const u32 arrived = shared_address(own.arrived), released = shared_address(own.released);
    const u32 known = shared_address(own.known), finished = shared_address(own.finished);
    int turn = 0, slot = 0;
    u32 phase = 0;
    if (work.early) wait_for_predecessor();
    for (int tiles = 0;; tiles++) {
        const int next = tile + stride;
        await(known + turn * 8, tiles / TURNS & 1);
        Finisher<N, REGISTERS - N / 2 - 48, false> finisher(work, own.rows.places[turn], warp * 16, 0);
        finisher.load_early();
        float sums[N / 2];
        if (tiles == 0) await(shared_address(there), 0);
        for (int step = 0; step < h.steps; step++) {
            await(arrived + slot * 8, phase);
            publish();  // to wgmma what the copies wrote
            start_multiplying();
            multiply_step(sums, ring + slot * SLOT, Rounded(), weights + step * (N * STEP), step > 0);
            end_of_step();
            wait_for_sums<1>();
            if (step > 0) arrive(released + (slot == 0 ? S - 1 : slot - 1) * 8);
            if (++slot == S) slot = 0, phase ^= 1;
        }
        wait_for_sums<0>();
        arrive(released + (slot == 0 ? S - 1 : slot - 1) * 8);
        finisher.run(sums, own.rows.bias[turn], nullptr, counts_of(own.rows));
        if (next >= total) return end_counts(work, own.rows, 1 + STAY + gang);
        arrive(finished + turn * 8);
        tile = next, turn = (turn + 1) % TURNS;
    }
}
