// Convolution on Hopper's tensor cores: BM listed pixels, wherever they lie, times BN output channels.
//
// A step of the sum is 128 bytes of each row, in pieces of 16 bytes; a table says which tap and channels a piece is.
// Threads gather the rows, 0 outside the map. The weights lie in memory in the order of the steps, so that one bulk
// copy brings those of a step. Both land in shared memory as wgmma reads it, 128 bytes a row, swizzled: a stage is BM
// rows of pixels and BN rows of weights.
//
// A block takes every gridDim.x-th tile. While it finishes a tile, the first steps of the next one are loaded. A map
// that is added to the sums is loaded during the steps, as far as registers suffice.
//
// Where few pixels changed, large tiles would leave most of the GPU idle. With SMALL, tiles of 64 x 64 are taken as
// long as all of them run at a time; they make the same sums in the same order. With SPLIT, the blocks of a cluster
// then share the steps of a sum, as in kernels/conv_tiles.cu; else a block does all shares, and adds them in the same
// order.
//
// The work is done by kernels/whole.cuh where all pixels are listed (with WHOLE), else by kernels/many.cuh in blocks of
// 128 rows, and by kernels/few.cuh in blocks of 64 rows, which have four more warps for loading.
//
// Launch: 2 * BM threads, 128 more where BM is 64. Shared memory: STAGES * (BM + BN) * 128 + BM * 17 (21 with
// MANY_TAPS) + BN * 8 + SMALL_STAGES * 8 + 8 + STEP_TAPS * 8 * even(steps) bytes, where BM is 64 BM * 9 + (BN +
// SMALL_STAGES) * 8 + 56 more, BM * 4 more with ALSO, 256 more with COMPARE, and what whole.cuh says. Only for sm_90a.
#include "tensor.cuh"

#ifndef BM  // a cluster shares sums of 64 rows alone
#define BM (SPLIT > 1 ? 64 : 128)
#endif
#ifndef BN
#define BN 128
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef SMALL
#define SMALL (SPLIT == 1 && BM > 64)
#endif
#ifndef PIECE  // bytes: 16, or 8 where a pixel is no more
#define PIECE 16
#endif
#ifndef MANY_TAPS  // more than 31, up to 63
#define MANY_TAPS 0
#endif
#ifndef AT_ONCE  // blocks of a multiprocessor
#define AT_ONCE 1
#endif
#ifndef UP_H  // a listed pixel makes UP_H x UP_W pixels of the output, one behind the other in the product's channels
#define UP_H 1
#define UP_W 1
#endif
#ifndef ALSO  // behind the pixels of the map a sum reads one of a second map, by a 1x1 convolution
#define ALSO 0
#endif
#ifndef COMPARE  // store and mark only pixels that moved by more than a threshold; a tile holds all channels
#define COMPARE 0
#endif
#ifndef WHOLE  // the side of a window, if all pixels are computed by kernels/whole.cuh; else 0
#define WHOLE 0
#endif
#ifndef STAY  // gangs of a block whose weights stay in shared memory (kernels/stay.cuh); else 0
#define STAY 0
#endif
#ifndef OCTETS  // with STAY: kernels/octets.cuh, where changes lie close together
#define OCTETS 0
#endif
#ifndef ROUND  // of single precision to TF32
#define ROUND 1
#endif
#ifndef STEP_TAPS  // in the table for each step: 1 where all its pieces are of one tap, else one for each piece
#define STEP_TAPS PIECES
#endif

#define THREADS (2 * BM)  // that multiply and finish
#define LOADERS (BM == 64 ? 128 : 0)  // beside them, that load; without, those that multiply do
#define LOADS (LOADERS ? LOADERS : THREADS)
#define TURNS (LOADERS ? 4 : 2)  // tiles that are written down at a time
#define PIECES (STEP / PIECE)  // of a row
#define IN_BLOCK ((THREADS + LOADERS) * (STAY ? STAY : 1))
#define REGISTERS (65536 / (IN_BLOCK * AT_ONCE) < 255 ? 65536 / (IN_BLOCK * AT_ONCE) : 255)
#define ADDS (OPERANDS > 0 && KIND_A == MAP && UP_H * UP_W == 1 && !COMPARE)  // a map to the sums
#define BYTES (STAGES * (BM + BN) * STEP)
#define SMALL_STAGES (BYTES / (128 * STEP))

#if __CUDA_ARCH_FEAT_SM90_ALL && TYPE != 0 && TYPE != 4
#include "wgmma.cuh"
#include "finish.cuh"
#include "gather.cuh"
#if STAY
#include "stay.cuh"
#elif LOADERS
#include "few.cuh"
#else
#include "many.cuh"
#endif
#if WHOLE
#include "whole.cuh"
#endif

// Bring the weights into the second-level cache while the kernels before this one run. They do not stay there from
// frame to frame.
__device__ __forceinline__ void prefetch_weights(const Head& h, int channels) {
    const int whole = (channels + BN - 1) / BN * BN, rows = whole * even(h.steps);
    const int share = (rows + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share;
    if (threadIdx.x == 0 && first < rows)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(h.weight + (size_t)first * STEP),
                     "r"(min(share, rows - first) * STEP)
                     : "memory");
}

extern "C" __global__ void CLUSTER __launch_bounds__((IN_BLOCK), AT_ONCE)
    conv(const Head* __restrict__ head, const Operand* __restrict__ operands, value* out, int pitch, int channels,
         const int* list, const int* count, int OH, int OW, int early, u32* mask, int* changed, Threshold threshold,
         const u32* octets, int* octet_counts) {
    const Head h = *head;
    const Operand added = operands[0];
    begin(early);
    const int listed = read_counter(count);
    const Work work = {operands, added, out, pitch, channels, list, listed, OH, OW, early, mask, changed, threshold};
    if (early && work.listed) prefetch_weights(h, channels);
#if STAY
    stay(h, work, octets, octet_counts);
#else
#if WHOLE
    if (work.listed == h.images * OH * OW) return whole(h, work);
#endif
    const bool fits = !COMPARE || channels <= 64;  // a tile of 64 x 64
    const int few = (work.listed + 63) / 64 * ((channels + 63) / 64);  // tiles of 64 x 64
#if SPLIT > 1
    // Times in steps of a block. Large tiles read less from the cache for each product, small ones keep more
    // multiprocessors busy.
    const int many = (work.listed + BM - 1) / BM * ((channels + BN - 1) / BN);
    if (rounds(many * SPLIT) * (h.steps / SPLIT + START_TOGETHER) < rounds(many) * (h.steps + START)) {
        if (fits && few * SPLIT * AT_ONCE <= (int)gridDim.x) return walk<64, SMALL_STAGES, true>(h, work);
        return walk<BN, STAGES, true>(h, work);
    }
#elif LOADERS
    if (BN > 64 && fits && few <= (int)gridDim.x) return walk<64, SMALL_STAGES, false>(h, work);
#elif SMALL
    if (fits && few <= (int)gridDim.x) return walk<64, 64, SMALL_STAGES, 2>(h, work);
#endif
#if LOADERS
    walk<BN, STAGES, false>(h, work);
#else
    walk<BM, BN, STAGES, 1>(h, work);
#endif
#endif
}
#endif
