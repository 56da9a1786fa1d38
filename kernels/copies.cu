// Pixels and channels in other places: nearest interpolation, padding, crops, mirrored maps, channels in another order.
#include "tail.cuh"

#ifndef REORDERED  // a table says which channels; else they stay as they are
#define REORDERED 0
#endif

struct Head {
    const value* at;      // N x H x W
    const int* rows;      // OH and OW: where a pixel comes from; -1 is outside the map, where `fill` lies
    const int* cols;
    const int* channels;  // the same of a channel, whole vectors
    double fill;
    int pitch, H, W, unused;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
    const int row = h.rows[y], col = h.cols[x];
    const bool inside = row >= 0 && col >= 0;
    const value* from = h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch;
    if (inside && !REORDERED) {
        fetch(v, from + c);
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const int channel = inside ? h.channels[c + j] : -1;
        v[j] = channel < 0 ? (number)h.fill : get(from[channel]);
    }
}
