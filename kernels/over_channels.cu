// Functions of all channels of a pixel, computed by LANES threads of a warp. Each takes vectors of channels in a fixed
// stride, and their results are joined in a tree, in an order that does not depend on what changed.
#include "tail.cuh"

enum Function { SOFTMAX, LOG_SOFTMAX, NORMALIZE, LAYER_NORM, ARGMAX, ARGMIN, AMAX, AMIN, SUM, MEAN, VAR, STD, VECTOR_NORM };
#ifndef FUNCTION
#define FUNCTION SOFTMAX
#endif
#ifndef LANES
#define LANES 4  // a power of two up to 32
#endif
#ifndef READ
#define READ WIDTH  // channels that a thread reads at once
#endif
#ifndef ORDER
#define ORDER 2  // of a norm: 1, 2, or 0 for the largest
#endif

struct Head {
    const value* at;
    const number* weight;  // of LAYER_NORM, whole vectors
    const number* bias;
    double eps;
    int pitch, channels, correction, unused;  // of the map that is read; of a variance
};

constexpr bool SAME = FUNCTION <= LAYER_NORM;  // it makes a map as deep as the one that it reads
constexpr bool PLACE = FUNCTION == ARGMAX || FUNCTION == ARGMIN;
constexpr bool LEAST = FUNCTION == ARGMIN || FUNCTION == AMIN;
struct __align__(READ * sizeof(value)) Piece { value of[READ]; };

// Call each(value, channel) for the channels of this lane.
template <class Each> __device__ __forceinline__ void for_each(const value* pixel, int channels, int lane, Each each) {
    for (int c = lane * READ; c < channels; c += LANES * READ) {
        const Piece piece = *(const Piece*)(pixel + c);
#pragma unroll
        for (int j = 0; j < READ; j++)
            if (c + j < channels) each(get(piece.of[j]), c + j);
    }
}
__device__ __forceinline__ number sum_of(number mine) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) mine += __shfl_xor_sync(~0u, mine, apart);
    return mine;
}
// Whether a ranks before b; NaN ranks first, as in torch.
__device__ __forceinline__ bool wins(number a, number b) { return a != a ? b == b : LEAST ? a < b : a > b; }
__device__ __forceinline__ number best_of(number mine) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) {
        const number other = __shfl_xor_sync(~0u, mine, apart);
        if (wins(other, mine)) mine = other;
    }
    return mine;
}

__device__ __forceinline__ number best(const value* pixel, int channels, int lane) {
    number found = (LEAST ? 1 : -1) * (number)(1.0 / 0.0);
    for_each(pixel, channels, lane, [&](number v, int) { if (wins(v, found)) found = v; });
    return best_of(found);
}
// The first channel that holds the best value.
__device__ __forceinline__ int place_of_best(const value* pixel, int channels, int lane) {
    const number value_of_best = best(pixel, channels, lane);
    int place = channels;
    for_each(pixel, channels, lane, [&](number v, int c) {
        if (c < place && (v == value_of_best || (v != v && value_of_best != value_of_best))) place = c;
    });
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) place = min(place, __shfl_xor_sync(~0u, place, apart));
    return place;
}
__device__ __forceinline__ number norm(const value* pixel, int channels, int lane) {
    number sum = 0;
    for_each(pixel, channels, lane, [&](number v, int) {
        const number size = v < 0 ? -v : v;
        if (ORDER == 0) sum = wins(size, sum) ? size : sum;
        else sum += ORDER == 1 ? size : v * v;
    });
    if (ORDER == 0) return best_of(sum);
    return ORDER == 1 ? sum_of(sum) : sqrt(sum_of(sum));
}
__device__ __forceinline__ number sum(const value* pixel, int channels, int lane) {
    number found = 0;
    for_each(pixel, channels, lane, [&](number v, int) { found += v; });
    return sum_of(found);
}
__device__ __forceinline__ number squares_around(number mean, const value* pixel, int channels, int lane) {
    number found = 0;
    for_each(pixel, channels, lane, [&](number v, int) { found += (v - mean) * (v - mean); });
    return sum_of(found);
}

extern "C" __global__ void __launch_bounds__(256) over_channels(const Head* __restrict__ head,
                                                                const Operand* __restrict__ operands, value* out,
                                                                int pitch, int channels, const int* list,
                                                                const int* count, int OH, int OW, int early) {
    begin(early);
    const int total = read_counter(count), at_once = blockDim.x / LANES, lane = threadIdx.x % LANES;
    if (blockIdx.x > 0 && (int)blockIdx.x * at_once >= total) return;
    if (early) wait_for_predecessor();
    const Head h = *head;
    for (int first = blockIdx.x * at_once; first < total; first += gridDim.x * at_once) {
        const int i = first + threadIdx.x / LANES;
        const int place = list[min(i, total - 1)];  // threads past the list compute as well, for the warp's shuffles
        const value* pixel = h.at + (size_t)place * h.pitch;
        number a = 0, b = 0;
        if (PLACE) {
            const int found = place_of_best(pixel, h.channels, lane);
            if (lane == 0 && i < total) ((long long*)out)[(size_t)place * pitch] = found;
            continue;
        }
        if (FUNCTION == SOFTMAX || FUNCTION == LOG_SOFTMAX) {
            a = best(pixel, h.channels, lane);
            for_each(pixel, h.channels, lane, [&](number v, int) { b += exp(v - a); });
            b = sum_of(b);
        } else if (FUNCTION == NORMALIZE || FUNCTION == VECTOR_NORM) {
            a = norm(pixel, h.channels, lane);
        } else if (FUNCTION == AMAX || FUNCTION == AMIN) {
            a = best(pixel, h.channels, lane);
        } else {
            a = sum(pixel, h.channels, lane);
            if (FUNCTION != SUM) a /= h.channels;
            if (FUNCTION == LAYER_NORM || FUNCTION == VAR || FUNCTION == STD)
                b = squares_around(a, pixel, h.channels, lane);
            if (FUNCTION == LAYER_NORM) b = 1 / sqrt(b / h.channels + (number)h.eps);
            if (FUNCTION == VAR || FUNCTION == STD) a = b / max(h.channels - h.correction, 0);
            if (FUNCTION == STD) a = sqrt(a);
        }
        if (i >= total) continue;
        const int stream = place / (OH * OW);
        for (int c = lane * WIDTH; c < channels; c += LANES * WIDTH) {
            number v[WIDTH] = {a};
            if (SAME) {
                fetch(v, pixel + c);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    if (FUNCTION == SOFTMAX) v[j] = exp(v[j] - a) / b;
                    if (FUNCTION == LOG_SOFTMAX) v[j] = v[j] - a - log(b);
                    if (FUNCTION == NORMALIZE) v[j] = v[j] / (a < (number)h.eps ? (number)h.eps : a);
                    if (FUNCTION == LAYER_NORM) v[j] = (v[j] - a) * b * h.weight[c + j] + h.bias[c + j];
                }
            }
            finish(v, operands, out, pitch, channels, place, stream, c);
        }
    }
}
