// From sums to stored pixels: bias, what is fused behind the convolution, the comparison with a threshold.

#include "threshold.cuh"

// The parameters of the kernel.
struct Work {
    const Operand* operands;
    Operand added;  // with ADDS: the first of them
    value* out;
    int pitch, channels;
    const int* list;
    int listed, OH, OW, early;
    u32* mask;  // with COMPARE
    int* changed;
    Threshold threshold;

    // Where channels from `first` on of a pixel lie.
    __device__ __forceinline__ Pack* at(int place, int first) const {
        return (Pack*)(out + (size_t)place * pitch + first);
    }
};

// Finish channels `first` to `first` + WIDTH - 1 of a listed pixel. place and first become those of the output.
__device__ __forceinline__ Pack finish(number (&v)[WIDTH], const Work& work, int& place, int& first,
                                       const Pack* added = nullptr) {
    int channels = work.channels;
    const int n = place / (work.OH * work.OW);
    if (UP_H * UP_W > 1) {
        channels /= UP_H * UP_W;
        const int part = first / channels, y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
        place = (y * UP_H + part / UP_W) * (work.OW * UP_W) + x * UP_W + part % UP_W;
        first -= part * channels;
    }
    return finished(v, work.operands, channels, place, n, first, added);
}

__device__ __forceinline__ void load_added(Pack& into, const Work& work, int place, int first) {
    const Operand& map = work.added;
    if (place >= 0 && first < work.channels) into = *(const Pack*)((const value*)map.at + place * map.pitch + first);
}

// With COMPARE: whether a finished pack differs from what is stored.
__device__ __forceinline__ bool moved(const Pack& fresh, const Pack& stored, const Work& work, int first) {
    return any_differs(fresh, stored, work.threshold, first);
}

// Whether `moved` holds in any of so many neighbouring threads of a warp, a power of two.
__device__ __forceinline__ bool vote(bool any, int threads) {
    const int lane = threadIdx.x & 31, first = lane / threads * threads;
    return (__ballot_sync(~0u, any) >> first & ~0u >> (32 - threads)) != 0;
}

// The pixels that a block marks in the first STREAMS streams are counted in shared memory. rows: see
// kernels/gather.cuh.
template <typename Rows> __device__ __forceinline__ int* counts_of(Rows& rows) {
#if COMPARE
    return rows.counts;
#else
    return nullptr;
#endif
}
template <typename Rows> __device__ __forceinline__ void begin_counts(Rows& rows) {  // all threads, before they meet
#if COMPARE
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x) rows.counts[i] = 0;
#endif
}
// Called by the THREADS that marked, which meet at barrier `number`.
template <typename Rows> __device__ __forceinline__ void end_counts(const Work& work, Rows& rows, int number = 1) {
#if COMPARE
    meet(number, THREADS);
    for (int i = threadIdx.x % THREADS; i < STREAMS; i += THREADS)
        if (rows.counts[i]) atomicAdd(work.changed + i, rows.counts[i]);
#endif
}

// Mark listed pixels that moved, at most one for each lane. Neighbours in a list mostly lie in one word of the mask:
// the pixels of each word are marked together.
__device__ __forceinline__ void mark(const Work& work, int* counts, int place, bool moved) {
    const int lane = threadIdx.x & 31, y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
    const int word = y * ((work.OW + 31) / 32) + x / 32;
    for (u32 left = __ballot_sync(~0u, moved); left;) {
        const int first = __ffs(left) - 1, of_first = __shfl_sync(~0u, word, first);
        const bool here = moved && word == of_first;
        const u32 bits = __reduce_or_sync(~0u, here ? 1u << (x & 31) : 0);
        left &= ~__ballot_sync(~0u, here);
        if (lane != first) continue;
        atomicOr(work.mask + word, bits);
        const int n = y / work.OH;
        if (n < STREAMS)
            atomicAdd(counts + n, __popc(bits));
        else
            atomicAdd(work.changed + n, __popc(bits));
    }
}
// Of the 64 rows of a product a warp has 16: a thread holds two neighbouring channels of every eight, in rows lane / 4
// and lane / 4 + 8. The four threads of a row exchange them, so that each has a pack of every CHUNK channels.
#define CHUNK (4 * WIDTH)
__device__ __forceinline__ int first_of_lane() {  // the pack's first channel in the chunk
    const int lane = threadIdx.x & 31;
    return WIDTH == 8 ? lane % 4 * 8 : lane % 2 * 8 + lane % 4 / 2 * 4;
}
// An exchange between lanes `bit` apart: the lower one gives its b for the other's a.
__device__ __forceinline__ void exchange(float (&a)[2], float (&b)[2], int bit) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float got = __shfl_xor_sync(~0u, upper ? a[i] : b[i], bit);
        if (upper)
            a[i] = got;
        else
            b[i] = got;
    }
}
template <int n> __device__ __forceinline__ void hand_round(float (&pack)[WIDTH], const float (&sums)[n], int chunk,
                                                            int lower) {
    float of[4][2];
#pragma unroll
    for (int p = 0; p < WIDTH / 2; p++)
#pragma unroll
        for (int i = 0; i < 2; i++) of[p][i] = sums[(chunk * (WIDTH / 2) + p) * 4 + lower * 2 + i];
    exchange(of[0], of[1], 1);
    if (WIDTH == 8) exchange(of[2], of[3], 1), exchange(of[0], of[2], 2), exchange(of[1], of[3], 2);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) pack[j] = of[j / 2][j % 2];
}

// Finishes what a warp multiplied: 16 rows of a tile, CHANNELS channels. A map that is added to them is loaded during
// the steps, as far as SPARE registers suffice. SHARED: other warps hold more channels of the same rows.
template <int CHANNELS, int SPARE, bool SHARED> struct Finisher {
    static constexpr int CHUNKS = CHANNELS / CHUNK, FIT = SPARE / 8 < CHUNKS ? SPARE / 8 : CHUNKS;
    static constexpr int EARLY = !ADDS || FIT < 1 ? 0 : FIT;
    // The stored values to compare with are loaded during the steps, too.
    static constexpr bool STORED = COMPARE && (CHUNKS == 1 || SPARE / 8 >= CHUNKS);
    const Work& work;
    const int* places;  // of the tile's rows
    int row, first;     // the warp's first row in the tile, and channel
    Pack added[EARLY ? EARLY : 1][2], stored[STORED ? CHUNKS : 1][2];

    __device__ __forceinline__ Finisher(const Work& work, const int* places, int row, int first)
        : work(work), places(places), row(row), first(first) {}
    __device__ __forceinline__ int row_of(int lower) const { return row + (threadIdx.x & 31) / 4 + lower * 8; }
    __device__ __forceinline__ int first_of(int chunk) const { return first + chunk * CHUNK + first_of_lane(); }
    __device__ __forceinline__ void load_chunk(int chunk) {
#pragma unroll
        for (int lower = 0; lower < 2; lower++)
            load_added(added[chunk % (EARLY ? EARLY : 1)][lower], work, places[row_of(lower)], first_of(chunk));
    }
    __device__ __forceinline__ void load_early() {
#pragma unroll
        for (int chunk = 0; chunk < EARLY; chunk++) load_chunk(chunk);
#pragma unroll
        for (int i = 0; i < (STORED ? 2 * CHUNKS : 0); i++) {
            const int place = places[row_of(i % 2)], c = first_of(i / 2);
            if (place >= 0 && c < work.channels) stored[STORED ? i / 2 : 0][i % 2] = *work.at(place, c);
        }
    }
    // Finish a pack of a row; false if the row has none, and the result is meaningless. There is no branch, so that
    // packs are finished in parallel. (place, c): where it belongs.
    __device__ __forceinline__ bool make(Pack& pack, int& place, int& c, const float (&sums)[CHANNELS / 2],
                                         const float* bias, int chunk, int lower) const {
        float v[WIDTH];
        hand_round(v, sums, chunk, lower);
#pragma unroll
        for (int j = 0; j < WIDTH; j += 4) add_four(v, j, *(const float4*)(bias + first_of(chunk) + j));
        place = places[row_of(lower)], c = first_of(chunk);
        const bool holds = place >= 0 && c < work.channels;
        if (!holds) place = c = 0;
        pack = finish(v, work, place, c, EARLY ? &added[chunk % (EARLY ? EARLY : 1)][lower] : nullptr);
        return holds;
    }
    // Whether any channel of a row moved.
    __device__ __forceinline__ bool agree(bool any, int row, u32* joined) const {
        any = vote(any, 4);
        if (!SHARED) return any;
        if (any && threadIdx.x % 4 == 0) atomicOr(joined + row / 32, 1u << row % 32);
        meet(1, THREADS);
        return joined[row / 32] >> row % 32 & 1;
    }
    // bias: of channel 0. joined: a bit of each row of the tile, where rows are shared. counts: see `mark`.
    __device__ __forceinline__ void run(const float (&sums)[CHANNELS / 2], const float* bias, u32* joined, int* counts) {
        int place, c;
#if COMPARE
        bool any[2] = {};
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            Pack fresh[CHUNKS];
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                if (make(fresh[chunk], place, c, sums, bias, chunk, lower))
                    any[lower] |= moved(fresh[chunk], STORED ? stored[STORED ? chunk : 0][lower] : *work.at(place, c), work, c);
            any[lower] = agree(any[lower], row_of(lower), joined);
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                if (any[lower] && first_of(chunk) < work.channels)
                    *work.at(places[row_of(lower)], first_of(chunk)) = fresh[chunk];
        }
        if (first > 0) return;  // another warp marks the row
        const int in_row = threadIdx.x % 4;
        mark(work, counts, places[row_of(in_row % 2)], in_row < 2 && (in_row ? any[1] : any[0]));
#else
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                Pack pack;
                if (make(pack, place, c, sums, bias, chunk, lower)) *work.at(place, c) = pack;
            }
            if (EARLY && chunk + EARLY < CHUNKS) load_chunk(chunk + EARLY);
        }
#endif
    }
};
