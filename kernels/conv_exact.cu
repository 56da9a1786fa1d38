// Convolution in strict single precision, without tensor cores: BM listed pixels, wherever they lie, times BN output
// channels, or tiles of 64 x 64 where few are listed. taps.cuh says how the rows of the product are gathered, here in
// pieces of 16 bytes.
//
// A warp is 4 x 8 threads with TM x TN sums each: rows 4 apart, and packs of four neighbouring channels. So they are
// finished from registers, while the first copies of the next tile arrive. Beside the multiplications, reading shared
// memory bounds a tile: TM + TN vectors for 4 * TM * TN products.
//
// A sum adds its products in one order, whatever the tile. Where few pixels change, the SPLIT blocks of a cluster share
// the steps, and their sums meet in shared memory; else a block computes all SPLIT sums itself and adds them in the
// same order. So a pixel's bits do not depend on what else changed.
#include "taps.cuh"

#ifndef BM
#define BM 128
#endif
#ifndef BN
#define BN 128
#endif
#ifndef ACROSS  // of the four warps, side by side
#define ACROSS 2
#endif
#ifndef SMALL  // the same in tiles of 64 x 64; 0 for none
#define SMALL 2
#endif
#ifndef FILLED  // values of a vector that are no padding: fewer where pixels have fewer channels
#define FILLED 4
#endif
#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 2
#endif

#define ADDS (OPERANDS > 0 && KIND_A == MAP)  // a map to the sums
#define THREADS 128
#define STAGES 3  // one is read, the next one is waited for, one is filled

#if TYPE == 1 && __CUDA_ARCH__ >= (SPLIT > 1 ? 900 : 800)
static_assert(WIDTH == 4, "a pack is four channels");

#include "exact_tile.cuh"

struct Work {
    const Operand* operands;
    value* out;
    int pitch, channels;
    const int* list;
    int listed, OH, OW;
};

// BATCH packs of a tile from `first` on, `apart` from each other: their loads do not wait for each other. of_pack: adds
// a pack's sums.
template <class T, class Sum>
__device__ __forceinline__ void finish(const Work& work, const Head& h, const Corner* corners, int first_channel, int first,
                                       int apart, Sum of_pack) {
    int places[T::BATCH], at[T::BATCH];
    float4 bias[T::BATCH];
    Pack added[T::BATCH] = {};
#pragma unroll
    for (int k = 0; k < T::BATCH; k++) {
        const int p = first + k * apart;
        at[k] = first_channel + T::channel_of(p);
        places[k] = at[k] < work.channels ? corners[T::row_of(p)].place : -1;
        bias[k] = *(const float4*)(h.bias + at[k]);
        if (ADDS && places[k] >= 0)
            added[k] = *(const Pack*)((const value*)work.operands[0].at + places[k] * work.operands[0].pitch + at[k]);
    }
#pragma unroll
    for (int k = 0; k < T::BATCH; k++) {
        if (places[k] < 0) continue;  // before sums of other blocks are read: nothing would wait for them, and those end
        float v[4] = {};
        of_pack(v, first + k * apart);
        add_four(v, 0, bias[k]);
        const int n = places[k] / (work.OH * work.OW);
        *(Pack*)(work.out + (size_t)places[k] * work.pitch + at[k]) =
            finished(v, work.operands, work.channels, places[k], n, at[k], ADDS ? &added[k] : nullptr);
    }
}

template <class T> __device__ __forceinline__ void run(char* memory, const Head* head, const Work& work, int early) {
    typename T::Shared& shared = *(typename T::Shared*)memory;
    if (threadIdx.x == 0) shared.head = *head;
    __syncthreads();
    const Head& h = shared.head;
    const int blocks_n = (work.channels + T::N - 1) / T::N, total = (work.listed + T::M - 1) / T::M * blocks_n;
    const int share = (h.steps + SPLIT - 1) / SPLIT;
    const bool together = SPLIT > 1 && rounds(total * SPLIT) * (share + 2) < rounds(total) * (h.steps + 1);
    const int members = together ? SPLIT : 1, rank = blockIdx.x % members, apart = gridDim.x / members;
    const int first_block = blockIdx.x / members;
    if (first_block >= total) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const int first_step = rank * share, steps = min(together ? share : h.steps, h.steps - first_step);  // may be < 0
    Gather<T> gather{shared, first_step, steps};

    const auto describe = [&](int block, int turn) {
        const int first = block / blocks_n * T::M;
        for (int row = threadIdx.x; row < T::M; row += THREADS) {
            const int place = first + row < work.listed ? work.list[first + row] : -1;
            shared.corners[turn][row] = corner_of(h, place, work.OH, work.OW);
        }
    };
    describe(first_block, 0);
    __syncthreads();
    gather.start(0, first_block % blocks_n * T::N, early);
    for (int block = first_block, turn = 0; block < total; block += apart, turn ^= 1) {
        const int first_channel = block % blocks_n * T::N, next = block + apart;
        if (next < total) describe(next, turn ^ 1);
        typename T::Sums sums = {};
        typename T::Ahead even, odd;
        wait<STAGES - 2>();
        __syncthreads();
        typename T::Places here = T::places_of(shared_address(shared.stages[0]), 0);
        T::read_first(even, here);
        for (int step = 0; step < steps; step++) {
            const u32 stage = shared_address(shared.stages[step % STAGES]);
            const u32 next_stage = shared_address(shared.stages[(step + 1) % STAGES]);
#pragma unroll 1
            for (int chunk = 0; chunk < 8; chunk += 2) {
                const typename T::Places there = T::places_of(stage, chunk + 1);
                T::multiply(sums, even, here, odd, there);
                if (chunk == 6) {  // from here on the next stage is read, and the last one is free
                    wait<STAGES - 3>();
                    __syncthreads();
                    gather.load(step + STAGES - 1);
                }
                here = T::places_of(chunk == 6 ? next_stage : stage, (chunk + 2) % 8);
                T::multiply(sums, odd, there, even, here);
            }
            if (SPLIT > 1 && !together && ((step + 1) % share == 0 || step + 1 == steps)) {
#pragma unroll
                for (int p = 0; p < T::PACKS; p++) {
                    float4& part = shared.parts[p][threadIdx.x];
                    float v[4] = {};
                    if (step >= share) add_four(v, 0, part);
                    add_four(v, 0, T::pack(sums, p));
                    part = make_float4(v[0], v[1], v[2], v[3]);
                }
#pragma unroll
                for (int i = 0; i < T::TM * T::TN; i++) sums[i / T::TN][i % T::TN] = 0;
            }
        }
        __syncthreads();  // the stages are free, and the next corners known
        if (next < total) gather.start(turn ^ 1, next % blocks_n * T::N, false);
        const Corner* const corners = shared.corners[turn];
        if (together) {
#pragma unroll
            for (int p = 0; p < T::PACKS; p++) shared.parts[p][threadIdx.x] = T::pack(sums, p);
            cluster_barrier();
            for (int p = rank; p < T::PACKS; p += SPLIT * T::BATCH)
                finish<T>(work, h, corners, first_channel, p, SPLIT, [&](float(&v)[4], int p) {
#pragma unroll
                    for (int other = 0; other < SPLIT; other++)
                        add_from(v, 0, (const float*)&shared.parts[p][threadIdx.x], other);
                });
            cluster_barrier();  // before the sums are overwritten
        } else {
#pragma unroll
            for (int p = 0; p < T::PACKS; p += T::BATCH)
                finish<T>(work, h, corners, first_channel, p, 1, [&](float(&v)[4], int p) {
                    add_four(v, 0, SPLIT > 1 ? shared.parts[SPLIT > 1 ? p : 0][threadIdx.x] : T::pack(sums, p));
                });
            __syncthreads();  // before the corners are overwritten
        }
    }
}

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, AT_ONCE)
    conv(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
         const int* list, const int* count, int OH, int OW, int early) {
    extern __shared__ __align__(128) char memory[];
    begin(early);
    const Work work{operands, out, pitch, channels, list, read_counter(count), OH, OW};
    const int processors = gridDim.x / AT_ONCE;
    const auto pixels = [&](int m, int n) {  // and channels, that the busiest multiprocessor computes in such tiles
        const int tiles = (work.listed + m - 1) / m * ((channels + n - 1) / n);
        return (tiles + processors - 1) / processors * m * n;
    };
    if (SMALL && pixels(64, 64) < pixels(BM, BN))
        run<Tile<64, 64, SMALL ? SMALL : 2>>(memory, head, work, early);
    else
        run<Tile<BM, BN, ACROSS>>(memory, head, work, early);
}
#endif
