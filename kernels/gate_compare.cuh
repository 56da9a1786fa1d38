// Four pixels of a frame beside what is stored of them, by which `look` of gate.cu compares.

#define IN_PAIRS (TYPE == 2 && PACKED && !HOLD && CHANNELS > 1 && __CUDA_ARCH__ >= 800)
#if IN_PAIRS
// Two halves in a word. A difference of halves that is rounded to a half is the same by way of a float.
__device__ __forceinline__ u32 pair(u16 low, u16 high) {
    u32 pair;
    asm("mov.b32 %0, {%1, %2};" : "=r"(pair) : "h"(low), "h"(high));
    return pair;
}
__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}
#if BYTES
// A byte is the last bits of the half that is 1024 more.
__device__ __forceinline__ u32 arrived_pair(u8 low, u8 high) {
    return minus((u32)low | (u32)high << 16 | 0x64006400, 0x64006400);
}
#else
__device__ __forceinline__ u32 arrived_pair(u16 low, u16 high) { return pair(low, high); }
#endif
__device__ __forceinline__ u32 larger_ones(u32 a, u32 b) {  // NaN wins
    u32 larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
__device__ __forceinline__ void get_both(u32 pair, float& low, float& high) {
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}
#endif

// Up to four pixels side by side, and CHANNELS of their channels. What is read of them is asked for at once.
struct Four {
    const seen* fresh;
    const value* stored;
    int pixels;  // that are inside
    Seen now[CHANNELS];
    FourStored kept;  // with PACKED

    // Channels from c on; 0 of pixels that are not inside.
    __device__ __forceinline__ void read(long long sc, long long sw, int pitch, int c) {
        if (PACKED && FOURS) {
            kept = *(const FourStored*)stored;
        } else if (PACKED) {
#pragma unroll
            for (int p = 0; p < 4; p++) kept.of[p] = p < pixels ? *(const Stored*)(stored + p * pitch) : Stored{};
        }
        if (LAST) read_last(fresh, now);
#pragma unroll
        for (int j = 0; j < CHANNELS && !LAST; j++) {
            const seen* from = fresh + (c + j) * sc;
            if (FOURS) now[j] = *(const Seen*)from;
#pragma unroll
            for (int p = 0; p < 4 && !FOURS; p++) now[j].of[p] = p < pixels ? from[p * sw] : seen();
        }
    }

    // by: what those channels changed by, 0 of pixels that are not inside. A bit of `differ` for each pixel that is
    // another in any bit; highest: the rank of the largest change of each.
    __device__ __forceinline__ void compare(long long sc, long long sw, int pitch, int c, int C, Numbers (&by)[CHANNELS],
                                            u32& differ, Rank (&highest)[4]) const {
#if IN_PAIRS
#pragma unroll
        for (int p = 0; p < 4; p += 2) {
            u32 other = 0, size = 0;
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) {
                const u32 before = pair(kept.of[p].of[j], kept.of[p + 1].of[j]);
                const u32 after = arrived_pair(now[j].of[p], now[j].of[p + 1]), change = minus(after, before);
                other |= after ^ before, size = larger_ones(size, change & 0x7fff7fff);
                get_both(change, by[j].of[p], by[j].of[p + 1]);
            }
            differ |= (u32)((other & 0xffff) != 0) << p | (u32)(other >> 16 != 0) << (p + 1);
            float low, high;
            get_both(size, low, high);
            highest[p] = rank_of(low), highest[p + 1] = rank_of(high);
        }
#else
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const bool inside = FOURS || p < pixels;
            const value* pixel = stored + p * pitch;
            bool keeps = false;  // as it was, or 0 where it was never seen
            if (HOLD && inside)
                for (int k = 0; k < C; k++) keeps |= !is_finite(get(arrived(fresh[k * sc + p * sw])));
            bits other = 0;
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) {
                const value before = PACKED ? kept.of[p].of[CHANNELS > 1 ? j : c % 4] : inside ? pixel[c + j] : value();
                const value after = !keeps ? arrived(now[j].of[p]) : get(before) == get(before) ? before : put(0);
                other |= bits_of(after) ^ bits_of(before);
                by[j].of[p] = get(put(get(after) - get(before)));
                highest[p] = max(highest[p], rank_of(by[j].of[p]));
            }
            differ |= (u32)(other != 0) << p;
        }
#endif
    }
};

// A block's part of a frame, and what is stored of it.
struct View {
    const seen* frame;
    long long sn, sc, sh, sw;
    const value* stored;
    int pitch, C, H, W, n, top, left;

    // The four pixels at (row, col) of the block, from channel c on, as Four::compare has it; nothing beside the map.
    __device__ __forceinline__ void compare(int row, int col, int c, Numbers (&by)[CHANNELS], u32& differ,
                                            Rank (&highest)[4]) const {
        const int y = top + row, x = left + col;
        if ((u32)y >= (u32)H || (u32)x >= (u32)W) return;
        Four four;
        four.fresh = frame + n * sn + y * sh + x * sw, four.stored = stored + ((size_t)(n * H + y) * W + x) * pitch;
        four.pixels = W - x;
        four.read(sc, sw, pitch, c);
        four.compare(sc, sw, pitch, c, C, by, differ, highest);
    }
    // Where row y of a channel lies in a map N C H W.
    __device__ __forceinline__ size_t row_of_plane(int c, int y) const { return ((size_t)(n * C + c) * H + y) * W; }
};

// `bits` of eight lanes side by side, four each, as those of a row of 32 pixels. All lanes of a warp call it.
__device__ __forceinline__ u32 row_of_eight(u32 bits) {
    bits <<= (threadIdx.x & 7) * 4;
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) bits |= __shfl_xor_sync(~0u, bits, lanes);
    return bits;
}
