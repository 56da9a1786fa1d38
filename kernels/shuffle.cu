// Channels that become pixels, and pixels that become channels.
#include "tail.cuh"

struct Head {
    const value* at;     // N x H x W
    int pitch, H, W;
    int up, down;  // one of them is the factor, the other 1
    int unused;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
    const int corner = y % h.up * h.up + x % h.up;  // of the box that an input pixel becomes
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const int box = (c + j) % (h.down * h.down);  // the place of a channel's pixel in a box that becomes one
        const int row = y / h.up * h.down + box / h.down, col = x / h.up * h.down + box % h.down;
        const int channel = (c + j) / (h.down * h.down) * h.up * h.up + corner;
        v[j] = channel < h.pitch ? get(h.at[((size_t)(n * h.H + row) * h.W + col) * h.pitch + channel]) : 0;
    }
}
