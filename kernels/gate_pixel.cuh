// A pixel of a frame beside what is stored of it: what the kernels of gate.cu and gate_boxes.cu share.
#include "frame.cuh"

#ifndef SMOOTH
#define SMOOTH 1  // the side of the box that differences are averaged over
#endif
#ifndef NOISE
#define NOISE 0  // whether each pixel's noise is learnt
#endif
#ifndef RECENT
#define RECENT 1  // about so many frames are averaged
#endif
#ifndef WEAK
#define WEAK 0  // whether only faint changes are taken along
#endif
#ifndef HOLD
#define HOLD 0  // whether a pixel that is not finite keeps its last value
#endif
#ifndef PACKED
#define PACKED 0  // whether a stored pixel is four values, which are read at once
#endif
#ifndef CHANNELS
#define CHANNELS 1  // that are looked at, or smoothed, at a time
#endif

#define AROUND (SMOOTH / 2)          // pixels on each side of one that its box holds
#define CELL (SMOOTH < 9 ? 2 : 4)    // the side of the cells of which `look` keeps the sums

__device__ __forceinline__ bool is_finite(number v) { return v - v == 0; }
__device__ __forceinline__ number magnitude(number v) { return v < 0 ? -v : v; }
__device__ __forceinline__ number larger(number a, number b) { return b > a || b != b ? b : a; }  // NaN wins
__device__ __forceinline__ int cells_of(int length) { return (length + CELL - 1) / CELL; }

// A pixel of a frame beside what is stored of it.
struct Pixel {
    const seen* frame;
    const value* stored;
    long long sc;
    bool held;

    __device__ __forceinline__ Pixel(bool is_one, const seen* frame, long long sn, long long sc, long long sh, long long sw,
                                     const value* stored, int pitch, int C, int H, int W, int n, int y, int x)
        : frame(frame + n * sn + y * sh + x * sw), stored(stored + ((size_t)(n * H + y) * W + x) * pitch), sc(sc),
          held(false) {
        if (HOLD && is_one)
            for (int c = 0; c < C; c++) held |= !is_finite(get(arrived(this->frame[c * sc])));
    }
    __device__ __forceinline__ value before(int c) const { return stored[c]; }
    __device__ __forceinline__ value fresh(int c) const {
        if (!held) return arrived(frame[c * sc]);
        return get(stored[c]) == get(stored[c]) ? stored[c] : put(0);
    }
    __device__ __forceinline__ number change(int c) const { return get(put(get(fresh(c)) - get(before(c)))); }
};

struct __align__(4 * sizeof(value)) Stored { value of[4]; };
