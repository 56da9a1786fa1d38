// Convolution as a product of matrices: BM listed pixels, wherever they lie, times BN output channels. On tensor cores, or
// EXACT: in single precision by ordinary instructions.
//
// The rows of the product are gathered: for each pixel and tap the input pixel's channels, 0 outside the map. A step of
// the sum is 128 bytes of every row, in PIECE-byte pieces that a table takes to (tap, channel).
//
// Where few pixels change, a few blocks would stream all the weights, and a multiprocessor draws 30 GB/s from the cache
// whatever it does. So the SPLIT blocks of a cluster share the steps; their sums meet in shared memory. Where many pixels
// change, a block computes all SPLIT sums itself and adds them in the same order: a pixel's bits depend on nothing else
// that changed.
//
// TYPE 1 computes in TF32 where it is not EXACT. Below compute capability 8.0 kernels/conv.cu runs instead; clusters need
// 9.0.
#include "tensor.cuh"

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
#ifndef EXACT
#define EXACT 0
#endif
#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 1
#endif
#ifndef TRANSPOSE  // with its stride, which divides in every step
#define TRANSPOSE 0
#define STRIDE_H 1
#define STRIDE_W 1
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
static_assert(TYPE == 1 || !EXACT, "the others are exact on tensor cores");

struct Tap {
    short dy, dx;
    int channel;  // in bytes; -1 past the last tap
};
struct Head {
    const char* at;      // N x H x W pixels, `pitch` bytes apart
    const char* weight;  // output channels, a multiple of BN, x steps * STEP bytes
    const float* bias;
    const Tap* taps;  // of each piece
    int pitch, H, W, sh, sw, ph, pw, steps;
};

#if TYPE != 0 && __CUDA_ARCH__ >= (SPLIT > 1 ? 900 : 800)

// Copy `bytes` behind the computation; 0 where not `inside`.
template <int bytes> __device__ __forceinline__ void copy(u32 to, const void* from, bool inside) {
    const int taken = inside ? bytes : 0;
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(taken));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(taken));
}

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

// EXACT: a warp's 16 x 8 sums lie four to a thread as well: rows 4 apart of one column, eight columns side by side. Each
// sum adds up its products one after the other.
typedef float Sums[TILES_M][TILES_N][4];
__device__ __forceinline__ void multiply_exactly(Sums& sums, const char* rows, const char* weights, int chunk) {
    const int lane = threadIdx.x & 31;
    float4 w[TILES_N];
#pragma unroll
    for (int j = 0; j < TILES_N; j++) w[j] = *(const float4*)(weights + place_of(0, j * 8 + lane % 8, chunk));
#pragma unroll
    for (int i = 0; i < TILES_M * 4; i++) {
        const float4 a = *(const float4*)(rows + place_of(0, i * 4 + lane / 8, chunk));
#pragma unroll
        for (int j = 0; j < TILES_N; j++) {
            float& sum = sums[i / 4][j][i % 4];
            sum = __fmaf_rn(a.x, w[j].x, sum), sum = __fmaf_rn(a.y, w[j].y, sum);
            sum = __fmaf_rn(a.z, w[j].z, sum), sum = __fmaf_rn(a.w, w[j].w, sum);
        }
    }
}

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, AT_ONCE)
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
    const int listed = *count, blocks_n = (channels + BN - 1) / BN;
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
        int ys[ROWS], xs[ROWS], images[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int row = first_row + r * (THREADS / PIECES), at = first + row;
            const int place = at < listed ? list[at] : -1;
            const int n = place / (OH * OW), pixel = place - n * OH * OW, y = pixel / OW, x = pixel - y * OW;
            images[r] = n * h.H;
            ys[r] = place < 0 ? -20000 : TRANSPOSE ? y + h.ph : y * h.sh - h.ph;
            xs[r] = TRANSPOSE ? x + h.pw : x * h.sw - h.pw;
            if (piece == 0) places[row] = place;
        }
        const char* weights_at = h.weight + ((size_t)(first_n + thread / 8) * h.steps + first_step) * STEP + thread % 8 * 16;
        const size_t weights_apart = (size_t)(THREADS / 8) * h.steps * STEP;
        Tap tap = h.taps[min(first_step, h.steps - 1) * PIECES + piece];  // of the next step: known before it is needed
        const auto load_pixels = [&](int step) {
            const u32 a = stages + step % STAGES * STAGE;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int row = first_row + r * (THREADS / PIECES);
                int y = ys[r] + tap.dy, x = xs[r] + tap.dx;
                bool inside = tap.channel >= 0;
                if (TRANSPOSE) {
                    inside &= y >= 0 && x >= 0 && y % STRIDE_H == 0 && x % STRIDE_W == 0;
                    y /= STRIDE_H, x /= STRIDE_W;
                }
                inside &= (u32)y < (u32)h.H && (u32)x < (u32)h.W;
                const char* from = h.at + ((size_t)(images[r] + y) * h.W + x) * h.pitch + tap.channel;
                const u32 to = place_of(a, row, piece * PIECE / 16) + piece * PIECE % 16;
                copy<PIECE>(to, inside ? from : h.at, inside);
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
        Sums sums = {};
        float totals[SPLIT > 1 ? TILES_M : 1][TILES_N][4] = {};
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++)
            if (step < steps) load_weights(step);
        if (early && block == first_block) wait_for_predecessor();  // it wrote the pixels, and nothing else read so far
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
#if EXACT
            const char* rows = memory + step % STAGES * STAGE + warp_m * STEP;
            const char* weights = memory + step % STAGES * STAGE + (BM + warp_n) * STEP;
#pragma unroll 2  // all at once takes every register
            for (int chunk = 0; chunk < 2 * SLICES; chunk++)
                multiply_exactly(sums, rows, weights, warp_k * 2 * SLICES + chunk);
#else
            const u32 a = stages + step % STAGES * STAGE, b = a + BM * STEP;
#pragma unroll
            for (int slice = 0; slice < SLICES; slice++) {
                const int k = warp_k * SLICES + slice;
                u32 rows[TILES_M][4], weights[TILES_N / 2][4];
#pragma unroll
                for (int i = 0; i < TILES_M; i++) {
                    load_matrices(rows[i], place_of(a, warp_m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
#if TYPE == 1
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rows[i][j]) : "f"(__uint_as_float(rows[i][j])));
#endif
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
#endif
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
#if EXACT
                        float* to = staged + (warp_m + i * 16 + lane / 8) * SUMS_PITCH + warp_n + j * 8 + lane % 8;
#pragma unroll
                        for (int r = 0; r < 4; r++)
                            to[r * 4 * SUMS_PITCH] = (k > 0 ? to[r * 4 * SUMS_PITCH] : 0) + sums[i][j][r];
#else
                        float* to = staged + (warp_m + i * 16 + lane / 4) * SUMS_PITCH + warp_n + j * 8 + lane % 4 * 2;
                        add(to, sums[i][j][0], sums[i][j][1], k > 0);
                        add(to + 8 * SUMS_PITCH, sums[i][j][2], sums[i][j][3], k > 0);
#endif
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
