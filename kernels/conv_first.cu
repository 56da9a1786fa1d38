// Convolution with stride 2 of a map of at most four channels, a network's frame, on tensor cores in half or bfloat16. The
// pixels of a window's row lie side by side in a tile of the map in shared memory, and windows of neighbours 16 bytes
// apart: so a row of windows is a matrix as it lies there, and nothing is gathered. Four pixels are a step of the sum; of
// the last one what lies behind the window counts as 0.
//
// A warp is 16 windows across of some rows of a tile, and N8 * 8 channels; CHANNEL_WARPS of the four share the channels,
// the others the rows. Sums go over rows and steps in their order, whatever else changed.
#include "tail.cuh"
#include "compare.cuh"

#ifndef KH
#define KH 3
#endif
#ifndef KW
#define KW 3
#endif
#ifndef N8  // groups of 8 channels of a warp
#define N8 4
#endif
#ifndef CHANNEL_WARPS  // 1, 2 or 4
#define CHANNEL_WARPS 1
#endif
#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 4
#endif

#define THREADS 128
#define SW 2

struct Head {
    const value* at;      // N x H x W x 4
    const u32* weight;    // of each group, row, step: 32 threads x 2, as an instruction takes them
    const number* bias;   // whole groups
    int pitch, H, W, sh, sw, ph, pw, dh, dw, images;
};

#if __CUDA_ARCH__ >= 800 && (TYPE == 2 || TYPE == 3)
constexpr int SLOT = 4, ROW_PART = 16;  // all of a tile's
#include "staged.cuh"

constexpr int STEPS = (KW + 3) / 4, LAST = KW * 4 - (STEPS - 1) * 16;  // of a window's row; values of its last one
constexpr int ROW_WARPS = 4 / CHANNEL_WARPS, ROWS = HIGH / ROW_WARPS;
#if TYPE == 2
#define PRODUCT "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define PRODUCT "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif

__device__ __forceinline__ int piece_at(int col, int piece) { return col; }

// 16 windows' step of a row.
__device__ __forceinline__ void load_windows(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void multiply(float (&sums)[4], const u32 (&windows)[4], const u32 (&weights)[2]) {
    asm(PRODUCT " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(windows[0]), "r"(windows[1]), "r"(windows[2]), "r"(windows[3]), "r"(weights[0]), "r"(weights[1]));
}

// bits: those of the list.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE)
    conv(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
         const int* list, const int* count, int OH, int OW, int early, const u32* bits) {
    __shared__ Tiles shared;
    const Head h = *head;
    begin(early);
    if (*count == 0) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int upper = warp / CHANNEL_WARPS * ROWS, mine = warp % CHANNEL_WARPS * N8;  // its first row, its first group
    u32 weights[N8][KH][STEPS][2];
    number bias[N8][2];
#pragma unroll
    for (int group = 0; group < N8; group++) {
        const bool has = (mine + group) * 8 < channels;
#pragma unroll
        for (int row = 0; row < KH; row++)
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    weights[group][row][step][j] =
                        has ? h.weight[((((mine + group) * KH + row) * STEPS + step) * 32 + lane) * 2 + j] : 0;
#pragma unroll
        for (int j = 0; j < 2; j++) bias[group][j] = has ? h.bias[(mine + group) * 8 + lane % 4 * 2 + j] : 0;
    }
    const int window = (lane & 15) * 16 + lane / 16 * 16;  // bytes from a row's begin to what this thread points at
    const auto sum = [&](int k, int n, int top, int left) {
#pragma unroll 1
        for (int row = upper; row < upper + ROWS; row++) {
            const u32 listed = shared.rows[k][row];
            if (listed == 0) continue;
            const u32 staged = (u32)__cvta_generic_to_shared(shared.staged[k % 2] + row * SW * IN_W) + window;
            float sums[N8 + N8 % 2][4];
#pragma unroll
            for (int group = 0; group < N8 + N8 % 2; group++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[group][j] = group < N8 ? bias[group < N8 ? group : 0][j % 2] : 0;
#pragma unroll
            for (int tap = 0; tap < KH; tap++)
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    u32 windows[4];
                    load_windows(windows, staged + tap * IN_W * COPY + step * 32);
                    if (step == STEPS - 1) {  // others are whole
                        const int at = lane % 4 * 2;
                        if (at >= LAST) windows[0] = windows[1] = 0;
                        if (at + 8 >= LAST) windows[2] = windows[3] = 0;
                    }
#pragma unroll
                    for (int group = 0; group < N8; group++) multiply(sums[group], windows, weights[group][tap][step]);
                }
            // Two threads side by side hold two channels each of two groups; one takes four of the first, the other
            // four of the second group.
            const int odd = lane & 1;
#pragma unroll
            for (int group = 0; group < N8; group += 2) {
                const int c = (mine + group) * 8 + odd * 8 + (lane & 2) * 2;
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    number v[WIDTH];
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const float a = sums[group][lower * 2 + j], b = sums[group + 1][lower * 2 + j];
                        const float other = __shfl_xor_sync(~0u, odd ? a : b, 1);
                        v[j] = odd ? other : a, v[2 + j] = odd ? b : other;
                    }
                    const int pixel = lane / 4 + lower * 8;
                    if (!(listed >> pixel & 1) || c >= channels) continue;
                    finish(v, operands, out, pitch, channels, (n * OH + top + row) * OW + left + pixel, n, c);
                }
            }
        }
    };
    walk(shared, h, 0, true, bits, blockIdx.x, gridDim.x, OH, OW, early, [](int) {}, sum);
}
#endif
