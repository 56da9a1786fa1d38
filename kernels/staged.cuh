// Tiles of a map in shared memory, for depthwise convolutions: which tiles have listed pixels, what these read, and a
// block's walk over its tiles, with the next one copied meanwhile. A pixel has SLOT channels there; ROW_PART pixels of
// a row are summed up together.
//
// A source defines SLOT and ROW_PART, includes this, and then defines where a tile's pieces of 16 bytes lie.
constexpr int PIECES = SLOT * sizeof(value) / 16;
constexpr int ROOM = 40 << 10;  // bytes; what a block marks lies beside it
constexpr int WIDE = 16, RUNS = WIDE / ROW_PART, IN_W = ((WIDE - 1) * SW + KW + 1) / 2 * 2;
constexpr int rows_in(int high) { return (high - 1) * SW + KH; }
constexpr bool has_room(int high) { return 2 * rows_in(high) * IN_W * SLOT * sizeof(value) <= ROOM; }
constexpr int HIGH = has_room(8) ? 8 : has_room(4) ? 4 : has_room(2) ? 2 : 1;
constexpr int IN_H = rows_in(HIGH);

template <bool> struct OfColumns { typedef u32 type; };
template <> struct OfColumns<true> { typedef u64 type; };
typedef OfColumns<(IN_W > 32)>::type Columns;  // a bit each

struct Corner {
    int n;
    u16 row, col;  // of tiles, in an image
};
struct __align__(16) Tiles {  // of those that a block looks at together, one for each of its threads
    Vector staged[2][IN_H * IN_W * PIECES];
    Columns read[2][IN_H];    // which pixels are read, of this tile and of the next one
    Corner corners[THREADS];
    u32 runs[THREADS];        // which runs have listed pixels, a bit each
    u16 rows[THREADS][HIGH];  // listed pixels
    int found[THREADS / 32];  // tiles of each warp
};

// Where a piece of a column lies in a tile's row.
__device__ __forceinline__ int piece_at(int col, int piece);

__device__ __forceinline__ void copy_behind(Vector* to, const value* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
#else
    *to = inside ? *(const Vector*)from : Vector{};
#endif
}
__device__ __forceinline__ void end_of_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_all_but_the_last() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// Each thread looks at a tile, `apart` from each other; those with listed pixels are kept. Returns how many.
__device__ __forceinline__ int find(Tiles& shared, const u32* listed, int tile, int apart, int total, int OH, int OW) {
    const int across = (OW + WIDE - 1) / WIDE, down = (OH + HIGH - 1) / HIGH, words = (OW + 31) / 32;
    const int mine = tile + threadIdx.x * apart, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int y = mine / across, n = y / down, top = (y - n * down) * HIGH, left = mine - y * across;  // left: in tiles
    u32 rows[HIGH], runs = 0;
#pragma unroll
    for (int r = 0; r < HIGH; r++) {
        const bool inside = mine < total && top + r < OH;
        rows[r] = inside ? listed[(n * OH + top + r) * words + left / 2] >> left % 2 * 16 & 0xffff : 0;
    }
#pragma unroll
    for (int r = 0; r < HIGH; r++)
#pragma unroll
        for (int k = 0; k < RUNS; k++)
            runs |= (u32)((rows[r] >> k * ROW_PART & ((1 << ROW_PART) - 1)) != 0) << (r * RUNS + k);
    const u32 some = __ballot_sync(~0u, runs != 0);
    if (lane == 0) shared.found[warp] = __popc(some);
    __syncthreads();
    int at = __popc(some & ((1u << lane) - 1)), found = 0;
#pragma unroll
    for (int other = 0; other < THREADS / 32; other++) {
        if (other < warp) at += shared.found[other];
        found += shared.found[other];
    }
    if (runs) {
        shared.corners[at] = {n, (u16)(y - n * down), (u16)left}, shared.runs[at] = runs;
#pragma unroll
        for (int r = 0; r < HIGH; r++) shared.rows[at][r] = (u16)rows[r];
    }
    __syncthreads();
    return found;
}

// The columns that a tile's listed pixels read in row `row` of it.
__device__ __forceinline__ Columns read_by(const u16 (&rows)[HIGH], int row) {
    u32 listed = 0;
#pragma unroll
    for (int i = 0; i < (KH + SW - 1) / SW; i++) {
        const int by = row / SW - i;
        if (by >= 0 && by < HIGH && row - by * SW < KH) listed |= rows[by];
    }
    Columns first = listed, read = 0;  // the first column of each
    if (SW == 2) {
        first = (first | first << 8) & 0x00ff00ff;
        first = (first | first << 4) & 0x0f0f0f0f;
        first = (first | first << 2) & 0x33333333;
        first = (first | first << 1) & 0x55555555;
    }
#pragma unroll
    for (int k = 0; k < KW; k++) read |= first << k;
    return read;
}

// Copy what tile k of those found reads into shared memory. (top, left): the first pixel that it reads, in `image`.
__device__ __forceinline__ void bring(Tiles& shared, const Head& h, int k, const value* image, int top, int left,
                                      bool has_channels) {
    constexpr int PIXELS = IN_H * IN_W, AT_A_TIME = THREADS / PIECES;
    const int piece = threadIdx.x % PIECES, mine = threadIdx.x / PIECES;
    const value* from = image + (long long)(top * h.W + left) * h.pitch + piece * VECTOR;
#pragma unroll 4
    for (int first = 0; first < PIXELS; first += AT_A_TIME) {
        const int pixel = first + mine, row = pixel / IN_W, col = pixel - row * IN_W;
        if (pixel >= PIXELS || !(shared.read[k % 2][row] >> col & 1)) continue;
        const bool inside = (u32)(top + row) < (u32)h.H && (u32)(left + col) < (u32)h.W && has_channels;
        copy_behind(shared.staged[k % 2] + row * IN_W * PIECES + piece_at(col, piece),
                    inside ? from + (row * h.W + col) * h.pitch : h.at, inside);
    }
}

// Walk over the tiles of a block, SLOT channels from `first` on. ready(k) is called before tile k has arrived, for what
// does not need it; sum(k, n, top, left) when it has. early: the bits were complete before this kernel could start, so
// that only the map has to be waited for.
template <typename Ready, typename Sum>
__device__ __forceinline__ void walk(Tiles& shared, const Head& h, int first, bool has_channels, const u32* listed,
                                     int team, int teams, int OH, int OW, int early, const Ready& ready,
                                     const Sum& sum) {
    const int across = (OW + WIDE - 1) / WIDE, down = (OH + HIGH - 1) / HIGH, total = h.images * down * across;
    for (int look = team; look < total; look += teams * THREADS) {
        const int found = find(shared, listed, look, teams, total, OH, OW);
        const auto place_of = [&](int k, int& n, int& top, int& left) {
            const Corner at = shared.corners[k];
            n = at.n, top = at.row * HIGH, left = at.col * WIDE;
        };
        const auto prepare = [&](int k) {
            if (k < found && threadIdx.x < IN_H) shared.read[k % 2][threadIdx.x] = read_by(shared.rows[k], threadIdx.x);
        };
        const auto begin = [&](int k) {
            int n, top, left;
            if (k < found) {
                place_of(k, n, top, left);
                const value* image = h.at + (long long)n * h.H * h.W * h.pitch + first;
                bring(shared, h, k, image, top * SW - h.ph, left * SW - h.pw, has_channels);
            }
            end_of_copies();
        };
        prepare(0);
        prepare(1);
        __syncthreads();
        if (early) wait_for_predecessor();
        begin(0);
        for (int k = 0; k < found; k++) {
            begin(k + 1);
            ready(k);
            wait_for_all_but_the_last();
            __syncthreads();
            prepare(k + 2);
            int n, top, left;
            place_of(k, n, top, left);
            sum(k, n, top, left);
            __syncthreads();
        }
    }
}
