// How LOADS threads gather a tile: facts about its listed pixels, and the copies of a step's pixels and weights.
struct __align__(8) Tap {
    int offset;  // from the row's first pixel, in pieces
    int bit;     // of Rows::inside; the last bit for pieces past the last tap, bit kh * kw for a second map
};
struct Head {
    const char* at;      // N x H x W pixels, `pitch` pieces apart
    const char* weight;  // blocks of BN channels x even(steps) x BN x STEP bytes
    const float* bias;
    const Tap* taps;  // STEP_TAPS for each of even(steps)
    int pitch, H, W, sh, sw, ph, pw, kh, kw, dh, dw, steps, images;
    int also_pitch, also_H, also_W, also_sh, also_sw;  // with ALSO, of the second map
    const char* also;
};

#if MANY_TAPS
typedef u64 Bits;
#else
typedef u32 Bits;
#endif

__device__ __forceinline__ int even(int steps) { return (steps + 1) / 2 * 2; }

// Facts about a tile of M pixels and N channels. Some have TURNS copies, since later tiles are loaded while one is
// finished.
template <int M, int N> struct Rows {
    float bias[TURNS][N];
    Bits inside[M];  // a bit for each tap
    int base[M];     // the first tap's pixel, in pieces from `at`
#if ALSO
    int also[M];  // in pieces from `also`
#endif
    int places[TURNS][M];      // -1 past the list
    u32 moved[TURNS][M / 32];  // a bit of each row, with COMPARE where warps share rows
#if COMPARE
    int counts[STREAMS];  // of the pixels that this block marked
#endif
};

template <int M, int N> struct Gather {
    static constexpr int OF_THREAD = M * PIECES / LOADS;  // rows that a thread gathers a piece of
    const Head& h;
    const Work& work;
    Rows<M, N>& rows;
    // The taps of all steps of this block: a load from memory in a step would hold up the fence of the next one.
    Tap* const taps;
    const int loader, blocks_n, total, first_step;  // this thread among those that load; tiles of all channels, of all
    const char *base[OF_THREAD], *also[ALSO ? OF_THREAD : 1];  // this thread's piece of the first tap, and of the second map
    Bits inside[OF_THREAD];
    const char* weights;
    int place;         // of the tile that was looked up last, this thread's row
    float bias_there;  // and channel

    __device__ __forceinline__ void load_taps(int steps) {
        for (int i = loader; i < steps * STEP_TAPS; i += LOADS) taps[i] = h.taps[first_step * STEP_TAPS + i];
    }
    // Load what `describe` writes down; a thread takes a row, and a channel.
    __device__ __forceinline__ void look_up(int tile) {
        const int at = tile / blocks_n * M + loader;
        if (tile < total && loader < N) bias_there = h.bias[tile % blocks_n * N + loader];
        place = tile < total && loader < M && at < work.listed ? work.list[at] : -1;
    }
    // Write down the facts about the tile that was looked up, if there is one.
    __device__ __forceinline__ void describe(int tile, int turn) {
        if (COMPARE && loader < M / 32) rows.moved[turn][loader] = 0;
        if (tile >= total) return;
        if (loader < N) rows.bias[turn][loader] = bias_there;
        if (loader >= M) return;
        const int n = place / (work.OH * work.OW), pixel = place - n * work.OH * work.OW, y = pixel / work.OW;
        const int top = y * h.sh - h.ph, left = (pixel - y * work.OW) * h.sw - h.pw;
        Bits across = 0, taps_inside = 0;
#pragma unroll 1
        for (int k = 0; k < h.kw; k++) across |= (Bits)((u32)(left + k * h.dw) < (u32)h.W) << k;
#pragma unroll 1
        for (int i = 0; i < h.kh; i++)
            if ((u32)(top + i * h.dh) < (u32)h.H) taps_inside |= across << i * h.kw;
#if ALSO
        taps_inside |= (Bits)1 << h.kh * h.kw;
        const int x = pixel - y * work.OW;
        rows.also[loader] = ((n * h.also_H + y * h.also_sh) * h.also_W + x * h.also_sw) * h.also_pitch;
#endif
        rows.base[loader] = ((n * h.H + top) * h.W + left) * h.pitch;
        rows.inside[loader] = place < 0 ? 0 : taps_inside;
        rows.places[turn][loader] = place;
    }
    // Read the facts about the rows that this thread gathers.
    __device__ __forceinline__ void take(int tile) {
#pragma unroll
        for (int r = 0; r < OF_THREAD; r++) {
            const int row = loader / PIECES + r * (LOADS / PIECES), piece = STEP_TAPS > 1 ? 0 : loader % PIECES;
            base[r] = h.at + ((long long)rows.base[row] + piece) * PIECE;
            asm("" : "+l"(base[r]));  // keep the sum in a register, or every step adds its parts again
            inside[r] = rows.inside[row];
#if ALSO
            also[r] = h.also + ((long long)rows.also[row] + piece) * PIECE;
            asm("" : "+l"(also[r]));
#endif
        }
        const int n = tile % blocks_n * N;
        weights = h.weight + (((size_t)(n / BN) * even(h.steps) + first_step) * BN + n % BN) * STEP;
    }
    // Called by one warp at a time in turn, since the warp that loads weights is slower in that step.
    __device__ __forceinline__ void load_weights(int step, u32 to, u32 barrier) {
        if (loader % 32 == 0)
            bulk_copy(to + M * STEP, weights + (size_t)step * (BN * STEP), N * STEP, barrier);
    }
    __device__ __forceinline__ Tap tap_of(int step) {
        return taps[step * STEP_TAPS + (STEP_TAPS > 1 ? loader % PIECES : 0)];
    }
    __device__ __forceinline__ void load_pixels(const Tap& tap, u32 to) {
        const int piece = loader % PIECES, first_row = loader / PIECES;
        const long long offset = (long long)tap.offset * PIECE;
        const bool second = ALSO && tap.bit == h.kh * h.kw;
#pragma unroll
        for (int r = 0; r < OF_THREAD; r++) {
            const bool valid = inside[r] >> tap.bit & 1;  // else nothing is read
            const char* const first = second ? also[ALSO ? r : 0] : base[r];
            const u32 there = place_of(to, first_row + r * (LOADS / PIECES), piece * PIECE / 16) + piece * PIECE % 16;
            copy(there, first + offset, valid);
        }
    }
};
