// How kernels/conv_tiles.cu and conv_exact.cu gather the rows of a convolution's product: for each listed pixel and tap
// the input pixel's channels, 0 outside the map. A step of the sum is STEP bytes of every row, in pieces; a table says
// which tap and channel a piece is.
#include "tensor.cuh"

#ifndef TRANSPOSE  // with its stride, which divides in every step
#define TRANSPOSE 0
#define STRIDE_H 1
#define STRIDE_W 1
#endif

struct Tap {
    short dy, dx;
    int channel;  // in bytes; -1 past the last tap
};
struct Head {
    const char* at;      // N x H x W pixels, `pitch` bytes apart
    const char* weight;  // output channels, a multiple of BN, x steps * STEP bytes
    const float* bias;
    const Tap* taps;  // of each piece
    int pitch, H, W, sh, sw, ph, pw, steps;
};

// Where the first tap of a listed pixel reads: the rows of the images before its own, its row and column.
struct __align__(16) Corner {
    int place, above, y, x;
};
__device__ __forceinline__ Corner corner_of(const Head& h, int place, int OH, int OW) {
    const int n = place / (OH * OW), pixel = place - n * OH * OW, y = pixel / OW, x = pixel - y * OW;
    const int top = TRANSPOSE ? y + h.ph : y * h.sh - h.ph, left = TRANSPOSE ? x + h.pw : x * h.sw - h.pw;
    return {place, n * h.H, place < 0 ? -20000 : top, left};
}

// The address that a tap reads; any address if it is not `inside` the map.
__device__ __forceinline__ const char* source(const Head& h, const Corner& corner, const Tap& tap, bool& inside) {
    int y = corner.y + tap.dy, x = corner.x + tap.dx;
    inside = tap.channel >= 0;
    if (TRANSPOSE) {
        inside &= y >= 0 && x >= 0 && y % STRIDE_H == 0 && x % STRIDE_W == 0;
        y /= STRIDE_H, x /= STRIDE_W;
    }
    inside &= (u32)y < (u32)h.H && (u32)x < (u32)h.W;
    const char* from = h.at + ((size_t)(corner.above + y) * h.W + x) * h.pitch + tap.channel;
    return inside ? from : h.at;
}

// Copy `bytes` asynchronously; 0 where not `inside`.
template <int bytes> __device__ __forceinline__ void copy(u32 to, const void* from, bool inside) {
    const int taken = inside ? bytes : 0;
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(taken));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(taken));
}
