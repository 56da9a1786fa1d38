// A ceiling on what changes in a frame: which tiles of 16 pixels may, of those in which something did.
// deltaconvert/gate.py is the meaning.
//
// `claim` finds what a tile claims: its largest change, by the frames that it waited. `choose`, a block a stream, finds
// the `most` tiles whose claims come first. Nothing is sorted: it asks bit by bit for the least key of them, which takes a
// sum over the block each time, and of equal keys the first go. Where no more than `most` claim anything, in a calm
// frame, all of them go and it asks nothing. `take` of gate.cu leaves out the pixels of the others.
//
// What is kept of tiles lies in slots, N x rows x 2 * words: a word of a mask has two. The last one of a row may lie
// beside the frame; it claims nothing.
#include "gate_pixel.cuh"
#include "ceiling.cuh"

#ifndef KEYS
#define KEYS 8  // slots of a thread of `choose`: 1024 threads have those of 1080p
#endif
#define WITHIN 1e-3  // as in gate.py
#define NEW (-1)     // claimed by a tile with pixels never seen: it goes, and is not counted

struct Slots {
    int words, across, rows, row, count;  // words and tiles of a row; rows, slots of each of them, and of a stream
    __device__ __forceinline__ Slots(int H, int W)
        : words(words_of(W)), across((W + 15) / 16), rows((H + 15) / 16), row(2 * words), count(rows * row) {}
    __device__ __forceinline__ int tile(int slot) const { return slot / row * across + slot % row; }
    __device__ __forceinline__ bool is_inside(int slot) const { return slot < count && slot % row < across; }
    // Whether it is the turn of a slot's tile, of `refresh` frames; 0 is off.
    __device__ __forceinline__ bool has_turn(int slot, int refresh, long long tick) const {
        return refresh && is_inside(slot) && (long long)tile(slot) * refresh / (rows * across) == tick % refresh;
    }
};

#define AT_ONCE 4  // rows whose pixels a warp of `claim` reads before it compares them

// A warp has the two tiles of a word of 16 rows; a lane is a column. mask: what changed, as `decide` left it; other: any
// bit differs. pixels: how many a tile has that change if it goes, or if it is its turn.
extern "C" __global__ void claim(const seen* frame, const u64* at, long long sn, long long sc, long long sh,
                                 long long sw, const value* stored, int pitch, const int* awake, const u32* mask,
                                 const u32* other, const number* age, const long long* ticks, number* claims, int* pixels,
                                 int C, int H, int W, int refresh) {
    wait_for_predecessor();
    frame = found(frame, at);
    const Slots slots(H, W);
    const int n = blockIdx.y, lane = threadIdx.x & 31, pair = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (!awake[n] || pair >= slots.count / 2) return;
    const int top = pair / slots.words * 16, left = pair % slots.words * 32, slot = 2 * pair + lane / 16;
    const size_t word = (size_t)(n * H + top + lane) * slots.words + left / 32;  // lanes 0 to 15, a row each
    const bool has_row = lane < min(16, H - top);
    const u32 mine = has_row ? mask[word] : 0;
    number highest = 0;
    bool is_new = false, is_any = false;
    for (u32 rows = __ballot_sync(~0u, mine != 0); rows;) {
        bool asks[AT_ONCE];
        int y[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            const int row = rows ? __ffs(rows) - 1 : 0;
            const u32 bits = __shfl_sync(~0u, mine, row);
            asks[q] = rows && bits >> lane & 1, y[q] = top + row, is_any |= asks[q];
            rows &= rows - 1;
        }
        for (int c = 0; c < C; c++) {
            number change[AT_ONCE] = {};
            value before[AT_ONCE] = {};
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++) {
                const Pixel pixel(asks[q], frame, sn, sc, sh, sw, stored, pitch, C, H, W, n, y[q], left + lane);
                if (asks[q]) before[q] = pixel.before(c), change[q] = pixel.change(c);
            }
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++) {
                highest = larger(highest, magnitude(change[q]));
                is_new |= get(before[q]) != get(before[q]);
            }
        }
    }
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) highest = larger(highest, __shfl_xor_sync(~0u, highest, lanes));
    const u32 of_any = __ballot_sync(~0u, is_any), of_new = __ballot_sync(~0u, is_new);
    const u32 of_turn = __ballot_sync(~0u, slots.has_turn(slot, refresh, ticks[n]));
    const u32 going = of_turn && has_row ? (mine & ~of_turn) | (other[word] & of_turn) : mine;
    const int both = sum_of_warp(__popc(going & 0xffff) | __popc(going >> 16) << 16);  // 256 each at most
    if (lane % 16) return;
    if (!(highest <= (number)1e18)) highest = 1e18;  // or one infinite pixel would make every wait equal
    if (highest < (number)1e-18) highest = 1e-18;
    const bool claims_any = of_any >> lane & 0xffff, has_new = of_new >> lane & 0xffff;
    const number waited = claims_any ? age[(size_t)n * slots.rows * slots.across + slots.tile(slot)] : 0;
    claims[(size_t)n * slots.count + slot] = has_new ? NEW : claims_any ? highest * (waited + 1) : 0;
    pixels[(size_t)n * slots.count + slot] = both >> lane & 0xffff;
}

__device__ __forceinline__ int sum_of_block(int value) {  // which all of its threads get, and call for
    __shared__ int totals[32];
    const int lane = threadIdx.x & 31;
    value = sum_of_warp(value);
    __syncthreads();  // whoever called before has read them
    if (lane == 0) totals[threadIdx.x / 32] = value;
    __syncthreads();
    return sum_of_warp(lane < (int)blockDim.x / 32 ? totals[lane] : 0);
}

// The sum over the threads of the block before this one. Called once.
__device__ __forceinline__ int sum_before(int value) {
    __shared__ int totals[32];
    const int lane = threadIdx.x & 31;
    int before = value;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int other = __shfl_up_sync(~0u, before, lanes);
        before += lane >= lanes ? other : 0;
    }
    if (lane == 31) totals[threadIdx.x / 32] = before;
    __syncthreads();
    for (int warp = 0; warp < (int)threadIdx.x / 32; warp++) before += totals[warp];
    return before - value;
}

// Of each square of `side` tiles the largest claim, a warp a square.
__device__ __forceinline__ void find_leads(const number* claims, number* leads, const Slots& slots, int side) {
    const int lane = threadIdx.x & 31, squares = (slots.row + side - 1) / side;  // of a row
    for (int i = threadIdx.x / 32; i < (slots.rows + side - 1) / side * squares; i += blockDim.x / 32) {
        const int top = i / squares * side, left = i % squares * side;
        const int wide = min(side, slots.row - left), high = min(side, slots.rows - top);
        number lead = 0;
        for (int k = lane; k < wide * high; k += 32)
            lead = max(lead, claims[(top + k / wide) * slots.row + left + k % wide]);
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) lead = max(lead, __shfl_xor_sync(~0u, lead, lanes));
        if (lane == 0) leads[i] = lead;
    }
    __syncthreads();
}

// Which tiles go, what the others have waited then, and how many pixels change: a block a stream. A thread has KEYS slots,
// one behind the other. leads: room for as many as there are squares of `side` tiles.
extern "C" __global__ void __launch_bounds__(1024)
    choose(const int* awake, const number* claims, const int* pixels, number* leads, number* age, u8* choice, int* changed,
           const long long* ticks, int H, int W, int most, int side, int refresh) {
    wait_for_predecessor();
    const Slots slots(H, W);
    const int n = blockIdx.y, first = threadIdx.x * KEYS;
    if (!awake[n]) return;
    claims += (size_t)n * slots.count, pixels += (size_t)n * slots.count, leads += (size_t)n * slots.count;
    choice += (size_t)n * slots.count, age += (size_t)n * slots.rows * slots.across;
    Rank keys[KEYS], least = 0;  // 0 where nothing is claimed
    int wanted = 0, room = 0, ahead = 0;
#pragma unroll
    for (int k = 0; k < KEYS; k++) {
        const number asked = first + k < slots.count ? claims[first + k] : 0;
        keys[k] = asked > 0 ? rank_of(asked) : 0, wanted += asked > 0;
    }
    if (sum_of_block(wanted) > most) {
        find_leads(claims, leads, slots, side);
        const int squares = (slots.row + side - 1) / side;
#pragma unroll
        for (int k = 0; k < KEYS; k++) {
            const int slot = first + k, square = slot / slots.row / side * squares + slot % slots.row / side;
            if (keys[k]) keys[k] = rank_of(leads[square] + times(at_rank(keys[k]), (number)WITHIN));
        }
        const auto count = [&](auto holds) {
            int found = 0;
#pragma unroll
            for (int k = 0; k < KEYS; k++) found += holds(keys[k]);
            return found;
        };
        for (int bit = 8 * sizeof(Rank) - 2; bit >= 0; bit--) {  // the first one is a sign's
            const Rank next = least | (Rank)1 << bit;
            if (sum_of_block(count([&](Rank key) { return key >= next; })) >= most) least = next;
        }
        room = most - sum_of_block(count([&](Rank key) { return key > least; }));
        ahead = sum_before(count([&](Rank key) { return key == least; }));
    }
    int total = 0;
#pragma unroll
    for (int k = 0; k < KEYS; k++) {
        const int slot = first + k;
        const bool goes = keys[k] > least || (keys[k] && keys[k] == least && ahead++ < room);
        if (slot >= slots.count) continue;
        if (slots.is_inside(slot)) {
            number* const waited = age + slots.tile(slot);
            *waited = keys[k] && !goes ? *waited + 1 : 0;
        }
        const int kind = (goes || claims[slot] == NEW ? GOES : 0) | (slots.has_turn(slot, refresh, ticks[n]) ? TURN : 0);
        choice[slot] = kind, total += kind ? pixels[slot] : 0;
    }
    total = sum_of_block(total);
    if (threadIdx.x == 0) changed[n] = total;
}
