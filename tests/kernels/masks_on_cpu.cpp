#include "cuda_on_cpu.h"
#include "../../kernels/masks.cu"

thread_local u64 shared[1 << 13];

extern "C" void run_spread(const u64* table, int longs, int listings, int streams, int blocks, int then_list) {
    launch(blocks, streams, 64, [=] { spread(table, longs, listings, then_list); });
}

extern "C" void run_list(const u64* table, int longs, int listings, int streams) {
    launch(2, streams, 64, [=] { list(table, longs, listings); });
}

extern "C" void run_sparsify(const value* frame, long long sn, long long sc, long long sh, long long sw, value* stored,
                             int pitch, const int* awake, u32* mask, int* changed, int* computed, int N, int C,
                             int H, int W, number threshold) {
    const int blocks = (H * words_of(W) * 32 + 63) / 64;
    launch(blocks, N, 64, [=] {
        sparsify(frame, nullptr, sn, sc, sh, sw, stored, pitch, awake, mask, changed, computed, C, H, W, threshold);
    });
}

extern "C" void run_commit(const value* fresh, long long sn, long long sc, long long sh, long long sw, value* stored,
                           int pitch, u32* mask, int* changed, const int* list, const int* count, int C, int H, int W,
                           number threshold) {
    launch(2, 1, 64, [=] {
        commit(fresh, sn, sc, sh, sw, stored, pitch, mask, changed, list, count, C, H, W, threshold, 1);
    });
}
