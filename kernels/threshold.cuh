// What a change is compared with: a threshold for all channels, or WEIGHTED, one for each of them, up to a whole vector. A
// source includes common.cuh before this.

#ifndef WEIGHTED
#define WEIGHTED 0
#endif
#if WEIGHTED
typedef const number* Threshold;
#else
typedef number Threshold;
#endif

// Of a channel. One threshold of 0 for all compares bits, those of single channels never do, as in backends/reference.py.
__device__ __forceinline__ bool differs(value fresh, value stored, number threshold, int) {
    return differs(fresh, stored, threshold);
}
__device__ __forceinline__ bool differs(value fresh, value stored, const number* thresholds, int channel) {
    return exceeds(fresh, stored, thresholds[channel]);
}

// Of any of the channels from `first` on that a Vector or a Pack holds.
template <typename Values>
__device__ __forceinline__ bool any_differs(const Values& fresh, const Values& stored, number threshold, int) {
    bool any = false;
#pragma unroll
    for (int j = 0; j < (int)(sizeof(Values) / sizeof(value)); j++) any |= differs(fresh.of[j], stored.of[j], threshold);
    return any;
}
template <int n> struct __align__(n * sizeof(number) < 16 ? n * sizeof(number) : 16) Numbers { number of[n]; };
template <typename Values>
__device__ __forceinline__ bool any_differs(const Values& fresh, const Values& stored, const number* thresholds,
                                            int first) {
    constexpr int n = sizeof(Values) / sizeof(value);
    const Numbers<n> each = *(const Numbers<n>*)(thresholds + first);
    bool any = false;
#pragma unroll
    for (int j = 0; j < n; j++) any |= exceeds(fresh.of[j], stored.of[j], each.of[j]);
    return any;
}
