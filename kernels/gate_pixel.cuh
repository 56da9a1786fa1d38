// A pixel of a frame beside what is stored of it: what the kernels of gate.cu share.
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
#ifndef ROWS
#define ROWS 32  // of a block's pixels, 32 in each
#endif
#ifndef CHANNELS
#define CHANNELS 1  // that are smoothed at a time
#endif
#ifndef FOURS
#define FOURS 0  // whether four pixels of a frame's row can be read at once: its rows begin where such runs do
#endif
#ifndef LAST
#define LAST 0  // with FOURS: whether the CHANNELS channels of a pixel lie side by side, and pixels behind each other
#endif
#ifndef FLAT
#define FLAT 0  // whether a frame lies as its mean does, N C H W without gaps, from where four can be read at once
#endif
#ifndef PACKED
#define PACKED 0  // whether a stored pixel is four values, which are read at once
#endif

// A product that is rounded before it is added to something, as torch's are.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

// Magnitudes as whole numbers, which are in the same order; NaN is behind all of them.
#if TYPE == 0
typedef u64 Rank;
__device__ __forceinline__ Rank rank_of(double v) { return (u64)__double_as_longlong(v) & ~0ull >> 1; }
__device__ __forceinline__ double at_rank(Rank rank) { return __longlong_as_double((long long)rank); }
#define ROUNDING 1.2e-16  // of a number, at most
#else
typedef u32 Rank;
__device__ __forceinline__ Rank rank_of(float v) { return __float_as_uint(v) & 0x7fffffff; }
__device__ __forceinline__ float at_rank(Rank rank) { return __uint_as_float(rank); }
#define ROUNDING 6e-8f
#endif

__device__ __forceinline__ number magnitude(number v) { return v < 0 ? -v : v; }
__device__ __forceinline__ number larger(number a, number b) { return b > a || b != b ? b : a; }  // NaN wins

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

struct __align__(4 * sizeof(seen)) Seen { seen of[4]; };
struct __align__(4 * sizeof(value)) Stored { value of[4]; };
struct __align__(sizeof(value) < 4 ? 16 : 4 * sizeof(value)) FourStored { Stored of[4]; };
struct __align__(16) Numbers { number of[4]; };
struct __align__(2 * sizeof(number)) Two { number of[2]; };

// With LAST: four pixels of a frame, by channels.
__device__ __forceinline__ void read_last(const seen* from, Seen (&by_channel)[CHANNELS]) {
    struct __align__(4 * sizeof(seen) < 16 ? 4 * sizeof(seen) : 16) Pixels { seen of[4 * CHANNELS]; };
    const Pixels pixels = *(const Pixels*)from;
#pragma unroll
    for (int i = 0; i < 4 * CHANNELS; i++) by_channel[i % CHANNELS].of[i / CHANNELS] = pixels.of[i];
}

// Four numbers of a row of a map, N C H W, 0 beside it: from column x on, a multiple of four.
__device__ __forceinline__ Numbers four(const number* row, int x, int W, bool inside) {
    Numbers read = {};
    if (FOURS && inside) return *(const Numbers*)(row + x);
#pragma unroll
    for (int p = 0; p < 4; p++)
        if (inside && x + p < W) read.of[p] = row[x + p];
    return read;
}
