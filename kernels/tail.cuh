// The end of every computing kernel: the elementwise operators fused behind it, and the store.
//
// FINISH is text that backends/cuda/tail.py writes: it changes `v` and reads the operands a[j], b[j], ...
#include "common.cuh"

#ifndef WIDTH
#define WIDTH VECTOR  // channels of a thread: a vector, or 4 where the output has no more
#endif
#ifndef FULL  // the channels fill packs
#define FULL 0
#endif
#ifndef OPERANDS
#define OPERANDS 0
#endif
#ifndef FINISH
#define FINISH
#endif
#ifndef KIND_A
#define KIND_A MAP
#endif
#ifndef KIND_B
#define KIND_B MAP
#endif
#ifndef KIND_C
#define KIND_C MAP
#endif
#ifndef KIND_D
#define KIND_D MAP
#endif

// 1 / (1 + e^-v). In single precision by the fast instructions, within 2e-6 of the value: exact ones would take half of
// the time of a layer with short sums.
__device__ __forceinline__ number sigmoid(number v) {
#if TYPE == 0
    return 1 / (1 + exp(-v));
#else
    return __fdividef(1, 1 + __expf(-v));
#endif
}

enum Kind { MAP, GATE, CHANNEL };  // values for each pixel, for each stream, or for each channel

struct Operand {
    const void* at;  // values; of a CHANNEL numbers
    long long pitch;
};

struct __align__(WIDTH * sizeof(value)) Pack { value of[WIDTH]; };

__device__ __forceinline__ Pack packed(const number (&values)[WIDTH]) {
    Pack pack;
#if TYPE == 2 && __CUDA_ARCH__ >= 800
#pragma unroll
    for (int j = 0; j < WIDTH; j += 2)  // one instruction converts two values
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(((u32*)pack.of)[j / 2]) : "f"(values[j + 1]), "f"(values[j]));
#else
#pragma unroll
    for (int j = 0; j < WIDTH; j++) pack.of[j] = put(values[j]);
#endif
    return pack;
}
__device__ __forceinline__ void unpack(number (&into)[WIDTH], const Pack& pack) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) into[j] = get(pack.of[j]);
}
__device__ __forceinline__ void fetch(number (&into)[WIDTH], const value* from) { unpack(into, *(const Pack*)from); }

template <Kind kind> __device__ __forceinline__ void fetch(number (&into)[WIDTH], const Operand& operand, int place,
                                                           int stream, int first) {
    if (kind == CHANNEL) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) into[j] = ((const number*)operand.at)[first + j];
    } else {
        fetch(into, (const value*)operand.at + (kind == MAP ? place : stream) * operand.pitch + first);
    }
}

// Apply FINISH to the channels first .. first + WIDTH - 1 of a pixel. added: the values of the first operand, if they
// were loaded before.
__device__ __forceinline__ Pack finished(number (&values)[WIDTH], const Operand* __restrict__ operands, int channels,
                                         int place, int stream, int first, const Pack* added = nullptr) {
#if OPERANDS > 0
    number a[WIDTH];
    if (added)
        unpack(a, *added);
    else
        fetch<KIND_A>(a, operands[0], place, stream, first);
#endif
#if OPERANDS > 1
    number b[WIDTH];
    fetch<KIND_B>(b, operands[1], place, stream, first);
#endif
#if OPERANDS > 2
    number c[WIDTH];
    fetch<KIND_C>(c, operands[2], place, stream, first);
#endif
#if OPERANDS > 3
    number d[WIDTH];
    fetch<KIND_D>(d, operands[3], place, stream, first);
#endif
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        number v = values[j];
        FINISH;
        values[j] = FULL || first + j < channels ? v : 0;
    }
    return packed(values);
}

// The same, and store the result.
__device__ __forceinline__ void finish(number (&values)[WIDTH], const Operand* __restrict__ operands,
                                       value* __restrict__ out, int pitch, int channels, int place, int stream,
                                       int first) {
    *(Pack*)(out + (size_t)place * pitch + first) = finished(values, operands, channels, place, stream, first);
}
