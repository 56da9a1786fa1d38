// Interpolation and adaptive pooling: a weighted sum, or the maximum, over the rows and columns that tables list.
#include "tail.cuh"

#ifndef LARGEST  // of the values, else their sum
#define LARGEST 0
#endif

struct Head {
    const value* at;  // N x H x W
    const int* rows;  // OH x row_taps, OW x col_taps
    const int* cols;
    const number* row_weights;
    const number* col_weights;
    int pitch, H, W, row_taps, col_taps, unused;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] = LARGEST ? -(number)(1.0 / 0.0) : 0;
    for (int i = 0; i < h.row_taps; i++) {
        const number of_row = h.row_weights[y * h.row_taps + i];
        const int row = h.rows[y * h.row_taps + i];
        for (int k = 0; k < h.col_taps; k++) {
            const number weight = of_row * h.col_weights[x * h.col_taps + k];
            const int col = h.cols[x * h.col_taps + k];
            if (!LARGEST && weight == 0) continue;
            number tap[WIDTH];
            fetch(tap, h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch + c);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                if (!LARGEST) v[j] += weight * tap[j];
                else if (tap[j] > v[j] || tap[j] != tap[j]) v[j] = tap[j];
            }
        }
    }
}
