// Two convolutions in one kernel, on Hopper's tensor cores: one to at most 64 channels, and a 1x1 convolution that is
// its only reader. The result of the first for 64 listed pixels stays in shared memory, rounded as it would be stored.
//
// The weights of both stay in shared memory as well. A block is two halves, each with tiles of its own, so that one
// multiplies while the other loads or stores: in each, four warps multiply and finish, and four load
// (kernels/gang.cuh). The rows of the first sum pass through SLOTS. With ALSO the last steps are those of a second map,
// which a 1x1 convolution of its own adds to the second sum. The second sum is made and stored 64 channels at a time.
//
// Where few pixels changed, several blocks share the channels of a tile, and each makes all of the first sum.
//
// Sums are made in the order of kernels/few.cuh, so that the bits are those of two launches.
//
// Launch: 512 threads; shared memory: 8 KB * (FIRST_STEPS + GROUPS * (1 + ALSO_STEPS) + 2 * (SLOTS + 1)), and
// sizeof(Rest). Only for sm_90a.
#include "tensor.cuh"

#ifndef SLOTS
#define SLOTS 6
#endif
#ifndef FIRST_STEPS  // of the first sum
#define FIRST_STEPS 9
#endif
#ifndef ALSO_STEPS  // of the second map
#define ALSO_STEPS 0
#endif
#ifndef GROUPS  // of 64 channels that the second sum makes
#define GROUPS 4
#endif
#ifndef SPREAD  // quarters of the multiprocessors that so few tiles may take; the next kernel gets ready on others
#define SPREAD 2
#endif
#ifndef BETWEEN  // text as FINISH, of the operators between the two
#define BETWEEN
#endif

#define THREADS 128  // of a half, that multiply and finish
#define LOADERS 128
#define LOADS LOADERS
#define TURNS 4  // tiles that are written down at a time
#define HALVES 2
#define BN 64
#define COMPARE 0
#define MANY_TAPS 0
#define UP_H 1
#define UP_W 1
#define ROUND 1
#define PIECE 16
#define PIECES (STEP / PIECE)
#define STEP_TAPS 1
#define ALSO (ALSO_STEPS > 0)
#define STEPS (FIRST_STEPS + ALSO_STEPS)
#define ADDS (OPERANDS > 0 && KIND_A == MAP)
#define MATRIX (64 * STEP)  // bytes of 64 rows of a step

#if __CUDA_ARCH_FEAT_SM90_ALL && (TYPE == 2 || TYPE == 3)
#include "wgmma.cuh"
#include "finish.cuh"
#include "gather.cuh"
#include "gang.cuh"

struct Both {
    Head first;          // its steps, and those of the second map
    const char* weight;  // of the second sum: GROUPS x (1 + ALSO_STEPS) x 64 rows
    const float* bias;
};

// Behind the matrices in shared memory.
struct Rest {
    float bias[GROUPS * 64];
    struct Half : Gang<64, SLOTS> {
        Tap taps[STEPS];
    } half[HALVES];
    u64 first_weights, weights;  // barriers that these have arrived
};

// Finish a warp's 16 rows of the first sum, and put them where the second one reads them.
__device__ __forceinline__ void keep_between(const float (&sums)[32], const float* bias, u32 to) {
    const int lane = threadIdx.x & 31, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int chunk = 0; chunk < 64 / CHUNK; chunk++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            number values[WIDTH];
            hand_round(values, sums, chunk, lower);
            const int c = chunk * CHUNK + first_of_lane();
#pragma unroll
            for (int j = 0; j < WIDTH; j += 4) add_four(values, j, *(const float4*)(bias + c + j));
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                number v = values[j];
                BETWEEN;
                values[j] = v;
            }
            const Pack pack = packed(values);
            const u32* const words = (const u32*)pack.of;
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(place_of(to, row + lower * 8, c / WIDTH)),
                         "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                         : "memory");
        }
}

extern "C" __global__ void __launch_bounds__((HALVES * (THREADS + LOADERS)), 1)
    conv(const Both* __restrict__ both, const Operand* __restrict__ operands, value* out, int pitch, int channels,
         const int* list, const int* count, int OH, int OW, int early, u32* mask, int* changed, Threshold threshold) {
    const Both b = *both;
    const Operand added = operands[0];
    begin(early);
    const int listed = read_counter(count);
    const Work work = {operands, added, out, pitch, channels, list, listed, OH, OW, early, mask, changed, threshold};
    const int tiles = (work.listed + 63) / 64;
    int parts = 1;  // blocks that share the channels of a tile
    while (GROUPS % (parts * 2) == 0 && tiles * parts * 2 <= (int)gridDim.x * SPREAD / 4) parts *= 2;

    extern __shared__ __align__(1024) char memory[];
    const u32 first_weights = shared_address(memory), weights = first_weights + FIRST_STEPS * MATRIX;
    const u32 slots = weights + GROUPS * (1 + ALSO_STEPS) * MATRIX;
    Rest& rest = *(Rest*)(memory + (FIRST_STEPS + GROUPS * (1 + ALSO_STEPS) + HALVES * (SLOTS + 1)) * MATRIX);
    const int in_half = threadIdx.x % (THREADS + LOADERS), warp = __shfl_sync(~0u, in_half / 32, 0);
    const int half = __shfl_sync(~0u, (int)threadIdx.x / (THREADS + LOADERS), 0);
    typename Rest::Half& mine = rest.half[half];
    const u32 ring = slots + half * (SLOTS + 1) * MATRIX, between = ring + SLOTS * MATRIX;
    const u32 arrived = shared_address(mine.arrived), released = shared_address(mine.released);
    const u32 known = shared_address(mine.known), finished = shared_address(mine.finished);
    const int stride = HALVES * gridDim.x, groups = GROUPS / parts, first_group = blockIdx.x % parts * groups;
    // The halves of a block take tiles far apart, so that few tiles are spread over all multiprocessors.
    int tile = (blockIdx.x + half * gridDim.x) / parts, turn = 0, slot = 0;
    if (blockIdx.x / parts >= tiles) {
        if (work.early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const bool works = half == 0 || (parts == 1 && blockIdx.x + gridDim.x < tiles);

    if (threadIdx.x == 0) {
        const u32 there = shared_address(&rest.first_weights), more_there = shared_address(&rest.weights);
        set_up(there, 1), set_up(more_there, 1);
#pragma unroll
        for (int i = 0; i < HALVES; i++) rest.half[i].set_up_barriers();
        publish();
        bulk_copy(first_weights, b.first.weight, FIRST_STEPS * MATRIX, there);
        bulk_copy(weights, b.weight + first_group * (1 + ALSO_STEPS) * MATRIX, groups * (1 + ALSO_STEPS) * MATRIX, more_there);
    }
    for (int i = threadIdx.x; i < GROUPS * 64; i += HALVES * (THREADS + LOADERS)) rest.bias[i] = b.bias[i];
    ByTaps<64> gather{{b.first, work, mine.rows, mine.taps, in_half - THREADS, 1, tiles, 0}};
    if (warp >= THREADS / 32 && works) {
        gather.load_taps(STEPS), gather.look_up(tile), gather.describe(tile, 0);
        gather.look_up(tile + stride);
    }
    __syncthreads();
    if (!works) return;

    if (warp >= THREADS / 32) return mine.template load<SLOTS>(gather, work, STEPS, ring, tile, stride, 1 + half);

    u32 phase = 0;
    if (work.early) wait_for_predecessor();
    for (int done = 0;; done++) {
        const int next = tile + stride;
        await(known + turn * 8, done / TURNS & 1);
        Finisher<64, 16, false> even(work, mine.rows.places[turn], warp * 16, first_group * 64);
        Finisher<64, 16, false> odd(work, mine.rows.places[turn], warp * 16, (first_group + 1) * 64);
        even.load_early();
        {
            float sums[32];
            await(shared_address(&rest.first_weights), 0);
            const auto multiply = [&](float(&sums)[32], int step, int slot) {
                multiply_step(sums, ring + slot * MATRIX, Rounded(), first_weights + step * MATRIX, step > 0);
            };
            mine.template sum_up<SLOTS>(sums, multiply, FIRST_STEPS, slot, phase);
            keep_between(sums, mine.rows.bias[turn], between);
        }
        publish();
        meet(3 + half, THREADS);
        const int also_slot = slot;  // the first of the second map's
        await(shared_address(&rest.weights), 0);
        for (int step = 0; step < ALSO_STEPS; step++) {
            await(arrived + slot * 8, phase);
            if (++slot == SLOTS) slot = 0, phase ^= 1;
        }
        if (ALSO) publish();
        const auto make = [&](int group, Finisher<64, 16, false>& finisher) {
            float sums[32];
            const u32 b = weights + group * (1 + ALSO_STEPS) * MATRIX;
            start_multiplying();
            multiply_step(sums, between, Rounded(), b, 0);
#pragma unroll
            for (int step = 0; step < ALSO_STEPS; step++)
                multiply_step(sums, ring + (also_slot + step) % SLOTS * MATRIX, Rounded(), b + (1 + step) * MATRIX, 1);
            end_of_step();
            wait_for_sums<0>();
            if (ALSO && group == groups - 1)
                for (int step = 0; step < ALSO_STEPS; step++) arrive(released + (also_slot + step) % SLOTS * 8);
            finisher.run(sums, rest.bias, nullptr, nullptr);
        };
        // A map that is added is loaded a group ahead.
        for (int group = 0; group < groups; group += 2) {
            if (group + 1 < groups) odd.first = (first_group + group + 1) * 64, odd.load_early();
            make(group, even);
            if (group + 2 < groups) even.first = (first_group + group + 2) * 64, even.load_early();
            if (group + 1 < groups) make(group + 1, odd);
        }
        if (next >= tiles) return;
        arrive(finished + turn * 8);
        meet(3 + half, THREADS);  // `between` is free: all have multiplied it
        tile = next, turn = (turn + 1) % TURNS;
    }
}
#endif
