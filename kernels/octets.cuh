// Convolution with windows of WINDOW x WINDOW, stride 1, where changed pixels lie close together, so that neighbours
// share what they read. An octet is eight pixels of a row, aligned to eight; the list has the octets with a listed
// pixel (kernels/octets.cu).
//
// A tile is eight octets, wherever they lie. For each row of the window, an octet's pixels and those beside them are
// loaded into shared memory once. The matrix of a tap begins as many pixels further on as the tap; the rows of the next
// octet follow ACROSS pixels behind those of the last. Rows of pixels that are not listed are multiplied and dropped.
// Sums are made in the order of kernels/few.cuh.
//
// The width of maps is a multiple of eight, a pixel is STEP bytes, and padding keeps the size.
#define WINDOW 3
#define ACROSS (8 + WINDOW - 1)

struct ByOctets {
    static constexpr int SLOT = 8 * ACROSS * STEP, IN_RING = RING / SLOT;
    static constexpr int OF_THREAD = 8 * ACROSS * 8 / LOADERS;  // chunks of a step
    const Head& h;
    const Work& work;
    Rows<64, BN>& rows;
    const u32* octets;  // place / 8 and which of the eight are listed: 24 and 8 bits
    const int listed, loader, total;
    const char* base[OF_THREAD];  // this thread's chunks, in the row of the window that is first
    u32 inside;                   // a bit for each of them and each row of the window
    u32 octet;                    // of this thread's row, in the tile that was looked up last
    float bias_there;

    __device__ __forceinline__ void look_up(int tile) {
        const int at = tile * 8 + loader / 8;
        if (tile < total && loader < BN) bias_there = h.bias[loader];
        octet = tile < total && loader < 64 && at < listed ? octets[at] : 0;
    }
    __device__ __forceinline__ void describe(int tile, int turn) {
        if (tile >= total) return;
        if (loader < BN) rows.bias[turn][loader] = bias_there;
        if (loader >= 64) return;
        const int place = (int)(octet >> 8) * 8, y = place / h.W, x = place - y * h.W, up = y % h.H;  // y: over images
        rows.places[turn][loader] = octet >> loader % 8 & 1 ? place + loader % 8 : -1;
        if (loader % 8) return;
        u32 inside = 0;  // rows of the window, and whether there is something left and right of the octet
#pragma unroll
        for (int i = 0; i < WINDOW; i++) inside |= (u32)((u32)(up + i - WINDOW / 2) < (u32)h.H) << i;
        rows.base[loader / 8] = place;
        rows.inside[loader / 8] = (octet & 255 ? inside : 0) | (x > 0) << WINDOW | (x + 8 < h.W) << (WINDOW + 1);
    }
    __device__ __forceinline__ void take(int tile) {
        inside = 0;
#pragma unroll
        for (int r = 0; r < OF_THREAD; r++) {
            const int row = loader / 8 + r * (LOADERS / 8), octet = row / ACROSS, column = row % ACROSS;
            const int place = rows.base[octet] + column - WINDOW / 2 - WINDOW / 2 * h.W;
            const u32 known = rows.inside[octet];
            const bool within = column == 0 ? known >> WINDOW & 1 : column < ACROSS - 1 || known >> (WINDOW + 1) & 1;
            base[r] = h.at + ((long long)place * h.pitch + loader % 8) * 16;
            inside |= (within ? known & ((1 << WINDOW) - 1) : 0) << r * WINDOW;
        }
    }
    __device__ __forceinline__ void load_step(int step, u32 to) {
        const long long down = (long long)step * h.W * h.pitch * 16;
#pragma unroll
        for (int r = 0; r < OF_THREAD; r++)
            copy(place_of(to, loader / 8 + r * (LOADERS / 8), loader % 8), base[r] + down, inside >> (r * WINDOW + step) & 1);
    }
};

// The matrix of 64 rows in a slot, swizzled: those of an octet are consecutive, those of the next octet ACROSS rows on.
__device__ __forceinline__ u64 octets_from(u32 at) {
    return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | (u64)(ACROSS * STEP >> 4) << 32 | 1ull << 62;
}
// Row `row` of the window; weights: of all steps, each of which is a tap.
__device__ __forceinline__ void multiply_octets(float (&sums)[BN / 2], u32 slot, u32 weights, int row) {
#pragma unroll
    for (int across = 0; across < WINDOW; across++) {
        const u32 b = weights + (row * WINDOW + across) * (BN * STEP);
#pragma unroll
        for (int k = 0; k < 4; k++)
            multiply(sums, octets_from(slot + across * STEP + k * 32), matrix(b + k * 32), row + across + k > 0);
    }
}
