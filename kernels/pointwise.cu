// Operators that read the same pixel: maps joined along the channels, channels taken out of one, or one map as it is
// for the elementwise operators behind it.
#include "tail.cuh"

#define MOST_PARTS 16

// Output channels from `first` on are the channels start, start + step, ... of a map.
struct Part {
    const value* at;
    int pitch, first, start, step;
};
struct Head {
    Part part[MOST_PARTS];
    int parts, unused;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
    int k = 0;
    while (k + 1 < h.parts && h.part[k + 1].first <= c) k++;
    const Part& here = h.part[k];
    const int from = here.start + c - here.first;
    const bool whole = k + 1 == h.parts || h.part[k + 1].first >= c + WIDTH;
    if (whole && here.step == 1 && from % WIDTH == 0) {
        fetch(v, here.at + (size_t)place * here.pitch + from);
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        while (k + 1 < h.parts && h.part[k + 1].first <= c + j) k++;
        const Part& part = h.part[k];
        const int channel = part.start + (c + j - part.first) * part.step;
        v[j] = (u32)channel < (u32)part.pitch ? get(part.at[(size_t)place * part.pitch + channel]) : 0;
    }
}
