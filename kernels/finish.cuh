// From sums to stored pixels: bias, what is fused behind the convolution, the comparison with a threshold.

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
    number threshold;
};

// Finish channels `first` to `first` + WIDTH - 1 of a listed pixel. only_compare: whether one of them moved; nothing is
// stored.
__device__ __forceinline__ bool finish(number (&v)[WIDTH], const Work& work, int place, int first, bool only_compare,
                                       const Pack* added = nullptr) {
    int channels = work.channels;
    const int n = place / (work.OH * work.OW);
    if (UP_H * UP_W > 1) {
        channels /= UP_H * UP_W;
        const int part = first / channels, y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
        place = (y * UP_H + part / UP_W) * (work.OW * UP_W) + x * UP_W + part % UP_W;
        first -= part * channels;
    }
    const Pack pack = finished(v, work.operands, channels, place, n, first, added);
    Pack* const to = (Pack*)(work.out + (size_t)place * work.pitch + first);
    bool any = false;
    if (only_compare) {
        const Pack stored = *to;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) any |= differs(pack.of[j], stored.of[j], work.threshold);
    } else {
        *to = pack;
    }
    return any;
}

__device__ __forceinline__ void load_added(Pack& into, const Work& work, int place, int first) {
    const Operand& map = work.added;
    if (place >= 0 && first < work.channels) into = *(const Pack*)((const value*)map.at + place * map.pitch + first);
}

// With COMPARE: mark listed pixels that moved, a lane a pixel. Most of a list lies in few streams; they are counted
// together.
__device__ __forceinline__ void mark(const Work& work, int place, bool moved) {
    const int lane = threadIdx.x & 31, pixels = work.OH * work.OW, n = place / pixels;
    if (moved) {
        const int y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
        atomicOr(work.mask + y * ((work.OW + 31) / 32) + x / 32, 1u << (x & 31));
    }
    const u32 all = __ballot_sync(~0u, moved);
    if (!all) return;
    const int most = __shfl_sync(~0u, n, __ffs(all) - 1);
    const u32 same = __ballot_sync(~0u, moved && n == most);
    if (lane == 0) atomicAdd(work.changed + most, __popc(same));
    if (moved && n != most) atomicAdd(work.changed + n, 1);
}
__device__ __forceinline__ bool is_set(const u32* moved, int row) { return moved[row / 32] >> row % 32 & 1; }

// Of 64 rows that were multiplied a warp has 16: a thread two neighbouring channels of every eight, in rows lane / 4 and
// lane / 4 + 8. The four threads of a row hand them round, so that each has a pack of every CHUNK channels.
#define CHUNK (4 * WIDTH)
__device__ __forceinline__ int first_of_lane() {  // the pack's first channel in the chunk
    const int lane = threadIdx.x & 31;
    return WIDTH == 8 ? lane % 4 * 8 : lane % 2 * 8 + lane % 4 / 2 * 4;
}
// Lanes `bit` apart: the lower one gives its b for the other's a.
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

// Finishes what a warp multiplied: 16 rows of a tile, CHANNELS channels. A map that is added to them is loaded beside the
// steps, as far as SPARE registers go.
template <int CHANNELS, int SPARE> struct Finisher {
    static constexpr int CHUNKS = CHANNELS / CHUNK, FIT = SPARE / 8 < CHUNKS ? SPARE / 8 : CHUNKS;
    static constexpr int EARLY = !ADDS || FIT < 1 ? 0 : FIT;
    const Work& work;
    const int* places;  // of the tile's rows
    int row, first;     // the warp's first row in the tile, and channel
    Pack added[EARLY ? EARLY : 1][2];

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
    }
    // bias: of channel 0. moved: a bit of each row of the tile.
    __device__ __forceinline__ void run(const float (&sums)[CHANNELS / 2], const float* bias, u32* moved) {
#pragma unroll 1
        for (int pass = !COMPARE; pass < 2; pass++) {
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    float v[WIDTH];
                    hand_round(v, sums, chunk, lower);
                    const int at = row_of(lower), c = first_of(chunk), place = places[at];
                    if (place < 0 || c >= work.channels || (COMPARE && pass && !is_set(moved, at))) continue;
#pragma unroll
                    for (int j = 0; j < WIDTH; j += 4) add_four(v, j, *(const float4*)(bias + c + j));
                    const Pack* early = EARLY ? &added[chunk % (EARLY ? EARLY : 1)][lower] : nullptr;
                    if (finish(v, work, place, c, !pass, early)) atomicOr(moved + at / 32, 1u << at % 32);
                }
                if (EARLY && chunk + EARLY < CHUNKS) load_chunk(chunk + EARLY);
            }
            if (COMPARE && !pass) meet(1, THREADS);
        }
    }
};
