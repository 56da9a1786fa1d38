#include "cuda_on_cpu.h"
#include "../../kernels/masks.cu"

thread_local u64 shared[1 << 13];

extern "C" void run_spread(const u64* table, int longs, int listings, int streams, int blocks, int then_list) {
    launch(blocks, streams, 64, [=] { spread(table, longs, listings, then_list); });
}

extern "C" void run_spread_alone(const u64* table, int longs, int listings, int streams, int then_list) {
    launch(1, streams, 64, [=] { spread_alone(table, longs, listings, then_list); });
}

extern "C" void run_list(const u64* table, int longs, int listings, int streams) {
    launch(2, streams, 64, [=] { list(table, longs, listings); });
}
