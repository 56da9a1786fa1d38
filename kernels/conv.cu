// Convolution of any kind, pixel by pixel: depthwise, grouped, transposed, any number of channels, any type.
//
// A thread sums its channels over taps and inputs in that order, whatever else changed. It is the general way;
// kernels/conv_tiles.cu is the fast one for what tensor cores can do.
#include "tail.cuh"

struct Head {
    const value* at;       // N x H x W
    const number* weight;  // kh x kw x inputs x outputs, the outputs padded with 0 to `weight_pitch`
    const number* bias;    // weight_pitch
    int pitch, weight_pitch, H, W, kh, kw, sh, sw, ph, pw, dh, dw;
    int inputs, outputs;  // channels of a group
    int transposed, unused;
};
#include "rows.cuh"

// The input row (or column) of a tap, or -1.
__device__ __forceinline__ int source(int out, int tap, int stride, int padding, int dilation, int size,
                                      int transposed) {
    int in = transposed ? out + padding - tap * dilation : out * stride - padding + tap * dilation;
    if (transposed) {
        if (in < 0 || in % stride) return -1;
        in /= stride;
    }
    return (u32)in < (u32)size ? in : -1;
}

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] = h.bias[c + j];
    const bool depthwise = h.inputs == 1 && h.outputs == 1;
    const int group = c / h.outputs;
    const bool one_group = (c + WIDTH - 1) / h.outputs == group;
    for (int i = 0; i < h.kh; i++) {
        const int row = source(y, i, h.sh, h.ph, h.dh, h.H, h.transposed);
        if (row < 0) continue;
        for (int k = 0; k < h.kw; k++) {
            const int col = source(x, k, h.sw, h.pw, h.dw, h.W, h.transposed);
            if (col < 0) continue;
            const value* pixel = h.at + ((size_t)(n * h.H + row) * h.W + col) * h.pitch;
            const number* weight = h.weight + (size_t)(i * h.kw + k) * h.inputs * h.weight_pitch + c;
            if (depthwise) {
                number tap[WIDTH];
                fetch(tap, pixel + c);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) v[j] += tap[j] * weight[j];
                continue;
            }
            for (int input = 0; input < h.inputs; input++, weight += h.weight_pitch) {
                if (one_group) {
                    const number tap = get(pixel[group * h.inputs + input]);
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) v[j] += tap * weight[j];
                } else {
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) {
                        const int channel = (c + j) / h.outputs * h.inputs + input;  // padded outputs: past the map
                        if (channel < h.pitch) v[j] += get(pixel[channel]) * weight[j];
                    }
                }
            }
        }
    }
}
