#include "cuda_on_cpu.h"
#include "../../kernels/masks.cu"

// The candidates of every pixel, N x OH x OW.
extern "C" void run_reads_change(const Reach* reach, u8* out, int N, int OH, int OW) {
    for (int n = 0; n < N; n++)
        for (int y = 0; y < OH; y++)
            for (int x = 0; x < OW; x++) *out++ = reads_change(*reach, n, y, x);
}
