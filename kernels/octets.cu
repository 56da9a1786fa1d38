// The octets of a mask: eight pixels of a row, from a multiple of eight on, of which one or more are marked.
#include "common.cuh"

// bits: `words` words of 32 pixels, `across` of them a row of W pixels, a multiple of eight. list: place / 8 and the eight
// bits of each octet; count: of them, 0 before. The order is the hardware's, words of a block together.
extern "C" __global__ void __launch_bounds__(256) octets(const u32* bits, u32* list, int* count, int words, int across, int W) {
    __shared__ int before[8], first;
    wait_for_predecessor();
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    for (int block = blockIdx.x * blockDim.x * 4; block < words; block += gridDim.x * blockDim.x * 4) {
        u32 of[4];
        int own = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int word = block + threadIdx.x * 4 + i;
            of[i] = word < words ? bits[word] : 0;
#pragma unroll
            for (int b = 0; b < 32; b += 8) own += (of[i] >> b & 255) != 0;
        }
        int sum = own;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            const int others = __shfl_up_sync(~0u, sum, lanes);
            if (lane >= lanes) sum += others;
        }
        __syncthreads();  // whoever was before has read them
        if (lane == 31) before[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            int all = 0;
            for (int other = 0; other < (int)blockDim.x / 32; other++) {
                const int here = before[other];
                before[other] = all;
                all += here;
            }
            first = all ? atomicAdd(count, all) : 0;
        }
        __syncthreads();
        u32* to = list + first + before[warp] + sum - own;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int word = block + threadIdx.x * 4 + i, y = word / across, x = (word - y * across) * 32;
#pragma unroll
            for (int b = 0; b < 32; b += 8)
                if (of[i] >> b & 255) *to++ = (u32)((y * W + x + b) / 8) << 8 | (of[i] >> b & 255);
        }
    }
}
