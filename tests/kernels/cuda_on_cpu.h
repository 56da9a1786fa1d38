// Just enough CUDA to compile a source with g++ and run its kernels on the CPU, without a GPU. A thread is a fiber that
// runs until it meets the others, of its warp or of its block; blocks run one after the other. So it shows what a kernel
// computes, and not its races.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __shared__ thread_local  // there is one thread, and one block at a time
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

using std::fma;
using std::max;
using std::min;

struct Index {
    unsigned x = 1, y = 1, z = 1;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct Fiber {
    ucontext_t context;
    unsigned meetings = 0;        // with its warp
    unsigned long long said = 0;  // at the last of them
    bool done = false;
};
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static const size_t STACK = 32 << 10;
static ucontext_t scheduler;
static unsigned waiting;         // threads of the block at a barrier
static unsigned block_meetings;
static std::function<void()> body;

static void yield() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }
static void fiber() {
    body();
    fibers[threadIdx.x].done = true;
    yield();
}

// body for every thread of a grid of (x, y, z) blocks; all threads of a block end together.
static void launch(unsigned x, unsigned y, unsigned threads, std::function<void()> of_thread, unsigned z = 1) {
    body = of_thread, gridDim = {x, y, z}, blockDim = {threads, 1, 1};
    stacks.resize(threads * STACK);
    for (unsigned block = 0; block < x * y * z; block++) {
        blockIdx = {block % x, block / x % y, block / (x * y)};
        fibers = std::vector<Fiber>(threads);
        waiting = block_meetings = 0;
        for (unsigned thread = 0; thread < threads; thread++) {
            Fiber& f = fibers[thread];
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = &stacks[thread * STACK], f.context.uc_stack.ss_size = STACK;
            makecontext(&f.context, fiber, 0);
        }
        for (bool any = true; any;) {
            any = false;
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
                if (!fibers[threadIdx.x].done) any = true, swapcontext(&scheduler, &fibers[threadIdx.x].context);
        }
    }
}

// The same for a kernel by the addresses of its arguments, as the driver takes them.
template <class... Args, size_t... place>
static void launch_with(unsigned x, unsigned y, unsigned z, unsigned threads, void (*kernel)(Args...), void** args,
                        std::index_sequence<place...>) {
    launch(x, y, threads, [=] { kernel(*(std::remove_reference_t<Args>*)args[place]...); }, z);
}
template <class... Args>
static void launch_with(unsigned x, unsigned y, unsigned z, unsigned threads, void (*kernel)(Args...), void** args) {
    launch_with(x, y, z, threads, kernel, args, std::index_sequence_for<Args...>());
}

static inline void __syncthreads() {
    const unsigned mine = block_meetings;
    if (++waiting == blockDim.x) waiting = 0, block_meetings++;
    while (mine == block_meetings) yield();
}

// What each lane of the warp says, when all of `who` have said it. A second meeting keeps them until all have read.
// Lanes that met in parts meet all together no more.
static inline void all_lanes(unsigned long long value, unsigned long long (&said)[32], unsigned who = ~0u) {
    const unsigned first = threadIdx.x & ~31u, me = threadIdx.x;
    const auto meet = [&] {
        const unsigned goal = ++fibers[me].meetings;
        for (unsigned lane = 0; lane < 32; lane++)
            while (who >> lane & 1 && fibers[first + lane].meetings < goal) yield();
    };
    fibers[me].said = value;
    meet();
    for (unsigned lane = 0; lane < 32; lane++) said[lane] = fibers[first + lane].said;
    meet();
}
static inline unsigned __ballot_sync(unsigned who, bool one) {
    unsigned long long said[32];
    all_lanes(one, said, who);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= (unsigned)said[lane] << lane;
    return bits & who;
}
static inline bool __any_sync(unsigned, bool one) { return __ballot_sync(~0u, one) != 0; }
template <class T> static T from_lane(T value, int lane) {
    unsigned long long said[32], bits = 0;
    memcpy(&bits, &value, sizeof(value));
    all_lanes(bits, said);
    memcpy(&value, &said[lane], sizeof(value));
    return value;
}
template <class T> static T __shfl_sync(unsigned, T value, int lane) { return from_lane(value, lane); }
template <class T> static T __shfl_xor_sync(unsigned, T value, int bits) {
    return from_lane(value, (threadIdx.x & 31) ^ bits);
}
template <class T> static T __shfl_up_sync(unsigned, T value, int lanes) {
    const int lane = (int)(threadIdx.x & 31) - lanes;
    return from_lane(value, lane < 0 ? (int)(threadIdx.x & 31) : lane);
}
static inline int __syncthreads_count(bool one) {
    static int ones;
    __syncthreads();
    if (threadIdx.x == 0) ones = 0;
    __syncthreads();
    ones += one;
    __syncthreads();
    return ones;
}

// A conditional node is the address of its value.
extern "C" inline void cudaGraphSetConditional(unsigned long long node, unsigned value) { *(unsigned*)node = value; }

template <class To, class From> static To bits_as(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "another size");
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline unsigned __float_as_uint(float f) { return bits_as<unsigned>(f); }
static inline unsigned long long __double_as_longlong(double f) { return bits_as<unsigned long long>(f); }
static inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
static inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
#define __expf expf  // the C library has one of that name
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
template <class T> static T atomicAdd(T* where, T value) {
    const T before = *where;
    *where += value;
    return before;
}
static inline unsigned atomicOr(unsigned* where, unsigned bits) {
    const unsigned before = *where;
    *where |= bits;
    return before;
}
