// Max and average pooling.
#include "tail.cuh"

struct Head {
    const value* at;  // N x H x W
    int pitch, H, W, kh, kw, sh, sw, ph, pw, dh, dw;
    int average;     // else the maximum
    int with_padding, divisor;  // of an average: count the padding; or divide by this, if not 0
    int unused;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
    const number none = h.average ? (number)0 : -(number)(1.0 / 0.0);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] = none;
    const int top = y * h.sh - h.ph, left = x * h.sw - h.pw;
    int taps = 0;
    for (int i = 0; i < h.kh; i++)
        for (int k = 0; k < h.kw; k++) {
            const int row = top + i * h.dh, col = left + k * h.dw;
            if ((u32)row >= (u32)h.H || (u32)col >= (u32)h.W) continue;
            number tap[WIDTH];
            fetch(tap, h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch + c);
            taps++;
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                v[j] = h.average ? v[j] + tap[j] : tap[j] > v[j] || tap[j] != tap[j] ? tap[j] : v[j];
        }
    if (!h.average) return;
    if (h.with_padding)  // up to the padding's end, which a last window may reach over
        taps = (min(top + h.kh, h.H + h.ph) - top) * (min(left + h.kw, h.W + h.pw) - left);
    const number divisor = h.divisor ? h.divisor : taps;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] /= divisor;
}
