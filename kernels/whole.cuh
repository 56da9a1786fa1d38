// Convolution with windows of WHOLE x WHOLE, stride 1, where all pixels are listed, so that neighbours share what they
// read.
//
// A tile is HIGH rows of 64 pixels. With FLAT it is 64 * HIGH consecutive pixels, where maps are thought to follow each
// other with a row and a column of zeros between them, so that narrow maps fill tiles. 128 bytes of each pixel at a
// time (or all 64, if it has no more), a tile's pixels and those around it are loaded into shared memory once. The
// matrix of tap (i, k) begins i rows and k pixels further on, at any of the swizzled rows. Weights pass through SLOTS,
// or stay there if all of them fit. Sums are made in the order of `walk`.
//
// Two blocks share a multiprocessor: one multiplies while the other waits for its pixels or finishes.
//
// All threads of a block multiply, also those that only load for `walk`.
//
// Launch: as conv_wgmma.cu; HALO_BYTES + SLOTS * (BN * 128 + 16) bytes of shared memory.
#ifndef EACH  // rows of a tile that a warpgroup multiplies
#define EACH 1
#endif
#ifndef SLOTS
#define SLOTS 4
#endif
#ifndef FLAT  // columns of a map and one of zeros; 0 where tiles are rows
#define FLAT 0
#endif
#ifndef PART  // bytes of a pixel that are in shared memory at a time: 128, or 64 if it has no more
#define PART STEP
#endif
#define IN_PLACE !(TYPE == 1 && ROUND)  // rows are multiplied where they lie; rounded ones come from registers
#define ALL (THREADS + LOADERS)
#define HIGH (ALL / 128 * EACH)
#define HALO_W (FLAT ? FLAT : 64 + WHOLE - 1)
#define HALO (FLAT ? 64 * HIGH + (WHOLE - 1) * (FLAT + 1) : (HIGH + WHOLE - 1) * HALO_W)  // pixels
#define NEXT (FLAT ? 64 : HALO_W)  // pixels from 64 of them to the next ones
#define HALO_BYTES ((HALO * PART + 1023) / 1024 * 1024)

// 16 bytes of a pixel, swizzled as wgmma reads rows of PART bytes, and the matrix of the rows from `pixel` on.
__device__ __forceinline__ u32 part_of(u32 halo, int pixel, int chunk) {
    return PART == 128 ? place_of(halo, pixel, chunk) : halo + pixel * 64 + (chunk ^ (pixel >> 1 & 3)) * 16;
}
__device__ __forceinline__ u64 pixels_from(u32 halo, int pixel, int bytes) {
    const u32 at = halo + pixel * PART + bytes;
    return PART == 128 ? matrix(at) : (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 32ull << 32 | 2ull << 62;
}

__device__ __forceinline__ void whole(const Head& h, const Work& work) {
    constexpr int TAPS = WHOLE * WHOLE, WARPS = ALL / 32;
    constexpr int IN_STEP = STEP / PART, STEPS = (TAPS + IN_STEP - 1) / IN_STEP;  // taps in a step, steps for all taps
    extern __shared__ __align__(1024) char memory[];
    const u32 halo = shared_address(memory), weights = halo + HALO_BYTES;
    const u32 full = weights + SLOTS * BN * STEP, empty = full + SLOTS * 8;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, group = warp / 4;
    const int blocks_n = (work.channels + BN - 1) / BN, across = (work.OW + 63) / 64, down = (work.OH + HIGH - 1) / HIGH;
    const int flat_tiles = (h.images * (work.OH + 1) * FLAT + 64 * HIGH - 1) / (64 * HIGH);
    const int total = (FLAT ? flat_tiles : h.images * down * across) * blocks_n;
    // The pixel of the map that is row `pixel` of a tile, or a place around it; -1 outside the map.
    const auto at = [&](int tile, int pixel, bool around) {
        int n, y, x;
        if (FLAT) {
            const int place = tile * (64 * HIGH) + pixel, row = place / (FLAT ? FLAT : 1);
            n = row / (work.OH + 1), y = row - n * (work.OH + 1) - around, x = place - row * FLAT - around;
        } else {
            const int width = around ? HALO_W : 64, row = tile / across;  // of tiles; goes on over the images
            n = row / down, y = (row - n * down) * HIGH + pixel / width - (around ? h.ph : 0);
            x = (tile - row * across) * 64 + pixel % width - (around ? h.pw : 0);
        }
        const int height = around ? h.H : work.OH, columns = around ? h.W : work.OW;
        const bool inside = n < h.images && (u32)y < (u32)height && (u32)x < (u32)columns;
        return inside ? (n * height + y) * columns + x : -1;
    };
    const bool stay = h.steps <= SLOTS && blocks_n == 1;
    const int slots = stay ? h.steps : SLOTS;

    if (thread == 0) {
#pragma unroll
        for (int i = 0; i < SLOTS; i++) set_up(full + i * 8, 1), set_up(empty + i * 8, WARPS);
    }
    publish();
    __syncthreads();

    int to_load = blockIdx.x, step_to_load = 0, slot_to_load = 0;
    u32 phase_to_load = 1;
    const auto load_weights = [&]() {  // of the next step, of this tile or of a later one
        if (to_load >= total) return;
        await(empty + slot_to_load * 8, phase_to_load);
        const size_t at = (size_t)(to_load % blocks_n) * even(h.steps) + step_to_load;
        bulk_copy(weights + slot_to_load * BN * STEP, h.weight + at * (BN * STEP), BN * STEP, full + slot_to_load * 8);
        if (++step_to_load == h.steps) step_to_load = 0, to_load += stay ? total : gridDim.x;
        if (++slot_to_load == slots) slot_to_load = 0, phase_to_load ^= 1;
    };
    const auto load_pixels = [&](int block, int chunk) {
        const char* const from = h.at + (chunk * (PART / 16) + thread % (PART / 16)) * 16;
        for (int pixel = thread / (PART / 16); pixel < HALO; pixel += ALL / (PART / 16)) {
            const int place = at(block / blocks_n, pixel, true);
            const char* const pixel_at = from + (place < 0 ? 0 : (long long)place * h.pitch * 16);
            copy(part_of(halo, pixel, thread % (PART / 16)), pixel_at, place >= 0);
        }
        end_of_stage();
    };

    if (thread == 0)
        for (int i = 0; i < slots; i++) load_weights();
    if (work.early) wait_for_predecessor();
    if (blockIdx.x < total) load_pixels(blockIdx.x, 0);
    int slot = 0, done = 0;  // steps
    u32 phase = 0;
#pragma unroll 1
    for (int block = blockIdx.x; block < total; block += gridDim.x) {
        float sums[EACH][BN / 2];
        int more = 0;
#pragma unroll 1
        for (int first = 0; first < h.steps; first += STEPS) {
            wait<0>();
            publish();
            __syncthreads();
#pragma unroll 1
            for (int step = 0; step < STEPS; step++) {
                await(full + slot * 8, phase);
#pragma unroll
                for (int part = 0; part < IN_STEP; part++) {
                    const int tap = step * IN_STEP + part;
                    if (tap == TAPS) break;
                    const int start = group * EACH * NEXT + tap / WHOLE * HALO_W + tap % WHOLE;
                    const u32 b = weights + slot * BN * STEP + part * PART;
#if !(IN_PLACE)
                    u32 mine[EACH][PART / 32][4];
#pragma unroll
                    for (int e = 0; e < EACH; e++)
#pragma unroll
                        for (int k = 0; k < PART / 32; k++) {
                            const int pixel = start + e * NEXT + warp % 4 * 16 + (lane & 15);
                            load_matrices(mine[e][k], part_of(halo, pixel, k * 2 + (lane >> 4)));
                            round_to_tf32(mine[e][k]);
                        }
#endif
                    start_multiplying();
#pragma unroll
                    for (int k = 0; k < PART / 32; k++) {
#pragma unroll
                        for (int e = 0; e < EACH; e++)
#if IN_PLACE
                            multiply(sums[e], pixels_from(halo, start + e * NEXT, k * 32), matrix(b + k * 32), more);
#else
                            multiply(sums[e], mine[e][k], matrix(b + k * 32), more);
#endif
                        more = 1;
                    }
                    end_of_step();
                    wait_for_sums<IN_PLACE ? 1 : 0>();  // frees its registers, or the slot of the step before
                }
                if (lane == 0 && done > 0) arrive(empty + (slot ? slot - 1 : slots - 1) * 8);
                if (thread == 0 && done > 1) load_weights();  // into the slot of the step before the last one
                done++;
                if (++slot == slots) slot = 0, phase ^= !stay;
            }
            wait_for_sums<0>();
            __syncthreads();
            if (first + STEPS < h.steps)
                load_pixels(block, first / STEPS + 1);
            else if (block + gridDim.x < total)
                load_pixels(block + gridDim.x, 0);
        }
#pragma unroll
        for (int e = 0; e < EACH; e++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const int row = (group * EACH + e) * 64 + warp % 4 * 16 + lane / 4 + lower * 8;
                const int pixel = at(block / blocks_n, row, false);
#pragma unroll
                for (int chunk = 0; chunk < BN / CHUNK; chunk++) {
                    float v[WIDTH];
                    hand_round(v, sums[e], chunk, lower);
                    int place = pixel, first = block % blocks_n * BN + chunk * CHUNK + first_of_lane();
                    if (place < 0 || first >= work.channels) continue;
#pragma unroll
                    for (int j = 0; j < WIDTH; j += 4) add_four(v, j, *(const float4*)(h.bias + first + j));
                    const Pack pack = finish(v, work, place, first);
                    *work.at(place, first) = pack;
                }
            }
    }
}
