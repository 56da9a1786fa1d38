// Masks of changed pixels: one bit a pixel, a row of W pixels in (W + 31) / 32 words whose last bits are 0; and lists of
// pixels, which the computing kernels walk. Which pixels of a mask an output pixel reads: reach.cuh.
//
// `changed` holds the number of changed pixels of each stream, 0 before a frame. A stream in which nothing changed
// costs no look at its mask, and one in which everything did is a mask of ones, whatever the operator: that is all
// that a first frame is (deltaconvert/reach.py).
#include "frame.cuh"
#include "reach.cuh"

// The candidates of a step, from the masks of its inputs: `bits`, one a pixel, and `list` of their places
// n * H * W + y * W + x, `count` of them.
struct Listing {
    u32* bits;
    u32* compared;  // the output's mask if a threshold follows: cleared for `commit`. Without one `bits` are that mask
    int* changed;
    int* list;
    int* count;
    int first, inputs;  // its reaches
    int behind;         // it reads the bits of a listing before it
    int turn;           // words of 32 pixels of those before it, in warps
    int kept, unused;   // where its bits are kept in shared memory, in words; or -1
    int H, W;
};

// Copy the parameters of a launch: `listings` Listings, then their Reaches, `longs` words of 8 bytes together.
__device__ __forceinline__ Listing* parameters(const u64* table, int longs) {
    extern __shared__ u64 shared[];
    for (int i = threadIdx.x; i < longs; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
    return (Listing*)shared;
}

#define STAGED 2048  // places that a block puts in order before it writes them
#define FEW 8        // of a word's 32 pixels

// The candidates of a block's warps, one after the other: how many there are before this warp's, which has `total`; of
// all of them afterwards, whose first place in the list is `first`. All threads call it.
__device__ __forceinline__ int before_in_block(int* count, int& total, int& first) {
    __shared__ int totals[33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    __syncthreads();  // whoever called before has read them
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int other = 0; other < (int)blockDim.x / 32; other++) {
        if (other < warp) before += totals[other];
        total += totals[other];
    }
    if (threadIdx.x == 0) totals[32] = atomicAdd(count, total);
    __syncthreads();
    first = totals[32];
    return before;
}

// Write the places of a word's pixels, the first of which is `place`, each lane its own.
__device__ __forceinline__ void write_own(int* to, u32 word, int place) {
    for (; word; word &= word - 1) *to++ = place + __ffs(word) - 1;
}

// The same, a word of the warp at a time, a lane a pixel: for words of many pixels.
__device__ __forceinline__ void write_together(int* list, int start, u32 word, int place) {
    const int lane = threadIdx.x & 31;
    for (u32 left = __ballot_sync(~0u, word != 0); left; left &= left - 1) {
        const int other = __ffs(left) - 1;
        const u32 bits = __shfl_sync(~0u, word, other);
        const int to_place = __shfl_sync(~0u, start, other), of_place = __shfl_sync(~0u, place, other);
        if (bits >> lane & 1) list[to_place + __popc(bits & ((1u << lane) - 1))] = of_place + lane;
    }
}

// List the candidates in the words of a warp; (y, x) is the first pixel of a lane's. The order of a list is the
// hardware's: no pixel's value may depend on its place in it. together: all warps of a block call it, and it returns how
// many candidates they have: what thousands of warps add to one number takes 2 ns each.
__device__ __forceinline__ int list_words(const Listing& to, int n, int y, int x, u32 word, bool together) {
    const int lane = threadIdx.x & 31, place = (n * to.H + y) * to.W + x;
    int before = __popc(word);  // candidates of the lanes up to this one
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int others = __shfl_up_sync(~0u, before, lanes);
        if (lane >= lanes) before += others;
    }
    int total = __shfl_sync(~0u, before, 31), start = 0;
    before -= __popc(word);
    if (together) {
        __shared__ int staged[STAGED];
        before += before_in_block(to.count, total, start);
        if (total <= STAGED) {
            write_own(staged + before, word, place);
            __syncthreads();
            for (int i = threadIdx.x; i < total; i += blockDim.x) to.list[start + i] = staged[i];
            return total;
        }
    } else {
        if (total == 0) return 0;
        if (lane == 0) start = atomicAdd(to.count, total);
        start = __shfl_sync(~0u, start, 0);
        if (!__any_sync(~0u, __popc(word) > FEW)) {
            write_own(to.list + start + before, word, place);
            return total;
        }
    }
    write_together(to.list, start + before, word, place);
    return total;
}

// The candidates of several steps. blockIdx.y is a stream, a warp 32 words of its mask at a time.
//
// At threshold 0 masks depend on masks alone, so those of a whole network are known before its first convolution. Large
// masks are a launch each. Small ones, one after the other, are the work of one block (gridDim.x == 1), which keeps their
// bits, and in `counts` the number of them, in shared memory: 0.3 us each, where blocks that meet take 2 to 3.
//
// then_list: list them too; else `list` does, with more blocks, and no mask waits for it.
extern "C" __global__ void __launch_bounds__(1024) spread(const u64* table, int longs, int listings, int then_list) {
    Listing* all = parameters(table, longs);
    Reach* reaches = (Reach*)(all + listings);
    int* counts = (int*)((u64*)all + longs);
    u32* kept = (u32*)(counts + listings);
    const int n = blockIdx.y, lane = threadIdx.x & 31;
    const bool alone = gridDim.x == 1;
    if (alone) {
        for (int k = threadIdx.x; k < listings; k += blockDim.x) counts[k] = 0;
        for (Reach* r = reaches + threadIdx.x; (u64*)r < (u64*)all + longs; r += blockDim.x) {
            if (r->of < 0) continue;
            r->changed = counts + r->of - n;
            if (all[r->of].kept >= 0) r->mask = kept + all[r->of].kept - (size_t)n * r->H * words_of(r->W);
        }
        __syncthreads();
    }
    wait_for_predecessor();
    for (int k = 0; k < listings; k++) {
        const Listing& to = all[k];
        if (to.behind) __syncthreads();
        const int row_words = words_of(to.W), words = to.H * row_words;
        // Each listing begins with other blocks, so that those of a launch are made side by side.
        const u32 blocks = gridDim.x, before = (to.turn * 32 + blockDim.x - 1) / blockDim.x % blocks;
        const int block_of_it = (blockIdx.x + blocks - before) % blocks;
        for (int block = block_of_it * blockDim.x; block < words; block += blocks * blockDim.x) {
            const int mine = block + threadIdx.x, first = mine - lane;
            const int y = mine / row_words, x = (mine - y * row_words) * 32;
            u32 word = 0;
            for (int i = to.first; i < to.first + to.inputs; i++) {
                const Reach& r = reaches[i];
                const int changed = r.changed[n];
                if (changed == 0) continue;
                if (r.kind == EVERYTHING || changed == r.H * r.W) {
                    word = ~0u;
                } else if (has_words(r)) {
                    if (mine < words) word |= candidates(r, n, y, x);
                } else if (r.kind == SOURCES && r.spans) {
                    word |= listed_sources(r, n, y, x, to.H, to.W);
                } else {
                    for (int other = 0; other < 32 && first + other < words; other++) {
                        const int oy = (first + other) / row_words, ox = (first + other - oy * row_words) * 32 + lane;
                        const u32 bits = __ballot_sync(~0u, ox < to.W && reads_change(r, n, oy, ox));
                        if (lane == other) word |= bits;
                    }
                }
            }
            if (mine >= words) word = 0;
            if (to.W - x < 32) word &= (1u << (to.W - x)) - 1;
            if (mine < words) {
                to.bits[(size_t)n * words + mine] = word;
                if (to.compared) to.compared[(size_t)n * words + mine] = 0;
                if (alone && to.kept >= 0) kept[to.kept + mine] = word;
            }
            if (!alone && then_list) {
                if (__syncthreads_count(word != 0) == 0) continue;
                const int total = list_words(to, n, y, x, word, true);
                if (!to.compared && threadIdx.x == 0) atomicAdd(to.changed + n, total);
                continue;
            }
            if (!__any_sync(~0u, word != 0)) continue;
            if (!to.compared) {
                int total = __popc(word);
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
                if (lane == 0) atomicAdd(alone ? counts + k : to.changed + n, total);
            }
            if (then_list) list_words(to, n, y, x, word, false);
        }
    }
    if (!alone) return;
    __syncthreads();
    for (int k = threadIdx.x; k < listings; k += blockDim.x)
        if (!all[k].compared) all[k].changed[n] = counts[k];
}

// The lists of what `spread` found. blockIdx.y is a stream, a warp takes every `warps`-th 32 words of it.
extern "C" __global__ void list(const u64* table, int longs, int listings) {
    const Listing* all = parameters(table, longs);
    wait_for_predecessor();
    const int n = blockIdx.y, lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5;
    int k = 0;
    for (int turn = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;; turn += warps) {
        while (k < listings && turn >= all[k].turn + (words_of(all[k].W) * all[k].H + 31) / 32) k++;
        if (k == listings) return;
        const Listing& to = all[k];
        const int row_words = words_of(to.W), words = row_words * to.H, mine = (turn - to.turn) * 32 + lane;
        const int y = mine / row_words, x = (mine - y * row_words) * 32;
        list_words(to, n, y, x, mine < words ? to.bits[(size_t)n * words + mine] : 0, false);
    }
}
