// Convolution as a product of matrices on tensor cores: BM listed pixels, wherever they lie, times BN output channels.
// taps.cuh says how rows are gathered, here in pieces of PIECE bytes.
//
// Where few pixels change, few blocks would stream all the weights, and a multiprocessor cannot read more than 30 GB/s
// from the cache. So the SPLIT blocks of a cluster share the steps, and their sums meet in shared memory. Where many
// pixels change, a block computes all SPLIT sums itself and adds them in the same order. So a pixel's bits do not
// depend on what else changed.
//
// TYPE 1 computes in TF32, which rounds; kernels/conv_exact.cu does not. Needs compute capability 8.0 (below it
// kernels/conv.cu runs); clusters need 9.0.
#include "taps.cuh"

#ifndef BM
#define BM 64
#endif
#ifndef BN
#define BN 64
#endif
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARPS_N
#define WARPS_N 2
#endif
#ifndef WARPS_K
#define WARPS_K 1
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef PIECE
#define PIECE 16
#endif

#define THREADS (WARPS_M * WARPS_N * WARPS_K * 32)
#define PIECES (STEP / PIECE)        // of a row
#define ROWS (BM * PIECES / THREADS)  // that a thread gathers a piece of
#define STAGE ((BM + BN) * STEP)
#define TILES_M (BM / WARPS_M / 16)  // of a warp, 16 x 8 each
#define TILES_N (BN / WARPS_N / 8)
#define SLICES (STEP / 32 / WARPS_K)  // of a step, 32 bytes of a row each, that a warp multiplies
#define SUMS_PITCH (BN + 4)
static_assert(BM * SUMS_PITCH * 4 <= STAGES * STAGE, "the sums lie where the stages were");
static_assert(THREADS % PIECES == 0 && BM * PIECES % THREADS == 0 && BN * 8 % THREADS == 0, "whole rows");
static_assert(BM % SPLIT == 0, "each block of a cluster finishes as many rows");
static_assert(TILES_N % 2 == 0, "a load of weights is two tiles");

#if TYPE != 0 && __CUDA_ARCH__ >= (SPLIT > 1 ? 900 : 800)

#if TYPE == 1
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#elif TYPE == 2
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void add(float* to, float left, float right, bool to_others) {
    const float2 others = to_others ? *(float2*)to : make_float2(0, 0);
    *(float2*)to = make_float2(others.x + left, others.y + right);
}

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1)
    conv(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
         const int* list, const int* count, int OH, int OW, int early) {
    extern __shared__ __align__(128) char memory[];
    __shared__ int places[BM];
    const u32 stages = shared_address(memory);
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int warp_m = warp % WARPS_M * (BM / WARPS_M), warp_n = warp / WARPS_M % WARPS_N * (BN / WARPS_N);
    const int warp_k = warp / (WARPS_M * WARPS_N);
    const Head h = *head;
    begin(early);
    const int listed = read_counter(count), blocks_n = (channels + BN - 1) / BN;
    const int total = (listed + BM - 1) / BM * blocks_n;
    const int share = (h.steps + SPLIT - 1) / SPLIT;
    const bool together = SPLIT > 1 && rounds(total * SPLIT) * (share + START_TOGETHER) < rounds(total) * (h.steps + START);
    const int members = together ? SPLIT : 1, rank = blockIdx.x % members, first_block = blockIdx.x / members;
    if (first_block >= total) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const int first_step = rank * share, steps = min(together ? share : h.steps, h.steps - first_step);  // may be < 0

    const int piece = thread % PIECES, first_row = thread / PIECES;

    for (int block = first_block; block < total; block += gridDim.x / members) {
        const int first = block / blocks_n * BM, first_n = block % blocks_n * BN;
        Corner corners[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int row = first_row + r * (THREADS / PIECES), at = first + row;
            corners[r] = corner_of(h, at < listed ? list[at] : -1, OH, OW);
            if (piece == 0) places[row] = corners[r].place;
        }
        const char* weights_at = h.weight + ((size_t)(first_n + thread / 8) * h.steps + first_step) * STEP + thread % 8 * 16;
        const size_t weights_apart = (size_t)(THREADS / 8) * h.steps * STEP;
        Tap tap = h.taps[min(first_step, h.steps - 1) * PIECES + piece];  // of the next step, read ahead
        const auto load_pixels = [&](int step) {
            const u32 a = stages + step % STAGES * STAGE;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int row = first_row + r * (THREADS / PIECES);
                bool inside;
                const char* from = source(h, corners[r], tap, inside);
                copy<PIECE>(place_of(a, row, piece * PIECE / 16) + piece * PIECE % 16, from, inside);
            }
            if (step + 1 < steps) tap = h.taps[(first_step + step + 1) * PIECES + piece];
        };
        const auto load_weights = [&](int step) {
            const u32 b = stages + step % STAGES * STAGE + BM * STEP;
#pragma unroll
            for (int i = 0; i < BN * 8 / THREADS; i++) {
                const int row = thread / 8 + i * (THREADS / 8), chunk = thread % 8;
                copy<16>(place_of(b, row, chunk), weights_at + i * weights_apart + (size_t)step * STEP, true);
            }
        };
        float sums[TILES_M][TILES_N][4] = {};
        float totals[SPLIT > 1 ? TILES_M : 1][TILES_N][4] = {};
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++)
            if (step < steps) load_weights(step);
        if (early && block == first_block) wait_for_predecessor();  // it wrote the pixels, nothing read before
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++) {
            if (step < steps) load_pixels(step);
            end_of_stage();
        }
        for (int step = 0; step < steps; step++) {
            wait<STAGES - 2>();
            __syncthreads();
            if (step + STAGES - 1 < steps) load_pixels(step + STAGES - 1), load_weights(step + STAGES - 1);
            end_of_stage();
            const u32 a = stages + step % STAGES * STAGE, b = a + BM * STEP;
#pragma unroll
            for (int slice = 0; slice < SLICES; slice++) {
                const int k = warp_k * SLICES + slice;
                u32 rows[TILES_M][4], weights[TILES_N / 2][4];
#pragma unroll
                for (int i = 0; i < TILES_M; i++) {
                    load_matrices(rows[i], place_of(a, warp_m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
                    if (TYPE == 1) round_to_tf32(rows[i]);
                }
#pragma unroll
                for (int i = 0; i < TILES_N / 2; i++)
                    load_matrices(weights[i], place_of(b, warp_n + i * 16 + (lane & 7) + (lane >> 4) * 8,
                                                       k * 2 + (lane >> 3 & 1)));
#pragma unroll
                for (int i = 0; i < TILES_M; i++)
#pragma unroll
                    for (int j = 0; j < TILES_N; j++)
                        multiply(sums[i][j], rows[i], weights[j / 2][j % 2 * 2], weights[j / 2][j % 2 * 2 + 1]);
            }
            if (SPLIT > 1 && !together && ((step + 1) % share == 0 || step + 1 == steps)) {
#pragma unroll
                for (int i = 0; i < TILES_M; i++)
#pragma unroll
                    for (int j = 0; j < TILES_N; j++)
#pragma unroll
                        for (int k = 0; k < 4; k++) totals[SPLIT > 1 ? i : 0][j][k] += sums[i][j][k], sums[i][j][k] = 0;
            }
        }
        if (SPLIT > 1 && !together) {
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
#pragma unroll
                for (int j = 0; j < TILES_N; j++)
#pragma unroll
                    for (int k = 0; k < 4; k++) sums[i][j][k] = totals[SPLIT > 1 ? i : 0][j][k];
        }
        wait<0>();
        __syncthreads();
        // Through shared memory, so that a thread finishes neighbouring channels of one pixel.
        float* staged = (float*)memory;
#pragma unroll
        for (int k = 0; k < WARPS_K; k++) {
            if (warp_k == k) {
#pragma unroll
                for (int i = 0; i < TILES_M; i++)
#pragma unroll
                    for (int j = 0; j < TILES_N; j++) {
                        float* to = staged + (warp_m + i * 16 + lane / 4) * SUMS_PITCH + warp_n + j * 8 + lane % 4 * 2;
                        add(to, sums[i][j][0], sums[i][j][1], k > 0);
                        add(to + 8 * SUMS_PITCH, sums[i][j][2], sums[i][j][3], k > 0);
                    }
            }
            __syncthreads();
        }
        if (together) cluster_barrier();
        const int rows = BM / members;
        for (int i = thread; i < rows * (BN / WIDTH); i += THREADS) {
            const int row = rank * rows + i / (BN / WIDTH), n = i % (BN / WIDTH) * WIDTH, place = places[row];
            if (place < 0 || first_n + n >= channels) continue;
            const float* mine = staged + row * SUMS_PITCH + n;
            float v[WIDTH] = {};
#pragma unroll
            for (int j = 0; j < WIDTH; j += 4) {
                if (together)
#pragma unroll
                    for (int other = 0; other < SPLIT; other++) add_from(v, j, mine + j, other);
                else
                    add_four(v, j, *(const float4*)(mine + j));
            }
#pragma unroll
            for (int j = 0; j < WIDTH; j++) v[j] += h.bias[first_n + n + j];
            finish(v, operands, out, pitch, channels, place, place / (OH * OW), first_n + n);
        }
        if (together)
            cluster_barrier();  // before the sums are overwritten
        else
            __syncthreads();
    }
}
#endif
