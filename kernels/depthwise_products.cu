// Depthwise convolution of listed pixels on tensor cores, in half or bfloat16. A tap of 8 channels is their product
// with a matrix that has the weights on its diagonal and 0 elsewhere. One instruction makes a tap of 16 pixels; in the
// same time 32 threads could convert and multiply for four. Seven of eight products are by 0, so a channel that is
// infinite or NaN makes the other 7 of its pixel NaN.
//
// A warp computes 16 channels of a tile's 16 columns and half of its rows. A row of the tile is read once for each
// shift, for all output rows that it is a tap of. Sums go over taps in their order, whatever else changed. They differ
// from those of depthwise.cu in the last bits, so a layer is always computed by the same one of the two.
//
// Where few pixels are listed, a tile is computed even for a single one.
#include "depthwise.cuh"

#ifndef KH
#define KH 5
#endif
#ifndef KW
#define KW 5
#endif
#ifndef SW  // the stride, of rows as well; 1 or 2
#define SW 1
#endif

#define THREADS 128

#if __CUDA_ARCH__ >= 800 && (TYPE == 2 || TYPE == 3)
constexpr int TAPS = KH * KW, SLOT = 32, ROW_PART = 16;  // channels of a slot; columns of a tile
#include "staged.cuh"

constexpr int ROWS = HIGH / 2 < 1 ? 1 : HIGH / 2, IN_ROWS = rows_in(ROWS);  // that a warp makes, and that it reads
#if TYPE == 2
#define PRODUCT "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
#else
#define PRODUCT "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"
#endif

// Pixels that are SW apart are neighbours here, and eight of them lie in different banks.
__device__ __forceinline__ int piece_at(int col, int piece) {
    const int slot = col / SW + col % SW * (IN_W / SW);
    return slot * PIECES + (piece ^ (slot >> 1 & 3));
}

__device__ __forceinline__ void load_pixels(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void multiply(float (&sums)[4], u32 upper, u32 lower, u32 weights) {
    asm(PRODUCT " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(upper), "r"(lower), "r"(weights));
}

// A thread's part of 8 x 8 weights, of which one thread in four holds one.
__device__ __forceinline__ u32 on_diagonal(const value* weights, int channel, int pitch, int lane) {
    if (lane / 8 != lane % 4 || channel >= pitch) return 0;
    return (u32)weights[channel] << lane / 4 % 2 * 16;
}

extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE)
    depthwise(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
              const int* list, const int* count, int OH, int OW, int early, u32* mask, int* changed,
              Threshold threshold, int* marked, int* marked_count, const u32* bits) {
    if (TOGETHER) {
        const Sibling& mine = ((const Sibling*)head)[blockIdx.y];
        head = &mine.head, out = mine.out, pitch = mine.pitch;
    }
    __shared__ Tiles shared;
    const Head h = *head;
    begin(early);
    if (read_counter(count) == 0) {
        if (early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    const int chunks = (channels + SLOT - 1) / SLOT, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int grid = gridDim.x, teams = max(1, grid / chunks), team = blockIdx.x / chunks;
    const int upper = warp / 2 * ROWS, of_warp = warp % 2 * 16;  // its first row, its first channel of a slot's
    if (team >= teams) return;
    for (int chunk = blockIdx.x % chunks; chunk < chunks; chunk += max(grid, chunks)) {
        const int first = chunk * SLOT, mine = first + of_warp;
        const bool has_channels = first + threadIdx.x % PIECES * VECTOR < h.pitch;
        u32 weights[TAPS][2];
        number bias[2][2] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++)
                weights[tap][half] = on_diagonal(h.weight + (size_t)tap * h.pitch, mine + half * 8 + lane / 4, h.pitch, lane);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int channel = mine + half * 8 + lane % 4 * 2 + j;
                if (channel < h.pitch) bias[half][j] = h.bias[channel];
            }
        }
        int shifts[KW];  // where the pixel lies that this thread reads for each shift
#pragma unroll
        for (int k = 0; k < KW; k++) shifts[k] = piece_at((lane & 15) * SW + k, of_warp / VECTOR + lane / 16) * 16;
        const auto sum = [&](int k, int n, int top, int left) {
            if ((shared.runs[k] >> upper & ((1 << ROWS) - 1)) == 0) return;
            const u32 staged = (u32)__cvta_generic_to_shared(shared.staged[k % 2] + upper * SW * IN_W * PIECES);
            float sums[ROWS][2][4];
#pragma unroll
            for (int row = 0; row < ROWS; row++)
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[row][half][j] = bias[half][j % 2];
#pragma unroll
            for (int in = 0; in < IN_ROWS; in++)
#pragma unroll
                for (int col = 0; col < KW; col++) {
                    u32 pixels[4];
                    load_pixels(pixels, staged + in * IN_W * PIECES * 16 + shifts[col]);
#pragma unroll
                    for (int row = 0; row < ROWS; row++) {
                        const int tap_row = in - row * SW;
                        if (tap_row < 0 || tap_row >= KH) continue;
                        const int tap = tap_row * KW + col;
                        multiply(sums[row][0], pixels[0], pixels[1], weights[tap][0]);
                        multiply(sums[row][1], pixels[2], pixels[3], weights[tap][1]);
                    }
                }
            // Two threads side by side hold two channels each of both halves; one takes four of the first, the other
            // four of the second half.
            const int odd = lane & 1, c = mine + odd * 8 + (lane & 2) * 2;
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                const u32 listed = shared.rows[k][upper + row];
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    number v[WIDTH];
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const float a = sums[row][0][lower * 2 + j], b = sums[row][1][lower * 2 + j];
                        const float other = __shfl_xor_sync(~0u, odd ? a : b, 1);
                        v[j] = odd ? other : a, v[2 + j] = odd ? b : other;
                    }
                    const int pixel = lane / 4 + lower * 8;
                    if (!(listed >> pixel & 1) || c >= channels) continue;
                    const int place = (n * OH + top + upper + row) * OW + left + pixel;
                    finish(v, operands, out, pitch, channels, place, n, c);
                }
            }
        };
        walk(shared, h, first, has_channels, bits, team, teams, OH, OW, early, [](int) {}, sum);
    }
}
#endif
