// `look` of gate.cu: each pixel by itself. A warp has 32 x DEEP pixels of a frame, a lane a column of them.
//
// Of what takes boxes to tell it only says where they cannot tell anything: it adds up the changes of cells, CELL x CELL
// pixels, and a box that lies in cells with small sums has a small mean. So a frame is read once, and boxes are taken
// where something may have moved (gate_boxes.cu).
#ifndef DEEP
#define DEEP 4  // rows of a warp, whose pixels it asks for at once
#endif

// A product that is rounded before it is added to something, as torch's are.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

// How much channels changed, in parts of two where those are halves in a word.
#if TYPE == 2 && PACKED && !HOLD && __CUDA_ARCH__ >= 800
#define PARTS ((CHANNELS + 1) / 2)
typedef u32 Part;
__device__ __forceinline__ u32 minus(u32 a, u32 b) {
    u32 difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}
__device__ __forceinline__ Part plus(Part a, Part b) {
    Part sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}
__device__ __forceinline__ Part larger_of(Part a, Part b) {  // NaN wins
    Part larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
__device__ __forceinline__ number highest(Part part) {
    number low, high;
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(low), "=f"(high)
        : "r"(part));
    return larger(low, high);
}
// A byte is the last bits of the half that is 1024 more.
__device__ __forceinline__ u32 arrived_pair(u32 low, u32 high) {
    const u32 pair = low | high << 16;
    return BYTES ? minus(pair | 0x64006400, 0x64006400) : pair;
}
typedef Stored Before;
// A difference of halves that is rounded to a half is the same by way of a float.
__device__ __forceinline__ bool compare(const seen (&now)[CHANNELS], const Before& before, bool, Part (&size)[PARTS]) {
    u32 other = 0;
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        const bool both = 2 * j + 1 < CHANNELS;
        const u32 kept = before.of[2 * j] | (u32)before.of[2 * j + 1] << 16;  // behind the last channel is 0
        const u32 fresh = arrived_pair(now[2 * j], both ? now[both ? 2 * j + 1 : 0] : 0);
        other |= fresh ^ kept, size[j] = minus(fresh, kept) & 0x7fff7fff;
    }
    return other != 0;
}
#else
#define PARTS CHANNELS
typedef number Part;
__device__ __forceinline__ Part plus(Part a, Part b) { return a + b; }
__device__ __forceinline__ Part larger_of(Part a, Part b) { return larger(a, b); }
__device__ __forceinline__ number highest(Part part) { return part; }
struct Before { value of[PACKED ? 4 : 1]; };
// The size of what a pixel's channels changed by, as it would be stored; whether any bit is another.
__device__ __forceinline__ bool compare(const seen (&now)[CHANNELS], const Before& before, bool keeps, Part (&size)[PARTS]) {
    bits other = 0;
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        const value kept = before.of[j], fresh = !keeps ? arrived(now[j]) : get(kept) == get(kept) ? kept : put(0);
        other |= bits_of(fresh) ^ bits_of(kept), size[j] = magnitude(get(put(get(fresh) - get(kept))));
    }
    return other != 0;
}
#endif

// WHOLE: all rows of the warp's are of the map.
template <bool WHOLE>
__device__ __forceinline__ void look_at(
    const seen* frame, long long sn, long long sc, long long sh, long long sw, const value* stored, int pitch, u32* moved,
    u32* near, u32* other, number* cells, u64* held, const number* noise, number* mean, const number* then,
    const number* frames, int C, int H, int W, number limit, number peak, number weak, number deviations, number root,
    number slowest) {
    const int n = blockIdx.y, top = blockIdx.z * DEEP, lane = threadIdx.x & 31;
    const int left = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 32;
    // Lanes beside the map have its last column, and rows below it its last row: what they say there is left out of masks,
    // and makes sums too large, which is no harm.
    const int x = min(left + lane, W - 1), last = WHOLE ? DEEP - 1 : H - 1 - top;
    frame += n * sn + top * sh + x * sw, stored += (size_t)(n * H + top) * W * pitch + x * pitch;
    bool keeps[DEEP] = {}, differs[DEEP] = {};
#if HOLD
#pragma unroll
    for (int r = 0; r < DEEP; r++)
        for (int c = 0; c < C; c++) keeps[r] |= !is_finite(get(arrived(frame[min(r, last) * sh + c * sc])));
#endif
    Part highest_of[DEEP] = {};     // the largest changes of each pixel
#if SMOOTH > 1
    number sums[DEEP / CELL] = {};  // the largest sum of a channel's, in each cell
#endif
    for (int c = 0; c < (PACKED ? 1 : C); c += CHANNELS) {
        seen now[DEEP][CHANNELS];
        Before before[DEEP];
#pragma unroll
        for (int r = 0; r < DEEP; r++) {
            const int row = min(r, last);
            before[r] = *(const Before*)(stored + row * W * pitch + c);
#pragma unroll
            for (int j = 0; j < CHANNELS; j++) now[r][j] = frame[(c + j) * sc + row * sh];
        }
        Part changed[DEEP / CELL][PARTS] = {};
#pragma unroll
        for (int r = 0; r < DEEP; r++) {
            Part size[PARTS];
            differs[r] |= compare(now[r], before[r], keeps[r], size);
#pragma unroll
            for (int j = 0; j < PARTS; j++) {
                changed[r / CELL][j] = plus(changed[r / CELL][j], size[j]);
                highest_of[r] = larger_of(highest_of[r], size[j]);
            }
        }
#if SMOOTH > 1
#pragma unroll
        for (int k = 0; k < DEEP / CELL; k++)
#pragma unroll
            for (int j = 0; j < PARTS; j++) {
#pragma unroll
                for (int lanes = 1; lanes < CELL; lanes *= 2)
                    changed[k][j] = plus(changed[k][j], __shfl_xor_sync(~0u, changed[k][j], lanes));
                sums[k] = larger(sums[k], highest(changed[k][j]));
            }
#endif
    }
#if RECENT > 1
    const bool lasts = frames[n] + 1 > RECENT;
    const number share = 1 / (frames[n] + 1), rate = share < slowest ? slowest : share;
    number lasting[DEEP] = {};  // the largest change of a channel's mean
#if SMOOTH > 1
    for (int k = 0; k < DEEP / CELL; k++) sums[k] /= root;
#endif
    for (int c = 0; c < C; c++) {
        number* const of_mean = mean + ((size_t)(n * C + c) * H + top) * W + x;
        const number* const of_then = then + (of_mean - mean);
        number old[DEEP], was[DEEP] = {}, fresh[DEEP], drifted[DEEP / CELL] = {};
#pragma unroll
        for (int r = 0; r < DEEP; r++) {
            const int row = min(r, last);
            old[r] = of_mean[(size_t)row * W];
            if (lasts) was[r] = of_then[(size_t)row * W];
            const value kept = stored[(size_t)row * W * pitch + c];
            fresh[r] = get(!keeps[r] ? arrived(frame[c * sc + row * sh]) : get(kept) == get(kept) ? kept : put(0));
        }
#pragma unroll
        for (int r = 0; r < DEEP; r++) {
            const number next = old[r] != old[r] ? fresh[r] : old[r] + times(fresh[r] - old[r], rate);
            if (left + lane < W && r <= last) of_mean[(size_t)r * W] = next;
            const number drift = lasts ? magnitude(next - was[r]) : 0;
            lasting[r] = larger(lasting[r], drift), drifted[r / CELL] += drift;
        }
#if SMOOTH > 1
#pragma unroll
        for (int k = 0; k < DEEP / CELL; k++) {
#pragma unroll
            for (int lanes = 1; lanes < CELL; lanes *= 2) drifted[k] += __shfl_xor_sync(~0u, drifted[k], lanes);
            sums[k] = larger(sums[k], drifted[k]);
        }
#endif
    }
#endif
#if SMOOTH > 1
    if (lane % CELL == 0 && left + lane < W)
#pragma unroll
        for (int k = 0; k < DEEP / CELL; k++)
            if (k * CELL <= last) cells[((size_t)n * cells_of(H) + top / CELL + k) * cells_of(W) + x / CELL] = sums[k];
#endif
    u32 of_moved = 0, of_near = 0, of_other = 0;  // lane r has row r's
#pragma unroll
    for (int r = 0; r < DEEP; r++) {
        const u32 all = __ballot_sync(~0u, differs[r]);
        if (lane == r) of_other = all;
    }
    Part highest_of_all = highest_of[0];
#pragma unroll
    for (int r = 1; r < DEEP; r++) highest_of_all = larger_of(highest_of_all, highest_of[r]);
    if (SMOOTH == 1 || __any_sync(~0u, !(highest(highest_of_all) <= peak)))
#pragma unroll
        for (int r = 0; r < DEEP; r++) {
            const number one = highest(highest_of[r]);
            bool passes = !(one <= peak);
#if SMOOTH == 1
#if RECENT > 1
            const number change = larger(one / root, lasting[r]);
#else
            const number change = one;
#endif
            number least = limit;
            if (NOISE) least = min(max(noise[(size_t)(n * H + top + min(r, last)) * W + x] * deviations, limit), peak);
            passes = limit == 0 ? differs[r] : passes || !(change <= least);
            const u32 faint = WEAK ? __ballot_sync(~0u, differs[r] && !(change <= weak)) : 0;
            if (WEAK && lane == r) of_near = faint;
#endif
            const u32 all = __ballot_sync(~0u, passes);
            if (lane == r) of_moved = all;
        }
#if HOLD
    int kept = 0;
#pragma unroll
    for (int r = 0; r < DEEP; r++) kept += __popc(__ballot_sync(~0u, keeps[r] && left + lane < W && r <= last));
    if (kept && lane == 0) atomicAdd(held, (u64)kept);
#endif
    if (lane >= DEEP || lane > last) return;
    const int word = (n * H + top + lane) * words_of(W) + left / 32;
    const u32 of_map = ~0u >> max(0, 32 - (W - left));
    moved[word] = of_moved & of_map, other[word] = of_other & of_map;
    if (WEAK) near[word] = of_near & of_map;
}

// moved: beyond the threshold and the noise; with SMOOTH, so far, where a pixel passes `peak`. near: those that a change
// takes along, with WEAK (without, all that differ). other: any bit differs. cells: the largest sum of a channel's changes
// in a cell. noise: N H W; deviations: how many of them a change must exceed.
// mean: the running mean of a stream's frames, N C H W, NaN before the first: at first of all of them, then at the rate at
// which it has the noise of one of RECENT frames, `slowest`; then: what it was when a pixel was stored, which says nothing
// before RECENT of `frames`. Frames themselves are compared at `root` thresholds, their means at one.
extern "C" __global__ void __launch_bounds__(256)
    look(const seen* frame, const u64* at, long long sn, long long sc, long long sh, long long sw, const value* stored,
         int pitch, const int* awake, u32* moved, u32* near, u32* other, number* cells, u64* held, const number* noise,
         number* mean, const number* then, const number* frames, int C, int H, int W, number limit, number peak,
         number weak, number deviations, number root, number slowest) {
    wait_for_predecessor();
    const int left = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 32;
    if (!awake[blockIdx.y] || left >= W) return;
    frame = found(frame, at);
    if ((int)(blockIdx.z + 1) * DEEP <= H)
        look_at<true>(frame, sn, sc, sh, sw, stored, pitch, moved, near, other, cells, held, noise, mean, then, frames, C, H, W, limit, peak, weak, deviations, root, slowest);
    else
        look_at<false>(frame, sn, sc, sh, sw, stored, pitch, moved, near, other, cells, held, noise, mean, then, frames, C, H, W, limit, peak, weak, deviations, root, slowest);
}
