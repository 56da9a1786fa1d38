// The octets of a mask: eight pixels of a row, aligned to eight, of which at least one is marked.
#include "common.cuh"

#define OF_WARP 128  // words of a mask that a warp looks at, eight at a time: a lane an octet

__device__ __forceinline__ u32 octets_in(u32 word) {
    word |= word >> 4, word |= word >> 2, word |= word >> 1;
    return __popc(word & 0x01010101);
}

// bits: `words` words of 32 pixels, `across` of them for a row of W pixels, a multiple of eight. list: for each octet
// place / 8 and its eight bits; count: how many, 0 before. The order of the list is not deterministic.
extern "C" __global__ void __launch_bounds__(256) octets(const u32* bits, u32* list, int* count, int words, int across, int W) {
    __shared__ int before[8], first;
    wait_for_predecessor();
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, beside = across * 4 - W / 8;  // octets behind a row's last
    const int warps = blockDim.x / 32, of_block = warps * OF_WARP;
    for (int block = blockIdx.x * of_block; block < words; block += gridDim.x * of_block) {
        const int of_warp = block + warp * OF_WARP;
        u32 of[OF_WARP / 32];
        int sum = 0;
#pragma unroll
        for (int i = 0; i < OF_WARP / 32; i++) {
            const int word = of_warp + i * 32 + lane;
            of[i] = word < words ? bits[word] : 0;
            sum += octets_in(of[i]);
        }
        sum = sum_of_warp(sum);
        __syncthreads();  // the last round's numbers have been read
        if (lane == 0) before[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            int all = 0;
            for (int other = 0; other < warps; other++) {
                const int here = before[other];
                before[other] = all;
                all += here;
            }
            first = all ? atomicAdd(count, all) : 0;
        }
        __syncthreads();
        if (sum == 0) continue;
        u32* to = list + first + before[warp];
#pragma unroll
        for (int i = 0; i < OF_WARP / 32; i++)
#pragma unroll 1
            for (int j = 0; j < 32; j += 8) {
                const u32 octet = __shfl_sync(~0u, of[i], j + lane / 4) >> lane % 4 * 8 & 255;
                const u32 marked = __ballot_sync(~0u, octet != 0);
                const int word = of_warp + i * 32 + j + lane / 4;
                const int place = word * 4 + lane % 4 - (beside ? word / across * beside : 0);
                if (octet) to[__popc(marked & (1u << lane) - 1)] = (u32)place << 8 | octet;
                to += __popc(marked);
            }
    }
}
