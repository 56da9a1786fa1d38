// The end of a kernel that computes listed pixels one by one. With COMPARE it stores and marks only pixels of which a
// channel moved by more than the threshold. VOTERS neighbouring threads of a warp hold a pixel: they vote, and one of
// them marks it. A source includes tail.cuh before this.
#include "threshold.cuh"

#ifndef COMPARE
#define COMPARE 0
#endif
#ifndef VOTERS  // with COMPARE a power of two, up to 32; some may have no channels
#define VOTERS 1
#endif
#define LISTED 1024  // marked pixels of a block that it lists together

__device__ __forceinline__ int threads_of_pixel(int channels) {
    return COMPARE ? VOTERS : (channels + WIDTH - 1) / WIDTH;
}

// Where pixels are marked. list: gets their places, *count of them so far; null if no step needs it.
struct Marks {
    u32* mask;
    int* changed;  // of each stream
    Threshold threshold;
    int* list;
    int* count;
};

#if COMPARE
struct OfBlock {
    int changed[STREAMS], listed, first, places[LISTED];
};
__device__ __forceinline__ OfBlock& of_block() {
    __shared__ OfBlock shared;
    return shared;
}
#endif

// Called by all threads of a block before they store anything.
__device__ __forceinline__ void begin_marks() {
#if COMPARE
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x) of_block().changed[i] = 0;
    if (threadIdx.x == 0) of_block().listed = 0;
    __syncthreads();
#endif
}

// Called by all threads of a block when they have stored everything.
__device__ __forceinline__ void end_marks(const Marks& marks) {
#if COMPARE
    OfBlock& block = of_block();
    __syncthreads();
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x)
        if (block.changed[i]) atomicAdd(marks.changed + i, block.changed[i]);
    const int listed = min(block.listed, LISTED);
    if (threadIdx.x == 0 && listed) block.first = atomicAdd(marks.count, listed);
    __syncthreads();
    for (int i = threadIdx.x; i < listed; i += blockDim.x) marks.list[block.first + i] = block.places[i];
#endif
}

// The stored values that a thread compares with, loaded before a sum begins. to: where its channels lie; or null.
__device__ __forceinline__ Pack before(const value* to) { return COMPARE && to ? *(const Pack*)to : Pack{}; }

// Finish channels from `first` on of a pixel and store them.
__device__ __forceinline__ void keep(number (&v)[WIDTH], const Operand* __restrict__ operands, value* to,
                                     const Pack& stored, int channels, int place, int stream, int first, int OW,
                                     const Marks& marks) {
#if COMPARE
    const int lane = threadIdx.x % VOTERS, begin = threadIdx.x % 32 - lane;
    Pack fresh;
    bool moved = false;
    if (to) {
        fresh = finished(v, operands, channels, place, stream, first);
        moved = any_differs(fresh, stored, marks.threshold, first);
    }
    const u32 pixel = ~0u >> (32 - VOTERS) << begin;
    if ((__ballot_sync(pixel, moved) & pixel) == 0) return;
    if (to) *(Pack*)to = fresh;
    if (lane) return;
    const int y = place / OW, x = place - y * OW;  // y counts rows of all streams
    atomicOr(marks.mask + y * ((OW + 31) / 32) + x / 32, 1u << (x & 31));
    OfBlock& block = of_block();
    atomicAdd(stream < STREAMS ? block.changed + stream : marks.changed + stream, 1);
    if (!marks.list) return;
    const int at = atomicAdd(&block.listed, 1);
    if (at < LISTED)
        block.places[at] = place;
    else
        marks.list[atomicAdd(marks.count, 1)] = place;
#else
    *(Pack*)to = finished(v, operands, channels, place, stream, first);
#endif
}
