// A map that leaves the delta graph, N C H W: listed pixels are copied from N H W C, the others stay as they are.
#include "tail.cuh"

// A thread takes WIDTH channels of a pixel. Listed pixels mostly lie side by side, so that a warp writes whole lines.
extern "C" __global__ void __launch_bounds__(256)
    planes(const value* from, int pitch, value* to, const int* list, const int* count, int C, int H, int W) {
    wait_for_predecessor();
    const u32 listed = read_counter(count), total = listed * ((C + WIDTH - 1) / WIDTH);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        const int place = list[i % listed], first = i / listed * WIDTH, n = place / (H * W);
        const Pack pack = *(const Pack*)(from + (size_t)place * pitch + first);
        value* channel = to + ((size_t)n * C + first) * H * W + (place - n * H * W);
#pragma unroll
        for (int j = 0; j < WIDTH; j++, channel += H * W)
            if (first + j < C) *channel = pack.of[j];
    }
}
