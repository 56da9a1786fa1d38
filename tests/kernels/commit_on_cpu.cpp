#include "cuda_on_cpu.h"
#include "../../kernels/commit.cu"

extern "C" void run_commit(const value* fresh, long long sn, long long sc, long long sh, long long sw, value* stored,
                           int pitch, u32* mask, int* changed, const int* list, const int* count, int C, int H, int W,
                           number threshold) {
    launch(2, 1, 64, [=] {
        commit(fresh, sn, sc, sh, sw, stored, pitch, mask, changed, list, count, C, H, W, threshold, 1);
    });
}
