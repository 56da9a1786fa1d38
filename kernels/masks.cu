// Masks of changed pixels, stored as one 64-bit word per tile of 8x8 pixels.
//
//   word[(n * TY + ty) * TX + tx], bit y * 8 + x   is pixel (ty * 8 + y, tx * 8 + x) of stream n
//   TY = ceil(H / 8), TX = ceil(W / 8); bits outside the map are 0, going in and coming out
//
// What the kernels mean is deltaconvert.reach.Window.spread; tests/kernels/test_masks.py holds them against it. An
// output pixel that sees nothing but padding is never set here: Window.orphans says which they are, if any.
//
// Every kernel takes any grid and any block: a frame is one CUDA graph, so grids are fixed when it is captured.

#ifndef K        // shrink2: side of the window
#define K 3
#endif
#ifndef PAD      // shrink2: padding at the top and left, pixels
#define PAD 1
#endif

typedef unsigned long long u64;

#define FOR_EACH(i, count) \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x)

// How many tiles of 8 cover `pixels`.
__device__ __forceinline__ int tiles(int pixels) { return (pixels + 7) >> 3; }

// The bits of tile (ty, tx) that lie inside an H x W map.
__device__ __forceinline__ u64 inside(int ty, int tx, int H, int W) {
    const int rows = H - ty * 8, cols = W - tx * 8;
    const u64 row = cols >= 8 ? 0xffull : (1ull << cols) - 1;
    const u64 all = row * 0x0101010101010101ull;
    return rows >= 8 ? all : all & ((1ull << rows * 8) - 1);
}

// The word of tile (ty, tx), 0 outside the map. `words` points at the first tile of the stream.
__device__ __forceinline__ u64 word_at(const u64* words, int ty, int tx, int TY, int TX) {
    return (unsigned)ty < (unsigned)TY && (unsigned)tx < (unsigned)TX ? words[(size_t)ty * TX + tx] : 0;
}

// A word with each row moved one pixel to the right or left; the pixel that enters comes from the word beside it.
__device__ __forceinline__ u64 from_left(u64 word, u64 left) {
    return (word & 0x7f7f7f7f7f7f7f7full) << 1 | (left >> 7 & 0x0101010101010101ull);
}
__device__ __forceinline__ u64 from_right(u64 word, u64 right) {
    return (word >> 1 & 0x7f7f7f7f7f7f7f7full) | (right & 0x0101010101010101ull) << 7;
}

// Candidates of a 3x3 window, stride 1, padding 1.   mask, out: N x TY x TX words of an H x W map.
//
// Along the rows first, for the tile and the ones above and below it; then along the columns, where a row is a byte.
extern "C" __global__ void dilate3x3(const u64* __restrict__ mask, u64* __restrict__ out, int N, int H, int W) {
    const int TY = tiles(H), TX = tiles(W);
    FOR_EACH(i, N * TY * TX) {
        const int n = i / (TY * TX), ty = i / TX % TY, tx = i % TX;
        const u64* stream = mask + (size_t)n * TY * TX;
        u64 strip[3];  // tiles above, here, below
#pragma unroll
        for (int j = 0; j < 3; j++) {
            const u64 word = word_at(stream, ty + j - 1, tx, TY, TX);
            const u64 left = word_at(stream, ty + j - 1, tx - 1, TY, TX);
            const u64 right = word_at(stream, ty + j - 1, tx + 1, TY, TX);
            strip[j] = word | from_left(word, left) | from_right(word, right);
        }
        const u64 spread = strip[1] | strip[1] << 8 | strip[0] >> 56 | strip[1] >> 8 | strip[2] << 56;
        out[i] = spread & inside(ty, tx, H, W);
    }
}

// The even bits of 16, side by side: bit 2x goes to bit x.
__device__ __forceinline__ u64 every_second(u64 bits) {
    bits &= 0x5555;
    bits = (bits | bits >> 1) & 0x3333;
    bits = (bits | bits >> 2) & 0x0f0f;
    return (bits | bits >> 4) & 0x00ff;
}

// Candidates of a K x K window, stride 2, padding PAD: output pixel y reads input rows 2y - PAD .. 2y - PAD + K - 1.
// mask: N x tiles(H) x tiles(W) words; out: N x tiles(OH) x tiles(OW) words of the OH x OW output.
//
// An output tile reads SPAN input rows and columns. They start in the first tile of an AROUND x AROUND block, FIRST
// pixels in; all of it is known when the kernel is compiled, so every shift below is a constant.
#define SPAN (14 + K)
#define FIRST (-(PAD) & 7)
#define BEFORE ((PAD + 7) / 8)
#define AROUND ((FIRST + SPAN + 7) / 8)
static_assert(FIRST + SPAN <= 64, "shrink2: a row of its window must fit into 64 bits");

extern "C" __global__ void shrink2(const u64* __restrict__ mask, u64* __restrict__ out, int N, int H, int W,
                                   int OH, int OW) {
    const int TY = tiles(H), TX = tiles(W), OTY = tiles(OH), OTX = tiles(OW);
    FOR_EACH(i, N * OTY * OTX) {
        const int n = i / (OTY * OTX), ty = i / OTX % OTY, tx = i % OTX;
        const u64* stream = mask + (size_t)n * TY * TX;
        u64 spread = 0;
#pragma unroll
        for (int j = 0; j < AROUND; j++) {
            u64 words[AROUND];
#pragma unroll
            for (int k = 0; k < AROUND; k++)
                words[k] = word_at(stream, 2 * ty - BEFORE + j, 2 * tx - BEFORE + k, TY, TX);
#pragma unroll
            for (int r = 0; r < 8; r++) {
                const int row = j * 8 + r - FIRST;  // of the SPAN rows
                if (row < 0 || row >= SPAN) continue;
                u64 line = 0, taps = 0;
#pragma unroll
                for (int k = 0; k < AROUND; k++) line |= (words[k] >> r * 8 & 0xff) << k * 8;
                line >>= FIRST;
#pragma unroll
                for (int k = 0; k < K; k++) taps |= line >> k;
                taps = every_second(taps);
#pragma unroll
                for (int y = 0; y < 8; y++)
                    if (2 * y <= row && row < 2 * y + K) spread |= taps << y * 8;
            }
        }
        out[i] = spread & inside(ty, tx, OH, OW);
    }
}

// Append the places of the words that are not empty to `list`, which has room for `total` more; `count` is its length.
//
// The order is the hardware's and differs from run to run: a kernel that reads the list must not let a pixel's value
// depend on a tile's place in it.
extern "C" __global__ void list_tiles(const u64* __restrict__ mask, int* __restrict__ list, int* count, int total) {
    FOR_EACH(i, total) {
        if (mask[i]) list[atomicAdd(count, 1)] = i;
    }
}
