// The kernel around a function that computes listed pixels one by one; a thread takes WIDTH channels of a pixel.
//
// A source first defines `struct Head`, its parameters in device memory, and includes this. Its function `head` fills
// `v` with channels c .. c + WIDTH - 1 of pixel (y, x) of stream n.
#include "compare.cuh"

__device__ __forceinline__ void head(number (&v)[WIDTH], const Head& h, int place, int n, int y, int x, int c);

// out: N x OH x OW pixels of `channels`, `pitch` values apart; list: places of pixels, *count of them; early: see
// `begin`; the others: struct Marks.
extern "C" __global__ void __launch_bounds__(256) rows(const Head* __restrict__ h, const Operand* __restrict__ operands,
                                                       value* out, int pitch, int channels,
                                                       const int* list, const int* count, int OH, int OW, int early,
                                                       u32* mask, int* changed, Threshold threshold, int* marked,
                                                       int* marked_count) {
    begin(early);
    const int packs = threads_of_pixel(channels);
    const u32 total = (u32)read_counter(count) * packs;
    if (blockIdx.x > 0 && blockIdx.x * blockDim.x >= total) return;
    const Marks marks = {mask, changed, threshold, marked, marked_count};
    begin_marks();
    if (early) wait_for_predecessor();
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        const int place = list[i / packs], c = i % packs * WIDTH;
        const int n = place / (OH * OW), pixel = place % (OH * OW);
        value* const to = !COMPARE || c < channels ? out + (size_t)place * pitch + c : nullptr;
        const Pack stored = before(to);
        number v[WIDTH];
        if (to) head(v, *h, place, n, pixel / OW, pixel % OW, c);
        keep(v, operands, to, stored, channels, place, n, c, OW, marks);
    }
    end_marks(marks);
}
