// The end of a step whose kernel does not compare: its results at the candidates are compared with the stored map, and
// the pixels that changed are stored and marked.
#include "frame.cuh"
#include "threshold.cuh"

// Bring C values into the second-level cache. Called by a whole warp.
__device__ __forceinline__ void prefetch(const value* from, int C) {
#if __CUDA_ARCH__ >= 800
    for (int c = (threadIdx.x & 31) * 8 * VECTOR; c < C; c += 32 * 8 * VECTOR)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + c));
#endif
}

__device__ __forceinline__ bool stands(const number*) { return true; }
__device__ __forceinline__ bool stands(number threshold) { return threshold >= 0; }

// Whether a pixel of C channels, sc apart, moved by more than the threshold. Called by a whole warp.
__device__ __forceinline__ bool pixel_differs(const value* fresh, long long sc, const value* stored, int C,
                                              Threshold threshold, bool vectors) {
    const int lane = threadIdx.x & 31;
    bool moved = false;
    if (vectors) {
#pragma unroll 4
        for (int c = lane * VECTOR; c < C; c += 32 * VECTOR)
            moved |= any_differs(load(fresh + c), load(stored + c), threshold, c);
    } else {
#pragma unroll 4
        for (int c = lane; c < C; c += 32) moved |= differs(fresh[c * sc], stored[c], threshold, c);
    }
    return __any_sync(~0u, moved);
}

// Store the listed pixels of `fresh` (any strides) that changed, and mark them; a warp for each pixel.
// threshold: below 0 all listed pixels count as changed, and are marked already. early: see `begin`.
extern "C" __global__ void commit(const value* fresh, long long sn, long long sc, long long sh, long long sw,
                                  value* stored, int pitch, u32* mask, int* changed, const int* list,
                                  const int* count, int C, int H, int W, Threshold threshold, int early) {
    begin(early);
    const int lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5, total = read_counter(count);
    int w = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (blockIdx.x > 0 && w - (int)(threadIdx.x >> 5) >= total) return;
    int place = w < total ? list[w] : 0;
    __shared__ int counted[STREAMS];
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x) counted[i] = 0;
    __syncthreads();
    if (early) {
        prefetch(stored + (size_t)place * pitch, C);
        wait_for_predecessor();
    }
    for (; w < total; w += warps, place = w < total ? list[w] : 0) {
        const int n = place / (H * W), y = (place - n * H * W) / W, x = place - (n * H + y) * W;
        const value* from = fresh + n * sn + y * sh + x * sw;
        value* pixel = stored + (size_t)place * pitch;
        const bool vectors = sc == 1 && C % VECTOR == 0 && pitch % VECTOR == 0 && (u64)from % sizeof(Vector) == 0;
        if (stands(threshold)) {
            if (!pixel_differs(from, sc, pixel, C, threshold, vectors)) continue;
            if (lane == 0) atomicAdd(n < STREAMS ? counted + n : changed + n, 1);
            if (lane == 0) atomicOr(mask + (n * H + y) * words_of(W) + x / 32, 1u << (x & 31));
        }
        if (vectors) {
#pragma unroll 4
            for (int c = lane * VECTOR; c < C; c += 32 * VECTOR) *(Vector*)(pixel + c) = load(from + c);
        } else {
#pragma unroll 4
            for (int c = lane; c < C; c += 32) pixel[c] = from[c * sc];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < STREAMS; i += blockDim.x)
        if (counted[i]) atomicAdd(changed + i, counted[i]);
}
