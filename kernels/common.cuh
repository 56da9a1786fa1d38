// What every kernel shares: the value type, vectors of 16 bytes, a step's list of pixels.
//
// Maps are N H W C in memory. `pitch` is the distance between two pixels in values, the channels rounded up so that a
// vector can be read at every pixel; what lies between the last channel and the pitch is 0 and stays 0.
//
// No header of the toolkit is used: a user's machine may not have one.

#ifndef TYPE
#define TYPE 1  // 0 double, 1 float, 2 half, 3 bfloat16, 4 a byte, which is only moved
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if TYPE == 0
typedef double value;  // as it is stored
typedef double number;  // as it is computed with
typedef u64 bits;
__device__ __forceinline__ number get(value v) { return v; }
__device__ __forceinline__ value put(number v) { return v; }
__device__ __forceinline__ bits bits_of(value v) { return __double_as_longlong(v); }
#elif TYPE == 1
typedef float value;
typedef float number;
typedef u32 bits;
__device__ __forceinline__ number get(value v) { return v; }
__device__ __forceinline__ value put(number v) { return v; }
__device__ __forceinline__ bits bits_of(value v) { return __float_as_uint(v); }
#elif TYPE == 4
typedef u8 value;
typedef float number;
typedef u8 bits;
__device__ __forceinline__ number get(value v) { return v; }
__device__ __forceinline__ value put(number v) { return (value)v; }
__device__ __forceinline__ bits bits_of(value v) { return v; }
#else
typedef u16 value;
typedef float number;
typedef u16 bits;
__device__ __forceinline__ bits bits_of(value v) { return v; }
#if TYPE == 2
__device__ __forceinline__ number get(value v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}
__device__ __forceinline__ value put(number v) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
#else
__device__ __forceinline__ number get(value v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ value put(number v) {
    const u32 b = __float_as_uint(v);
    if ((b & 0x7fffffff) > 0x7f800000) return (u16)(b >> 16 | 0x40);  // NaN stays NaN
    return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);                  // to nearest, ties to even
}
#endif
#endif

// Values of one 16-byte vector.
#define VECTOR (16 / (int)sizeof(value))
struct __align__(16) Vector { value of[VECTOR]; };

__device__ __forceinline__ Vector load(const value* from) { return *(const Vector*)from; }

// Whether two values differ by more than the threshold, as in backends/reference.py; NaN always does. `differs`
// compares bits where the threshold is 0.
__device__ __forceinline__ bool exceeds(value fresh, value stored, number threshold) {
    const number change = get(put(get(fresh) - get(stored)));
    return !((change < 0 ? -change : change) <= threshold);
}
__device__ __forceinline__ bool differs(value fresh, value stored, number threshold) {
    return threshold == 0 ? bits_of(fresh) != bits_of(stored) : exceeds(fresh, stored, threshold);
}

__device__ __forceinline__ int sum_of_warp(int value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    return value;
}

// Wait until the kernel before this one in the stream has ended. From compute capability 9.0 on a kernel may start
// earlier (programmatic dependent launch) and get ready: it reads weights, parameters and lists. Every thread that
// reads what other kernels wrote calls this first, and block 0 always calls it. So no kernel ends before the one before
// it, and after the call all earlier kernels' writes can be read. Nothing may be written before the call.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Called first by a kernel that walks a list. early: the list was complete before this kernel could start, so the next
// kernel may start right away; else this one waits for its list. `Backend.is_early` knows which.
__device__ __forceinline__ void begin(int early) {
    if (!early) return wait_for_predecessor();
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A counter of the frame, as it stands behind the wait: past the first-level cache, where a kernel that started early can
// find it as it was before. The first convolution of a small network read 0 for the length of its list and computed
// nothing, in the replays of 42 of 883 conversions; read like this, of none of 1284 (H100, driver 580, 2026-11-27).
__device__ __forceinline__ int read_counter(const int* counter) { return *(const volatile int*)counter; }
