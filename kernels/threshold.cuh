// The threshold of a change: one for all channels, or with WEIGHTED one for each channel, padded to a whole vector. A
// source includes common.cuh before this.

// The number of streams whose marked pixels a block counts in shared memory, to add them up at its end: thousands of
// additions to one number in the device's memory take 2 ns each. Further streams are counted there one by one.
#define STREAMS 64

#ifndef WEIGHTED
#define WEIGHTED 0
#endif
#if WEIGHTED
typedef const number* Threshold;
#else
typedef number Threshold;
#endif

// Whether a channel differs. A single threshold of 0 compares bits, thresholds of channels never do, as in
// backends/reference.py.
__device__ __forceinline__ bool differs(value fresh, value stored, number threshold, int) {
    return differs(fresh, stored, threshold);
}
__device__ __forceinline__ bool differs(value fresh, value stored, const number* thresholds, int channel) {
    return exceeds(fresh, stored, thresholds[channel]);
}

#if TYPE == 2 && __CUDA_ARCH__ >= 800
#define IN_PAIRS 1  // differences of two halves at a time: rounded once they are what `exceeds` rounds twice
__device__ __forceinline__ u32 distances(u32 fresh, u32 stored) {
    u32 pair;
    asm("{ .reg .b32 change; sub.rn.f16x2 change, %1, %2; and.b32 %0, change, 0x7fff7fff; }"
        : "=r"(pair)
        : "r"(fresh), "r"(stored));
    return pair;
}
__device__ __forceinline__ float low_of(u32 pair) { return get((value)pair); }
__device__ __forceinline__ float high_of(u32 pair) { return get((value)(pair >> 16)); }
#else
#define IN_PAIRS 0
#endif

// Whether any of the channels in a Vector or a Pack, from `first` on, differs.
template <typename Values>
__device__ __forceinline__ bool any_differs(const Values& fresh, const Values& stored, number threshold, int) {
    bool any = false;
#if IN_PAIRS
    const u32 *const a = (const u32*)fresh.of, *const b = (const u32*)stored.of;
    u32 most = 0;
#pragma unroll
    for (int j = 0; j < (int)(sizeof(Values) / 4); j++) {
        any |= a[j] != b[j];
        asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(most) : "r"(distances(a[j], b[j])));
    }
    return threshold == 0 ? any : !(low_of(most) <= threshold && high_of(most) <= threshold);
#else
#pragma unroll
    for (int j = 0; j < (int)(sizeof(Values) / sizeof(value)); j++) any |= differs(fresh.of[j], stored.of[j], threshold);
    return any;
#endif
}
template <int n> struct __align__(n * sizeof(number) < 16 ? n * sizeof(number) : 16) Numbers { number of[n]; };
template <typename Values>
__device__ __forceinline__ bool any_differs(const Values& fresh, const Values& stored, const number* thresholds,
                                            int first) {
    constexpr int n = sizeof(Values) / sizeof(value);
    const Numbers<n> each = *(const Numbers<n>*)(thresholds + first);
    bool any = false;
#if IN_PAIRS
#pragma unroll
    for (int j = 0; j < n; j += 2) {
        const u32 pair = distances(((const u32*)fresh.of)[j / 2], ((const u32*)stored.of)[j / 2]);
        any |= !(low_of(pair) <= each.of[j] && high_of(pair) <= each.of[j + 1]);
    }
#else
#pragma unroll
    for (int j = 0; j < n; j++) any |= exceeds(fresh.of[j], stored.of[j], each.of[j]);
#endif
    return any;
}
