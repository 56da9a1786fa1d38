// What the convolutions on tensor cores share: stages of shared memory that are filled by asynchronous copies, with
// rows of STEP bytes, and the sums of a cluster.
//
// SPLIT blocks of a cluster share the steps of a sum where that is faster; kernels/conv_tiles.cu says when and why.
#include "tail.cuh"

#ifndef SPLIT
#define SPLIT 1
#endif
#define STEP 128  // bytes of a row in a step
// What a round costs beside its steps, in steps (0.5 us on an H100).
#define START 8
#define START_TOGETHER 14
#if SPLIT > 1
#define CLUSTER __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER
#endif

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int open> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

// Single precision to TF32, rounded to nearest: the tensor cores would cut off the last 13 bits.
__device__ __forceinline__ void round_to_tf32(u32 (&m)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(m[j]) : "f"(__uint_as_float(m[j])));
}

__device__ __forceinline__ void put_four(float (&to)[WIDTH], int first, float4 four) {
    to[first] = four.x, to[first + 1] = four.y, to[first + 2] = four.z, to[first + 3] = four.w;
}
__device__ __forceinline__ void add_four(float (&to)[WIDTH], int first, float4 four) {
    to[first] += four.x, to[first + 1] += four.y, to[first + 2] += four.z, to[first + 3] += four.w;
}

#if SPLIT > 1
// All threads of the cluster meet, and see what the others wrote to shared memory. To order only that memory saves
// waiting for writes to the device's memory; compilers can from CUDA 12.7 on.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1207
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Add the four sums at `from` in the shared memory of block `rank` of the cluster, if they are used. Nothing else waits
// for this read, and reading from a block that has ended is a fault.
__device__ __forceinline__ void add_from(float (&to)[WIDTH], int first, const float* from, int rank, bool used = true) {
    u32 there;
    float4 four = {};
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(from)), "r"(rank));
    asm volatile("{ .reg .pred used; setp.ne.u32 used, %5, 0; @used ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4]; }"
                 : "+f"(four.x), "+f"(four.y), "+f"(four.z), "+f"(four.w)
                 : "r"(there), "r"((u32)used)
                 : "memory");
    add_four(to, first, four);
}
#else
__device__ __forceinline__ void cluster_barrier() {}
__device__ __forceinline__ void add_from(float (&to)[WIDTH], int first, const float* from, int rank, bool used = true) {}
#endif

// How many rounds the grid takes for `blocks` blocks of work.
__device__ __forceinline__ int rounds(int blocks) { return (blocks + gridDim.x - 1) / gridDim.x; }

// 16-byte chunk `chunk` of a row of STEP bytes; rows are swizzled so that eight of them touch all banks.
__device__ __forceinline__ u32 place_of(u32 base, int row, int chunk) {
    return base + row * STEP + ((chunk ^ (row & 7)) << 4);
}
