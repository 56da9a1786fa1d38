// Which output pixels read a change, from the masks of the inputs (one bit a pixel): by words of 32 pixels of a row for
// common reaches, else pixel by pixel.
enum { PIXEL, WINDOW, TRANSPOSED, SOURCES, EVERYTHING };

// Which pixels of one input an output pixel reads; deltaconvert.reach, packed by backends/cuda/listings.py.
struct Reach {
    const u32* mask;
    const int* changed;
    const int* rows;  // SOURCES: OH x row_taps, OW x col_taps
    const int* cols;
    const int* spans;  // SOURCES: for each 32 output pixels the first column that they read; null if these lie apart
    int kind, H, W, kh, kw, sh, sw, ph, pw, dh, dw, row_taps, col_taps;
    int of;  // the listing of the same launch that makes the mask; or -1
    int kept;    // where the mask of another launch is kept in shared memory, in words; or -1
    int copies;  // whether this reach has it copied there
};

// The 32 bits of a row of `words` words from column `first` on, wherever that is.
__device__ __forceinline__ u32 bits_from(const u32* row, int words, int first) {
    const int at = first >> 5;
    const u32 low = (u32)at < (u32)words ? row[at] : 0, high = (u32)(at + 1) < (u32)words ? row[at + 1] : 0;
    return __funnelshift_r(low, high, first & 31);
}

__device__ __forceinline__ bool is_set(const u32* row, int col) { return row[col >> 5] >> (col & 31) & 1; }

// The input row of tap i, or one outside the map.
__device__ __forceinline__ int row_of(const Reach& r, int y, int i) {
    if (r.kind != TRANSPOSED) return y * r.sh - r.ph + i * r.dh;
    const int row = y + r.ph - i * r.dh;
    return row % r.sh ? -1 : row / r.sh;
}

// Whether an output pixel reads a change, for reaches that `candidates` below does not know.
__device__ __forceinline__ bool reads_change(const Reach& r, int n, int y, int x) {
    const int words = words_of(r.W);
    const u32* mask = r.mask + (size_t)n * r.H * words;
    if (r.kind == SOURCES) {
        for (int i = 0; i < r.row_taps; i++)
            for (int j = 0; j < r.col_taps; j++) {
                const int row = r.rows[y * r.row_taps + i], col = r.cols[x * r.col_taps + j];  // -1 outside
                if (row >= 0 && col >= 0 && is_set(mask + row * words, col)) return true;
            }
        return false;
    }
    if (r.kind == WINDOW && r.dw == 1) {  // by words: boxes of a mean are hundreds of pixels
        u32 any = 0;
#pragma unroll 4
        for (int i = 0; i < r.kh; i++) {
            const int row = row_of(r, y, i);
            if ((u32)row >= (u32)r.H) continue;
            for (int j = 0; j < r.kw; j += 32)
                any |= bits_from(mask + row * words, words, x * r.sw - r.pw + j) & ~0u >> max(0, 32 - (r.kw - j));
        }
        return any != 0;
    }
    for (int i = 0; i < r.kh; i++) {
        const int row = row_of(r, y, i);
        if ((u32)row >= (u32)r.H) continue;
        for (int j = 0; j < r.kw; j++) {
            int col = r.kind == WINDOW ? x * r.sw - r.pw + j * r.dw : x + r.pw - j * r.dw;
            if (r.kind == TRANSPOSED) {
                if (col < 0 || col % r.sw) continue;
                col /= r.sw;
            }
            if ((u32)col < (u32)r.W && is_set(mask + row * words, col)) return true;
        }
    }
    return false;
}

// Whether `candidates` knows a reach.
__device__ __forceinline__ bool has_words(const Reach& r) {
    if (r.kind == TRANSPOSED) return r.sw == 2 && r.dw == 1 && r.kw <= 32;
    return r.kind == PIXEL || (r.kind == WINDOW && r.sw <= 2 && r.kw <= 32);
}

// Every second bit, from the first on.
__device__ __forceinline__ u32 even(u32 bits) {
    bits &= 0x55555555;
    bits = (bits | bits >> 1) & 0x33333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff;
    return (bits | bits >> 8) & 0xffff;
}

// The reverse: 16 bits with a 0 behind each.
__device__ __forceinline__ u32 apart(u32 bits) {
    bits = (bits | bits << 8) & 0x00ff00ff;
    bits = (bits | bits << 4) & 0x0f0f0f0f;
    bits = (bits | bits << 2) & 0x33333333;
    return (bits | bits << 1) & 0x55555555;
}

// Which of the output pixels x .. x + 31 of row y read a change in `wide` columns side by side, the first of them at
// column `first` for pixel x. A transposed window of stride 2 is one of stride 1 over a map with zeros between.
__device__ __forceinline__ u32 near(const Reach& r, const u32* mask, int y, int first, int wide) {
    const bool zeros = r.kind == TRANSPOSED;
    const int words = words_of(r.W), at = first >> 5, stride = zeros ? 1 : r.sw;
    u32 seen[4] = {};  // the union of the window's rows from word `at` on
    int cols[4];
#pragma unroll
    for (int k = 0; k < 4; k++) cols[k] = min(max(zeros ? (at + k) >> 1 : at + k, 0), words - 1);
    for (int top = 0; top < r.kh; top += 4) {
        u32 read[4][4];  // all of these loads are in flight at once
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row_of(r, y, top + i);
            const bool inside = top + i < r.kh && (u32)row < (u32)r.H;
#pragma unroll
            for (int k = 0; k < 4; k++) read[i][k] = inside && k < stride + 2 ? mask[row * words + cols[k]] : 0;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) seen[k] |= read[i][k];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (cols[k] != (zeros ? (at + k) >> 1 : at + k)) seen[k] = 0;  // beside the map
        if (zeros) seen[k] = apart(seen[k] >> (((at + k) & 1) * 16) & 0xffff);
    }
    u32 from[3], out[2] = {};
#pragma unroll
    for (int k = 0; k < 3; k++) from[k] = __funnelshift_r(seen[k], seen[k + 1], first & 31);
    for (int j = 0; j < wide; j++) {
        out[0] |= __funnelshift_r(from[0], from[1], j);
        out[1] |= __funnelshift_r(from[1], from[2], j);
    }
    return stride == 1 ? out[0] : even(out[0]) | even(out[1]) << 16;
}

// The output pixels x .. x + 31 of a row that read a change; x is a multiple of 32.
__device__ __forceinline__ u32 candidates(const Reach& r, int n, int y, int x) {
    const int words = words_of(r.W);
    const u32* mask = r.mask + (size_t)n * r.H * words;
    if (r.kind == PIXEL) return mask[y * words + x / 32];
    const int first = r.kind == TRANSPOSED ? x + r.pw - r.kw + 1 : x * r.sw - r.pw;
    const int times = r.dw == 1 ? 1 : r.kw;  // with a dilation its columns are looked at one by one
    u32 word = 0;
    for (int j = 0; j < times; j++) word |= near(r, mask, y, first + j * r.dw, times == 1 ? r.kw : 1);
    return word;
}

// The same for tables whose columns lie near each other. Called by a whole warp; (y, x) is the first pixel of a lane's
// word, with y past the map if it has none.
__device__ __forceinline__ u32 listed_sources(const Reach& r, int n, int y, int x, int H, int W) {
    const int words = words_of(r.W), lane = threadIdx.x & 31;
    const u32* mask = r.mask + (size_t)n * r.H * words;
    u32 seen = 0, found = 0;  // the 32 columns from `span` on, of all rows
    const int span = y < H ? r.spans[x / 32] : 0;
    for (int i = 0; i < r.row_taps; i++) {
        const int row = y < H ? r.rows[y * r.row_taps + i] : -1;
        if (row >= 0) seen |= bits_from(mask + row * words, words, span);
    }
    for (u32 left = __ballot_sync(~0u, seen != 0); left; left &= left - 1) {  // a word at a time, a lane a pixel
        const int other = __ffs(left) - 1;
        const u32 bits = __shfl_sync(~0u, seen, other);
        const int from = __shfl_sync(~0u, span, other), pixel = __shfl_sync(~0u, x, other) + lane;
        bool reads = false;
        if (pixel < W)
            for (int j = 0; j < r.col_taps; j++) {
                const int col = r.cols[pixel * r.col_taps + j];
                reads |= col >= 0 && bits >> (col - from) & 1;
            }
        const u32 of_word = __ballot_sync(~0u, reads);
        if (lane == other) found = of_word;
    }
    return found;
}
