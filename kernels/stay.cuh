// Blocks whose weights stay in shared memory, for sums of few steps. Otherwise weights are a third to a half of what a
// tile of 64 channels reads from the second-level cache.
//
// A block is STAY gangs (kernels/gang.cuh), each with a ring of slots and tiles of its own. A tile holds all channels.
// With OCTETS, kernels/octets.cuh does the work where changes lie close together.
//
// Launch: STAY * 256 threads; shared memory: steps * BN * 128 + STAY * (STAGES * 8 KB + sizeof(Gang) + 8 * STEP_TAPS *
// steps) + 16 bytes. Only for types that need no rounding.
#include "gang.cuh"
#define RING (STAGES * 64 * STEP)  // bytes of a gang's

#if OCTETS
// Octets are used if at least so many percent of their pixels are listed. Measured (64 > 64 channels, half, H100, 2 %
// of 16.6 million pixels, with a threshold; us by octets and tap by tap): all of the octets' pixels listed 82 and 93,
// 70 % of them at random 104 and 91, 50 % 154 and 104.
#ifndef CLOSE
#define CLOSE 80
#endif
#include "octets.cuh"

// Called by each block when it has read how many octets there are; the last one resets the count for the next list.
__device__ __forceinline__ void have_read(int* counts) {
    if (threadIdx.x == 0 && atomicInc((u32*)counts + 1, gridDim.x - 1) == gridDim.x - 1) counts[0] = 0;
}
#endif

// octets: a list; counts: how many octets, and how many blocks have read that.
__device__ __forceinline__ void stay(const Head& h, const Work& work, const u32* octets, int* counts) {
    constexpr int N = BN, WARPS = THREADS / 32, SPARE = REGISTERS - N / 2 - 48;
    typedef Gang<N, STAGES> Own;
    extern __shared__ __align__(1024) char memory[];
    const int thread = threadIdx.x % (THREADS + LOADERS), warp = __shfl_sync(~0u, thread / 32, 0);
    const int gang = __shfl_sync(~0u, (int)threadIdx.x / (THREADS + LOADERS), 0);
    const u32 weights = shared_address(memory), ring = weights + h.steps * (N * STEP) + gang * RING;
    Own* const gangs = (Own*)(memory + h.steps * (N * STEP) + STAY * RING);
    Own& own = gangs[gang];
    u64* const there = (u64*)(gangs + STAY);  // barrier: the weights have arrived
#if OCTETS
    const int octets_listed = read_counter(counts);
    const bool close = (long long)octets_listed * 8 * CLOSE <= (long long)work.listed * 100;
    const int total = close ? (octets_listed + 7) / 8 : (work.listed + 63) / 64;
#else
    const int total = (work.listed + 63) / 64;
#endif
    // Gangs of a block take tiles far apart, so that few tiles are spread over all multiprocessors.
    const int tile = blockIdx.x + gang * gridDim.x, stride = STAY * gridDim.x;
    if (blockIdx.x >= total) {
#if OCTETS
        have_read(counts);
#endif
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
#if OCTETS
    if (close) {
        ByOctets loads{h, work, own.rows, octets, octets_listed, thread - THREADS, total};
        if (warp >= WARPS && tile < total) loads.look_up(tile), loads.describe(tile, 0), loads.look_up(tile + stride);
        __syncthreads();
        have_read(counts);
        if (tile >= total) return;
        if (warp >= WARPS) return own.load<ByOctets::IN_RING>(loads, work, WINDOW, ring, tile, stride, 1 + gang);
        const auto multiply = [&](float(&sums)[N / 2], int step, int slot) {
            multiply_octets(sums, ring + slot * ByOctets::SLOT, weights, step);
        };
        return own.finish<ByOctets::IN_RING, SPARE>(multiply, work, WINDOW, shared_address(there), tile, total, stride,
                                                    1 + STAY + gang);
    }
#endif
    ByTaps<N> loads{{h, work, own.rows, (Tap*)(there + 2) + gang * h.steps * STEP_TAPS, thread - THREADS, 1, total, 0}};
    if (warp >= WARPS && tile < total) {
        loads.load_taps(h.steps), loads.look_up(tile), loads.describe(tile, 0);
        loads.look_up(tile + stride);
    }
    __syncthreads();
#if OCTETS
    have_read(counts);
#endif
    if (tile >= total) return;
    if (warp >= WARPS) return own.load<STAGES>(loads, work, h.steps, ring, tile, stride, 1 + gang);
    const auto multiply = [&](float(&sums)[N / 2], int step, int slot) {
        multiply_step(sums, ring + slot * ByTaps<N>::SLOT, Rounded(), weights + step * (N * STEP), step > 0);
    };
    own.finish<STAGES, SPARE>(multiply, work, h.steps, shared_address(there), tile, total, stride, 1 + STAY + gang);
}
