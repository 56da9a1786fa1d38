// Max, average and norm pooling.
#include "tail.cuh"

#ifndef AVERAGE  // else the maximum
#define AVERAGE 0
#endif
#ifndef NORM  // of an average: the root of the sum of these powers instead
#define NORM 0
#endif
#ifndef KH  // of a small window, whose pixels are all read before the first is needed; else 0
#define KH 0
#define KW 0
#endif

struct Head {
    const value* at;  // N x H x W
    int pitch, H, W, kh, kw, sh, sw, ph, pw, dh, dw;
    int with_padding, divisor;  // of an average: whether padding counts; what to divide by instead, if not 0
};
#include "rows.cuh"
__device__ __forceinline__ number powered(number v) {
    if (NORM == 0 || NORM == 1) return v;
    return NORM == 2 ? v * v : pow(v, (number)NORM);
}
constexpr int ROWS_AT_ONCE = KH ? KH : 1, COLS_AT_ONCE = KW ? KW : 1;

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& parameters, int place, int n, int y, int x, int c) {
    const Head h = parameters;
    const number none = AVERAGE ? (number)0 : -(number)(1.0 / 0.0);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] = none;
    const int kh = KH ? KH : h.kh, kw = KW ? KW : h.kw, top = y * h.sh - h.ph, left = x * h.sw - h.pw;
    int taps = 0;
#pragma unroll ROWS_AT_ONCE
    for (int i = 0; i < kh; i++) {
        const int row = top + i * h.dh;
        if (!KH && (u32)row >= (u32)h.H) continue;
        for (int first = 0; first < kw; first += COLS_AT_ONCE) {
            Pack read[COLS_AT_ONCE];
            bool inside[COLS_AT_ONCE];
#pragma unroll
            for (int k = 0; k < COLS_AT_ONCE; k++) {
                const int col = left + (first + k) * h.dw;
                inside[k] = (u32)row < (u32)h.H && (u32)col < (u32)h.W;
                const value* from = h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch + c;
                read[k] = inside[k] ? *(const Pack*)from : Pack{};
            }
#pragma unroll
            for (int k = 0; k < COLS_AT_ONCE; k++) {
                taps += inside[k];
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    const number tap = powered(get(read[k].of[j]));
                    const number then = AVERAGE ? v[j] + tap : tap > v[j] || tap != tap ? tap : v[j];
                    v[j] = inside[k] ? then : v[j];
                }
            }
        }
    }
    if (!AVERAGE) return;
    if (h.with_padding)  // up to the padding's end, which a last window may reach over
        taps = (min(top + kh, h.H + h.ph) - top) * (min(left + kw, h.W + h.pw) - left);
    const number divisor = h.divisor ? h.divisor : taps;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        v[j] /= divisor;
        if (NORM == 0) continue;
        v[j] *= kh * kw;  // as torch does, also for windows that reach over the edge
        if (NORM != 1) v[j] = NORM == 2 ? sqrt(v[j]) : pow(v[j], 1 / (number)NORM);
    }
}
