#include "cuda_on_cpu.h"
#include "../../kernels/masks.cu"

extern "C" void run_dilate3x3(int grid, int block, const u64* mask, u64* out, int N, int H, int W) {
    launch(grid, block, [&] { dilate3x3(mask, out, N, H, W); });
}
extern "C" void run_shrink2(int grid, int block, const u64* mask, u64* out, int N, int H, int W, int OH, int OW) {
    launch(grid, block, [&] { shrink2(mask, out, N, H, W, OH, OW); });
}
extern "C" void run_list_tiles(int grid, int block, const u64* mask, int* list, int* count, int total) {
    launch(grid, block, [&] { list_tiles(mask, list, count, total); });
}
