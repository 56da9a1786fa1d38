// One kernel (SOURCE, NAME and the macros of its file) that takes its arguments as a launch does.
#include "cuda_on_cpu.h"
#include SOURCE

thread_local u64 shared[1 << 13];

extern "C" void run(unsigned x, unsigned y, unsigned z, unsigned threads, void** args) {
    launch_with(x, y, z, threads, NAME, args);
}
