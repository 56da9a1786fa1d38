#include "cuda_on_cpu.h"
#include "../../kernels/sparsify.cu"

extern "C" void run_sparsify(const value* frame, long long sn, long long sc, long long sh, long long sw, value* stored,
                             int pitch, const int* awake, u32* mask, int* changed, int* computed, u64* nonfinite, int N,
                             int C, int H, int W, number threshold) {
    const int blocks = (H * words_of(W) * 32 + 63) / 64;
    launch(blocks, N, 64, [=] {
        sparsify(frame, nullptr, sn, sc, sh, sw, stored, pitch, awake, mask, changed, computed, nonfinite, C, H, W,
                 threshold);
    });
}
