// kernels/wgmma.cuh for the CPU, in its place: copies that are there at once, barriers that count, and products of
// matrices that lie in shared memory as their descriptors say, swizzled. Of short types; nothing is rounded on its way.
#include <cstdio>
#include <cstdlib>
#include <map>

struct Barrier {
    int count = 0, missing = 0;
    unsigned completed = 0;
};
static std::map<u32, Barrier> barriers;                     // by their place in shared memory
static std::map<int, std::pair<int, unsigned>> of_numbers;  // how many wait, how often they went on

// Others go on until something holds; a kernel in which nobody does has ended in a knot.
template <typename Holds> static void until(const Holds& holds, const char* what) {
    for (long turns = 0; !holds(); yield())
        if (turns++ > 200000) printf("thread %u waits for %s for ever\n", threadIdx.x, what), abort();
}

static void copy(u32 to, const void* from, bool inside) {
    if (inside)
        memcpy(memory + to, from, PIECE);
    else
        memset(memory + to, 0, PIECE);
}
static void publish() {}
static void set_up(u32 barrier, int arrivals) { barriers[barrier] = {arrivals, arrivals, 0}; }
static void arrive(u32 barrier) {
    Barrier& b = barriers.at(barrier);
    if (--b.missing == 0) b.missing = b.count, b.completed++;
}
static void bulk_copy(u32 to, const void* from, int bytes, u32 barrier) {
    memcpy(memory + to, from, bytes);
    arrive(barrier);
}
static void arrive_with_copies(u32 barrier) { arrive(barrier); }
static void wait_for_copies() {}
template <int open, typename Then> static void one_by_one(const Then& then) {
    then(open);
    if constexpr (open > 0) one_by_one<open - 1>(then);
}
static void await(u32 barrier, u32 phase) {
    until([&] { return (barriers.at(barrier).completed & 1) != phase; }, "a barrier in shared memory");
}
static void meet(int number, int threads) {
    if (threads == (int)blockDim.x) return __syncthreads();
    auto& [waiting, went_on] = of_numbers[number];
    const unsigned mine = went_on;
    if (++waiting == threads) waiting = 0, went_on++;
    until([&] { return mine != of_numbers[number].second; }, "a barrier with a number");
}

static u64 matrix(u32 at) { return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// Row and column of what a descriptor tells: rows of 128 or 64 bytes, eight of them together.
static float element(u64 descriptor, int row, int k) {
    const bool wide = descriptor >> 62 == 1;
    u32 at = (descriptor & 0x3fff) * 16 + row / 8 * (descriptor >> 32 & 0x3fff) * 16 + row % 8 * (wide ? 128 : 64) + k * 2;
    at ^= (at >> 7 & (wide ? 7 : 3)) << 4;
    value v;
    memcpy(&v, memory + at, sizeof(v));
    return get(v);
}
template <int n> static void multiply(float (&sum)[n], u64 rows, u64 weights, int add) {
    const int lane = threadIdx.x & 31, first = threadIdx.x / 32 % 4 * 16 + lane / 4;
    for (int i = 0; i < n; i++) {
        const int row = first + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float total = add ? sum[i] : 0;
        for (int k = 0; k < 16; k++) total += element(rows, row, k) * element(weights, column, k);
        sum[i] = total;
    }
}
static void start_multiplying() {}
static void end_of_step() {}
template <int open> static void wait_for_sums() {}

#define ROUNDS 0
struct Rounded {};
static void load_rounded(Rounded&, u32) {}
template <int n> static void multiply_step(float (&sums)[n], u32 a, const Rounded&, u32 b, int more) {
    for (int k = 0; k < 4; k++) multiply(sums, matrix(a) + 2 * k, matrix(b) + 2 * k, more || k);
}
