// Dense values -> delta: compare with the stored map, store, mark.   stored: N H W C; frame: any strides.
// A thread takes PIXELS pixels of a row; blockIdx.y is the stream. A row has threads for whole words of its mask.
//
// Nearly every pixel is unchanged, so what counts is to have many loads in flight: the pixels of a thread lie side by
// side in the frame, and a stored pixel is one load.
#include "frame.cuh"

#ifndef PIXELS
#define PIXELS 1
#endif
#ifndef CHANNELS
#define CHANNELS 0  // known when the kernel is compiled where there are few; else 0
#endif
#ifndef LAST
#define LAST 0  // whether a pixel's channels lie side by side in the frame, and pixels behind each other
#endif
struct __align__(PIXELS * sizeof(seen)) Run { seen of[PIXELS]; };
struct __align__(4 * sizeof(value)) Stored { value of[4]; };

extern "C" __global__ void sparsify(const seen* frame, const u64* at, long long sn, long long sc, long long sh,
                                    long long sw, value* stored, int pitch, const int* awake, u32* mask, int* changed,
                                    int* computed, u64* nonfinite, int C, int H, int W, number threshold) {
    wait_for_predecessor();
    frame = found(frame, at);
    const int words = words_of(W), n = blockIdx.y;
    const bool looks = awake[n];  // a stream that sleeps has the image of the frame before
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS, y = i / (words * 32), x = i - y * words * 32;
    u32 moved = 0;   // a bit of each pixel
    int broken = 0;  // of them, how many are not finite; bytes always are
    if (looks && y < H && x < W) {
        const seen* fresh = frame + n * sn + y * sh + x * sw;
        value* pixel = stored + ((size_t)(n * H + y) * W + x) * pitch;
#if CHANNELS
        Run runs[CHANNELS];
        Stored kept[PIXELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) runs[c] = *(const Run*)(fresh + c * (LAST ? PIXELS : sc));
        const auto came = [&](int p, int c) {
            const int k = LAST ? p * CHANNELS + c : c * PIXELS + p;
            return arrived(runs[k / PIXELS].of[k % PIXELS]);
        };
#pragma unroll
        for (int p = 0; p < PIXELS; p++) kept[p] = *(const Stored*)(pixel + p * 4);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
            bool other = false, finite = true;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                other |= differs(came(p, c), kept[p].of[c], threshold);
                kept[p].of[c] = came(p, c);
            }
            if (other) {
                *(Stored*)(pixel + p * 4) = kept[p];
#pragma unroll
                for (int c = 0; c < CHANNELS && !BYTES; c++) finite &= is_finite(get(kept[p].of[c]));
            }
            moved |= (u32)other << p, broken += !finite;
        }
#else
        for (int c = 0; c < C; c++) moved |= differs(arrived(fresh[c * sc]), pixel[c], threshold);
        for (int c = 0; moved && c < C; c++) {
            pixel[c] = arrived(fresh[c * sc]);
            broken |= !BYTES && !is_finite(get(pixel[c]));
        }
#endif
    }
    u32 word = moved << (x & 31);
#pragma unroll
    for (int lanes = 16 / PIXELS; lanes > 0; lanes /= 2) word |= __shfl_xor_sync(~0u, word, lanes);
    if (y < H && x % 32 == 0) mask[(n * H + y) * words + x / 32] = word;
    int ones = 0;
#pragma unroll
    for (int p = 0; p < PIXELS; p++) ones += __syncthreads_count(moved >> p & 1);
    if (threadIdx.x == 0 && ones) atomicAdd(changed + n, ones);
    if (looks && i == 0) atomicAdd(computed, H * W);
    if (!BYTES) add_nonfinite(nonfinite + n, broken);
}
