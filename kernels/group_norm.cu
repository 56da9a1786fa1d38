// Group and instance norms: the moments of a map in boxes, the statistics of its groups from those, and their use.
//
// moments: the mean of each channel in a box and the sum of squares around it; a block for each box. statistics: a
// block for each group of a stream. Threads take values in a fixed stride, and their sums are added in a tree: an order
// that does not depend on what changed.
#include "tail.cuh"

#ifndef LANES
#define LANES 4  // threads side by side in `moments`, each with WIDTH channels; a power of two
#endif
#define THREADS 256

// The parameters of `rows`, which normalises. statistics: the means of all groups of channels, then their deviations.
struct Head {
    const value* at;
    const value* statistics;
    const number* weight;  // whole vectors
    const number* bias;
    int pitch, statistics_pitch, channels_of_group, groups;
};
#include "rows.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c) {
    fetch(v, h.at + (size_t)place * h.pitch + c);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const int group = min((c + j) / h.channels_of_group, h.groups - 1);
        const value* found = h.statistics + (size_t)n * h.statistics_pitch + group;
        v[j] = (v[j] - get(found[0])) / get(found[h.groups]) * h.weight[c + j] + h.bias[c + j];
    }
}

struct Boxes {
    const value* at;        // N x H x W
    int pitch, H, W, side;  // boxes lie side by side, the last ones may be smaller
};
struct Groups {
    const number* moments;  // N x rows x cols, means of channels and then their squares
    double eps;
    int pitch, rows, cols, side, H, W, channels, groups;
};

__device__ __forceinline__ int within(int first, int length, int end) { return min(first + length, end) - first; }

// The sum over the threads with the same place modulo `lanes`; each of them gets it.
template <int lanes> __device__ __forceinline__ number sum_of(number mine) {
    __shared__ number sums[THREADS];
    const int thread = threadIdx.x, lane = thread % lanes, first = thread / lanes;
    __syncthreads();
    sums[thread] = mine;
    __syncthreads();
    for (int others = blockDim.x / lanes / 2; others > 0; others /= 2) {
        if (first < others) sums[thread] += sums[thread + others * lanes];
        __syncthreads();
    }
    return sums[lane];
}

extern "C" __global__ void __launch_bounds__(THREADS) moments(const Boxes* __restrict__ head, const Operand*, number* out,
                                                              int pitch, int channels, const int* list,
                                                              const int* count, int OH, int OW, int early) {
    begin(early);
    const int each = channels / 2, chunks = (each + LANES * WIDTH - 1) / (LANES * WIDTH);
    const int total = read_counter(count) * chunks;
    if (blockIdx.x > 0 && (int)blockIdx.x >= total) return;
    if (early) wait_for_predecessor();
    const Boxes h = *head;
    const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES, apart = blockDim.x / LANES;
    for (int i = blockIdx.x; i < total; i += gridDim.x) {
        const int place = list[i / chunks], c = (i % chunks * LANES + lane) * WIDTH;
        const int n = place / (OH * OW), pixel = place % (OH * OW);
        const int top = pixel / OW * h.side, left = pixel % OW * h.side;
        const int cols = within(left, h.side, h.W), pixels = within(top, h.side, h.H) * cols;
        const value* corner = h.at + ((size_t)(n * h.H + top) * h.W + left) * h.pitch + c;
        number mean[WIDTH] = {}, lost[WIDTH] = {}, squares[WIDTH] = {}, tap[WIDTH];
        // The second pass corrects what the first one lost to rounding.
        for (int pass = 0; pass < 2; pass++) {
            for (int p = first; p < pixels && c < each; p += apart) {
                fetch(tap, corner + ((size_t)(p / cols) * h.W + p % cols) * h.pitch);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    const number away = tap[j] - (pass ? mean[j] : 0);
                    lost[j] += away;
                    squares[j] += away * away;
                }
            }
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                lost[j] = sum_of<LANES>(lost[j]) / pixels;
                if (pass) squares[j] = sum_of<LANES>(squares[j]) - lost[j] * lost[j] * pixels;
                mean[j] += lost[j];
                if (!pass) lost[j] = squares[j] = 0;
            }
        }
        if (first > 0) continue;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            if (c + j >= each) continue;
            out[(size_t)place * pitch + c + j] = mean[j];
            out[(size_t)place * pitch + each + c + j] = squares[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) statistics(const Groups* __restrict__ head, const Operand*,
                                                                 value* out, int pitch, int channels, const int* list,
                                                                 const int* count, int OH, int OW, int early) {
    begin(early);
    const Groups h = *head;
    const int total = read_counter(count) * h.groups, each = h.channels / h.groups, values = h.rows * h.cols * each;
    if (blockIdx.x > 0 && (int)blockIdx.x >= total) return;
    if (early) wait_for_predecessor();
    const number all = (number)h.H * h.W * each;
    for (int i = blockIdx.x; i < total; i += gridDim.x) {
        const int n = list[i / h.groups], group = i % h.groups;
        number mean = 0, squares = 0;
        for (int pass = 0; pass < 2; pass++) {
            number sum = 0;
            for (int k = threadIdx.x; k < values; k += blockDim.x) {
                const int box = k / each, row = box / h.cols * h.side, col = box % h.cols * h.side;
                const number pixels = (number)within(row, h.side, h.H) * within(col, h.side, h.W);
                const number* found = h.moments + (size_t)(n * h.rows * h.cols + box) * h.pitch + group * each + k % each;
                const number apart = found[0] - mean;
                sum += pass ? found[h.channels] + pixels * apart * apart : pixels * found[0];
            }
            (pass ? squares : mean) = sum_of<1>(sum) / all;
        }
        if (threadIdx.x > 0) continue;
        out[(size_t)n * pitch + group] = put(mean);
        out[(size_t)n * pitch + h.groups + group] = put(sqrt(squares + (number)h.eps));
    }
}
