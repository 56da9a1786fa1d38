// Masks of changed pixels: one bit a pixel, a row of W pixels in (W + 31) / 32 words whose last bits are 0; and lists
// of pixels, which the computing kernels walk. Which pixels of a mask an output pixel reads: reach.cuh.
//
// `changed` holds the number of changed pixels of each stream, 0 before a frame. The mask of a stream in which nothing
// changed is not read. Where everything changed the result is a mask of ones, whatever the operator: that is all that
// makes a first frame (deltaconvert/reach.py).
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
    int first, inputs;  // its reaches: the first of them, and how many
    int behind;         // whether it reads the bits of a listing before it
    int turn;           // warps of work of the listings before it, 32 words of 32 pixels each
    int kept, unused;   // where its bits are kept in shared memory, in words; -1: they are not
    int H, W;
};

// Copy the parameters of a launch: `listings` Listings, then their Reaches, `longs` words of 8 bytes together.
__device__ __forceinline__ Listing* parameters(const u64* table, int longs) {
    extern __shared__ u64 shared[];
    for (int i = threadIdx.x; i < longs; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
    return (Listing*)shared;
}

#define FEW 8  // of a word's 32 pixels

// The candidates of a block's warps, one after the other: how many there are before this warp's, which has `total`; of
// all of them afterwards, whose first place in the list is `first`. All threads call it.
__device__ __forceinline__ int before_in_block(int* count, int& total, int& first) {
    __shared__ int totals[33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    __syncthreads();  // threads of the last call have read them
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

// Write the places of the pixels in this lane's word, the first of which is `place`.
__device__ __forceinline__ void write_own(int* to, u32 word, int place) {
    for (; word; word &= word - 1) *to++ = place + __ffs(word) - 1;
}

// The same for words of many pixels: one word of the warp at a time, with a lane for each pixel.
__device__ __forceinline__ void write_together(int* list, int start, u32 word, int place) {
    const int lane = threadIdx.x & 31;
    for (u32 left = __ballot_sync(~0u, word != 0); left; left &= left - 1) {
        const int other = __ffs(left) - 1;
        const u32 bits = __shfl_sync(~0u, word, other);
        const int to_place = __shfl_sync(~0u, start, other), of_place = __shfl_sync(~0u, place, other);
        if (bits >> lane & 1) list[to_place + __popc(bits & ((1u << lane) - 1))] = of_place + lane;
    }
}

// Candidates of a warp's lanes before this one; total: of all of them.
__device__ __forceinline__ int before_in_warp(u32 word, int& total) {
    const int lane = threadIdx.x & 31;
    int before = __popc(word);
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int others = __shfl_up_sync(~0u, before, lanes);
        if (lane >= lanes) before += others;
    }
    total = __shfl_sync(~0u, before, 31);
    return before - __popc(word);
}

// Write the places of a warp's words to a list from `start` on, which is this lane's. The order of a list is the
// hardware's: no pixel's value may depend on its place in it.
__device__ __forceinline__ void write_words(int* list, int start, u32 word, int place) {
    if (__any_sync(~0u, __popc(word) > FEW))
        write_together(list, start, word, place);
    else
        write_own(list + start, word, place);
}

// The same for all warps of a block together, which add to the list's count once: thousands of additions to one number
// take 2 ns each. Returns how many candidates they have.
__device__ __forceinline__ int list_block(const Listing& to, u32 word, int place) {
    int total, start, before = before_in_warp(word, total);
    before += before_in_block(to.count, total, start);
    write_together(to.list, start + before, word, place);
    return total;
}

// Of the 32 words of a mask that a warp looks at, the one of this lane, and its first pixel.
struct Turn {
    int mine, words, y, x;
    __device__ __forceinline__ Turn(const Listing& to, int mine) : mine(mine) {
        const int row_words = words_of(to.W);
        words = to.H * row_words, y = mine / row_words, x = (mine - y * row_words) * 32;
    }
    __device__ __forceinline__ int place(const Listing& to, int n) const { return (n * to.H + y) * to.W + x; }
};

// This lane's word of a listing's candidates. Called by a whole warp.
__device__ __forceinline__ u32 word_of(const Listing& to, const Reach* reaches, int n, const Turn& at) {
    const int lane = threadIdx.x & 31, row_words = words_of(to.W), first = at.mine - lane;
    u32 word = 0;
    for (int i = to.first; i < to.first + to.inputs; i++) {
        const Reach& r = reaches[i];
        const int changed = read_counter(r.changed + n);
        if (changed == 0) continue;
        if (r.kind == EVERYTHING || changed == r.H * r.W) {
            word = ~0u;
        } else if (has_words(r)) {
            if (at.mine < at.words) word |= candidates(r, n, at.y, at.x);
        } else if (r.kind == SOURCES && r.spans) {
            word |= listed_sources(r, n, at.y, at.x, to.H, to.W);
        } else {
            for (int other = 0; other < 32 && first + other < at.words; other++) {
                const int oy = (first + other) / row_words, ox = (first + other - oy * row_words) * 32 + lane;
                const u32 bits = __ballot_sync(~0u, ox < to.W && reads_change(r, n, oy, ox));
                if (lane == other) word |= bits;
            }
        }
    }
    if (at.mine >= at.words) return 0;
    if (to.W - at.x < 32) word &= (1u << (to.W - at.x)) - 1;
    to.bits[(size_t)n * at.words + at.mine] = word;
    if (to.compared) to.compared[(size_t)n * at.words + at.mine] = 0;
    return word;
}

// The candidates of several steps. blockIdx.y is the stream; a warp takes 32 words of its mask at a time.
//
// At threshold 0 masks depend on masks alone, so those of a whole network are made before its first convolution. Large
// masks have a launch of their own.
//
// then_list: whether to list them as well; else `list` does, with more blocks, and no mask waits for it.
extern "C" __global__ void __launch_bounds__(256) spread(const u64* table, int longs, int listings, int then_list) {
    const Listing* all = parameters(table, longs);
    const Reach* reaches = (const Reach*)(all + listings);
    wait_for_predecessor();
    const int n = blockIdx.y;
    for (int k = 0; k < listings; k++) {
        const Listing& to = all[k];
        // Each listing begins with different blocks, so that the listings of a launch are made side by side.
        const u32 blocks = gridDim.x, before = (to.turn * 32 + blockDim.x - 1) / blockDim.x % blocks;
        const int words = to.H * words_of(to.W), block_of_it = (blockIdx.x + blocks - before) % blocks;
        for (int block = block_of_it * blockDim.x; block < words; block += blocks * blockDim.x) {
            const Turn at(to, block + threadIdx.x);
            const u32 word = word_of(to, reaches, n, at);
            if (then_list) {
                if (__syncthreads_count(word != 0) == 0) continue;
                const int total = list_block(to, word, at.place(to, n));
                if (!to.compared && threadIdx.x == 0) atomicAdd(to.changed + n, total);
            } else if (!to.compared && __any_sync(~0u, word != 0)) {
                const int total = sum_of_warp(__popc(word));
                if ((threadIdx.x & 31) == 0) atomicAdd(to.changed + n, total);
            }
        }
    }
}

// Start the copy of a word into shared memory; `arrived` waits for it.
__device__ __forceinline__ void bring(u32* to, const u32* from) {
#if __CUDA_ARCH__ >= 800
    const u32 place = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(place), "l"(from) : "memory");
#else
    *to = *from;
#endif
}
__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

// The listing that a warp's turn belongs to, searched from k on; `listings` if it is past all of them.
__device__ __forceinline__ int listing_of(const Listing* all, int listings, int k, int turn) {
    while (k < listings && turn >= all[k].turn + (words_of(all[k].W) * all[k].H + 31) / 32) k++;
    return k;
}

// Small masks are made one after the other by one block for each stream: 0.3 us each, where several blocks that meet
// take 2 to 3. However many they are, the block waits for the device's memory twice: for the masks that they follow
// from, which come into shared memory with the counts, and for the places in the lists, which it reserves all at once.
extern "C" __global__ void __launch_bounds__(1024)
    spread_alone(const u64* table, int longs, int listings, int then_list) {
    Listing* all = parameters(table, longs);
    Reach* reaches = (Reach*)(all + listings);
    const int inputs = (int)((Reach*)((u64*)all + longs) - reaches), n = blockIdx.y;
    int* const counts = (int*)((u64*)all + longs);  // of each listing's candidates
    int* const starts = counts + listings;          // where the next of them go
    int* const changed = starts + listings;         // of each reach's input
    u32* const kept = (u32*)(changed + inputs);
    for (int k = threadIdx.x; k < listings; k += blockDim.x) counts[k] = 0;
    wait_for_predecessor();
    for (int i = 0; i < inputs; i++) {
        const Reach& r = reaches[i];
        const int words = r.H * words_of(r.W);
        for (int w = threadIdx.x; r.copies && w < words; w += blockDim.x)
            bring(kept + r.kept + w, r.mask + (size_t)n * words + w);
    }
    for (int i = threadIdx.x; i < inputs; i += blockDim.x)
        if (reaches[i].of < 0) changed[i] = read_counter(reaches[i].changed + n);
    arrived();
    for (Reach* r = reaches + threadIdx.x; r < reaches + inputs; r += blockDim.x) {
        r->changed = (r->of < 0 ? changed + (r - reaches) : counts + r->of) - n;
        const int place = r->of < 0 ? r->kept : all[r->of].kept;
        if (place >= 0) r->mask = kept + place - (size_t)n * r->H * words_of(r->W);
    }
    __syncthreads();
    for (int k = 0; k < listings; k++) {
        const Listing& to = all[k];
        if (to.behind) __syncthreads();
        const int words = to.H * words_of(to.W);
        for (int first = threadIdx.x / 32 * 32; first < words; first += blockDim.x) {
            const Turn at(to, first + (threadIdx.x & 31));
            const u32 word = word_of(to, reaches, n, at);
            if (to.kept >= 0 && at.mine < words) kept[to.kept + at.mine] = word;
            if (!__any_sync(~0u, word != 0)) continue;
            const int total = sum_of_warp(__popc(word));
            if ((threadIdx.x & 31) == 0) atomicAdd(counts + k, total);
        }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < listings; k += blockDim.x) {
        if (!all[k].compared) all[k].changed[n] = counts[k];
        if (then_list && counts[k]) starts[k] = atomicAdd(all[k].count, counts[k]);
    }
    if (!then_list) return;
    __syncthreads();
    for (int turn = threadIdx.x / 32, k = 0;; turn += blockDim.x / 32) {
        k = listing_of(all, listings, k, turn);
        if (k == listings) return;
        const Listing& to = all[k];
        const Turn at(to, (turn - to.turn) * 32 + (threadIdx.x & 31));
        u32 word = 0;
        if (at.mine < at.words) word = to.kept >= 0 ? kept[to.kept + at.mine] : to.bits[(size_t)n * at.words + at.mine];
        int total, start = 0;
        const int before = before_in_warp(word, total);
        if (total == 0) continue;
        if ((threadIdx.x & 31) == 0) start = atomicAdd(starts + k, total);
        start = __shfl_sync(~0u, start, 0);
        write_words(to.list, start + before, word, at.place(to, n));
    }
}

// List the pixels of masks. blockIdx.y is the stream; a warp takes 32 words at a time.
extern "C" __global__ void list(const u64* table, int longs, int listings) {
    const Listing* all = parameters(table, longs);
    wait_for_predecessor();
    const int n = blockIdx.y, lane = threadIdx.x & 31, warps = gridDim.x * blockDim.x >> 5;
    for (int turn = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, k = 0;; turn += warps) {
        k = listing_of(all, listings, k, turn);
        if (k == listings) return;
        const Listing& to = all[k];
        const Turn at(to, (turn - to.turn) * 32 + lane);
        const u32 word = at.mine < at.words ? to.bits[(size_t)n * at.words + at.mine] : 0;
        int total, start = 0;
        const int before = before_in_warp(word, total);
        if (total == 0) continue;
        if (lane == 0) start = atomicAdd(to.count, total);
        start = __shfl_sync(~0u, start, 0);
        write_words(to.list, start + before, word, at.place(to, n));
    }
}
