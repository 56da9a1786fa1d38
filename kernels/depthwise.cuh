// What the kernels of depthwise convolutions are given: one convolution, or several of one list.
#include "tail.cuh"
#include "compare.cuh"

#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 4
#endif
#ifndef TOGETHER  // several convolutions of one list, each with a map of its own: blockIdx.y is which
#define TOGETHER 0
#endif

struct Head {
    const value* at;      // N x H x W
    const value* weight;  // KH x KW x pitch
    const number* bias;   // pitch
    int pitch, H, W, sh, sw, ph, pw, dh, dw, images;
};
struct Sibling {
    Head head;
    value* out;
    int pitch, unused;
};
