// Hopper's instructions for conv_wgmma.cu, conv_behind.cu and their headers: copies into shared memory, barriers that
// count bytes, and products of matrices in shared memory. For TYPE and PIECE; only for sm_90a.

// Copy a piece asynchronously; 0 where not `inside`.
__device__ __forceinline__ void copy(u32 to, const void* from, bool inside) {
    const int taken = inside ? PIECE : 0;
    if (PIECE == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(taken) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(taken) : "memory");
}
// Make what this thread wrote to shared memory visible to wgmma and to bulk copies after the next barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void bulk_copy(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void set_up(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Every thread arrives in the rings of few.cuh and gang.cuh: racecheck does not know a thread that arrives for its
// warp.
__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrive when all copies that this thread has started so far are complete.
__device__ __forceinline__ void arrive_with_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Wait for the last `open` + 1 things in flight one by one, the oldest first, and call then(how many are left) after each.
template <int open, typename Then> __device__ __forceinline__ void one_by_one(const Then& then) {
    wait<open>();
    then(open);
    if constexpr (open > 0) one_by_one<open - 1>(then);
}
// A barrier of some warps of a block, `threads` threads, with barrier `number`.
__device__ __forceinline__ void meet(int number, int threads) {
    if (threads == THREADS + LOADERS)
        __syncthreads();
    else
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void await(u32 barrier, u32 phase) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(barrier),
        "r"(phase)
        : "memory");
}

#if TYPE == 1
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" n "k8.f32.tf32.tf32"
#define TRANSPOSED ""
#define TRANSPOSED_WEIGHTS ""
#elif TYPE == 2
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16"
#define TRANSPOSED ", 0, 0"
#define TRANSPOSED_WEIGHTS ", 0"
#else
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16"
#define TRANSPOSED ", 0, 0"
#define TRANSPOSED_WEIGHTS ", 0"
#endif
#define S4(a) "+f"(sum[a]), "+f"(sum[a + 1]), "+f"(sum[a + 2]), "+f"(sum[a + 3])
#define S16(a) S4(a), S4(a + 4), S4(a + 8), S4(a + 12)
#define S32(a) S16(a), S16(a + 16)
#define S64(a) S32(a), S32(a + 32)
#define R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define R32 R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R64                                                                                                   \
    R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
        "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// multiply: 32 bytes of 64 rows, in shared memory or in registers, times 32 bytes of n rows of weights in shared
// memory. more: whether to add to the sums.
#define MULTIPLY(n, sums, results, registers, a, b, more, b2, more2)                                          \
    __device__ __forceinline__ void multiply(float(&sum)[n / 2], u64 rows, u64 weights, int add) {             \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " more ", 0;\n" WGMMA(#n) " {" results "}, " a ", " b      \
                     ", p, 1, 1" TRANSPOSED "; }"                                                             \
                     : sums                                                                                   \
                     : "l"(rows), "l"(weights), "r"(add));                                                    \
    }                                                                                                         \
    __device__ __forceinline__ void multiply(float(&sum)[n / 2], const u32(&rows)[4], u64 weights, int add) {  \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " more2 ", 0;\n" WGMMA(#n) " {" results "}, " registers    \
                     ", " b2 ", p, 1, 1" TRANSPOSED_WEIGHTS "; }"                                             \
                     : sums                                                                                   \
                     : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "l"(weights), "r"(add));       \
    }
MULTIPLY(32, S16(0), R16, "{%16, %17, %18, %19}", "%16", "%17", "%18", "%20", "%21")
MULTIPLY(64, S32(0), R32, "{%32, %33, %34, %35}", "%32", "%33", "%34", "%36", "%37")
MULTIPLY(128, S64(0), R64, "{%64, %65, %66, %67}", "%64", "%65", "%66", "%68", "%69")

__device__ __forceinline__ void start_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_of_step() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int open> __device__ __forceinline__ void wait_for_sums() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
}

// A matrix of rows of STEP bytes, with wgmma's 128-byte swizzle: every eight rows are 1024 bytes.
__device__ __forceinline__ u64 matrix(u32 at) { return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

// Multiply a step of a warpgroup's 64 rows at `a`. Rows to be rounded to TF32 are multiplied from registers, others in
// place.
#define ROUNDS (TYPE == 1 && ROUND)
#if ROUNDS
typedef u32 Rounded[4][4];
__device__ __forceinline__ void load_rounded(Rounded& rows, u32 a) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        load_matrices(rows[k], place_of(a, warp * 16 + (lane & 15), k * 2 + (lane >> 4)));
        round_to_tf32(rows[k]);
    }
}
#else
struct Rounded {};
__device__ __forceinline__ void load_rounded(Rounded&, u32) {}
#endif
template <int n> __device__ __forceinline__ void multiply_step(float (&sums)[n], u32 a, const Rounded& rounded, u32 b,
                                                               int more) {
    const u64 rows = matrix(a), weights = matrix(b);
#pragma unroll
    for (int k = 0; k < 4; k++) {  // 32 bytes further on
#if ROUNDS
        multiply(sums, rounded[k], weights + 2 * k, more);
#else
        multiply(sums, rows + 2 * k, weights + 2 * k, more);
#endif
        more = 1;
    }
}
