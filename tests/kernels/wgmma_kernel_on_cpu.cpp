// A kernel of Hopper's tensor cores that takes its arguments as a launch does; kernels/wgmma.cuh is wgmma_on_cpu.h.
#include "cuda_on_cpu.h"

alignas(1024) thread_local char memory[227 << 10];  // of a block
static size_t __cvta_generic_to_shared(const void* p) { return (const char*)p - memory; }
static unsigned __reduce_or_sync(unsigned who, unsigned bits) {
    unsigned long long said[32];
    all_lanes(bits, said, who);
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++) all |= who >> lane & 1 ? (unsigned)said[lane] : 0;
    return all;
}
static unsigned atomicInc(unsigned* where, unsigned most) {
    const unsigned before = *where;
    *where = before >= most ? 0 : before + 1;
    return before;
}
struct float4 {
    float x, y, z, w;
};
struct float2 {
    float x, y;
};
static float2 make_float2(float x, float y) { return {x, y}; }
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define ASSEMBLY(...)  // of parts that the CPU does without
#include SOURCE

extern "C" void run(unsigned x, unsigned threads, void** args) {
    barriers.clear(), of_numbers.clear();
    launch_with(x, 1, 1, threads, conv, args);
}
