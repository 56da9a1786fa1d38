// What becomes of a listed pixel's sums: what is fused behind the convolution, the comparison with a threshold, the store.
// The parameters of the kernel.
struct Work {
    const Operand* operands;
    Operand added;  // with ADDS: the first of them
    value* out;
    int pitch, channels;
    const int* list;
    int listed, OH, OW, early;
    u32* mask;  // with COMPARE
    int* changed;
    number threshold;
};

// Finish channels `first` to `first` + WIDTH - 1 of a listed pixel. only_compare: whether one of them moved; nothing is
// stored.
__device__ __forceinline__ bool finish(number (&v)[WIDTH], const Work& work, int place, int first, bool only_compare,
                                       const Pack* added = nullptr) {
    int channels = work.channels;
    const int n = place / (work.OH * work.OW);
    if (UP_H * UP_W > 1) {
        channels /= UP_H * UP_W;
        const int part = first / channels, y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
        place = (y * UP_H + part / UP_W) * (work.OW * UP_W) + x * UP_W + part % UP_W;
        first -= part * channels;
    }
    const Pack pack = finished(v, work.operands, channels, place, n, first, added);
    Pack* const to = (Pack*)(work.out + (size_t)place * work.pitch + first);
    bool any = false;
    if (only_compare) {
        const Pack stored = *to;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) any |= differs(pack.of[j], stored.of[j], work.threshold);
    } else {
        *to = pack;
    }
    return any;
}

// With COMPARE: mark listed pixels that moved, a lane a pixel. Most of a list lies in few streams; they are counted
// together.
__device__ __forceinline__ void mark(const Work& work, int place, bool moved) {
    const int lane = threadIdx.x & 31, pixels = work.OH * work.OW, n = place / pixels;
    if (moved) {
        const int y = place / work.OW, x = place - y * work.OW;  // y goes on over the streams
        atomicOr(work.mask + y * ((work.OW + 31) / 32) + x / 32, 1u << (x & 31));
    }
    const u32 all = __ballot_sync(~0u, moved);
    if (!all) return;
    const int most = __shfl_sync(~0u, n, __ffs(all) - 1);
    const u32 same = __ballot_sync(~0u, moved && n == most);
    if (lane == 0) atomicAdd(work.changed + most, __popc(same));
    if (moved && n != most) atomicAdd(work.changed + n, 1);
}
