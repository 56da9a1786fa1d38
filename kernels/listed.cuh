// The walk over listed pixels: rows that are gathered wherever they lie, multiplied in steps, finished and stored.
// Compute all that is listed in tiles of M pixels times N channels, in S stages, P steps at a time. TOGETHER: the
// blocks of a cluster share each sum.
template <int M, int N, int S, int P, bool TOGETHER>
__device__ __forceinline__ void walk(const Head& h, const Work& work) {
    // A step is still multiplied while the next one is waited for, where its pixels are not in registers.
    constexpr bool OPEN = P == 1 && S >= 4 && !(TYPE == 1 && ROUND);
    constexpr int STAGE = (M + N) * STEP, AHEAD = S - P - OPEN;  // steps on their way
    constexpr int ROWS = M * PIECES / LOADS;                 // that a thread gathers a piece of
    constexpr int GROUP_N = N * M / 64 * 128 / THREADS;   // channels of a warpgroup, which multiplies 64 rows
    constexpr int WIDE = GROUP_N < 128 ? GROUP_N : 128;   // channels of an instruction
    // Channels that pass through the free stage at a time. The pitch keeps a warp's stores in different banks.
    constexpr int CHUNK = STAGE >= THREADS * 80 ? 32 : 16, CHUNK_PITCH = CHUNK + 8, SUMS_PITCH = N + 8;
    constexpr bool IN_SHARES = SPLIT > 1 && !TOGETHER;  // as a cluster adds them
    constexpr int CHUNKS = GROUP_N / CHUNK, PACKS = CHUNK / 2 / WIDTH;  // that a thread finishes of a chunk
    constexpr int AT_A_TIME = COMPARE ? 1 : CHUNKS;
    // What is loaded early of an added map: chunks, or packs of a cluster's sums.
    constexpr int SPARE = REGISTERS - GROUP_N / 2 * (IN_SHARES ? 2 : 1) - (TYPE == 1 && ROUND ? 16 * P : 0) - 48;
    constexpr int EARLY = !ADDS || SPARE < 4 * PACKS ? 0 : SPARE / (4 * PACKS) < CHUNKS ? SPARE / (4 * PACKS) : CHUNKS;
    constexpr int OWN = (M / SPLIT * (N / WIDTH) + THREADS - 1) / THREADS, EARLY_OWN = !ADDS ? 0 : OWN < 4 ? OWN : 4;
    static_assert(THREADS / 2 * CHUNK_PITCH * 4 <= STAGE, "sums pass through a stage");
    static_assert(!TOGETHER || (M % SPLIT == 0 && M * SUMS_PITCH * 4 <= S * STAGE),
                  "a cluster's sums lie where the stages were, and each block finishes as many rows");
    static_assert(P <= 2 && AHEAD >= P, "two steps at a time, others on their way");
    static_assert(GROUP_N % 32 == 0 && S * STAGE <= BYTES, "the same threads and memory for every tile");

    extern __shared__ __align__(1024) char memory[];
    struct Rows {          // of a tile
        float bias[N];
        Bits inside[M];    // a bit for each tap
        int base[M];       // the first tap's pixel, in pieces from `at`
#if ALSO
        int also[M];  // in pieces from `also`
#endif
        int places[2][M];  // -1 past the list; in turns, the last tile is still being finished
        u32 moved[2][M / 32];  // a bit of each row, with COMPARE
    };
    Rows& rows = *(Rows*)(memory + BYTES);
    const u32 stages = shared_address(memory), arrived = stages + BYTES + (int)sizeof(Rows);
    // Of all steps of this block: a load from memory in a step would be waited for by the fence of the next one.
    Tap* const taps = (Tap*)(memory + BYTES + sizeof(Rows) + S * 8);
    // The compiler is to see that a warp agrees about its number, so that addresses of tiles need no vector registers.
    const int thread = threadIdx.x, lane = thread & 31, warp = __shfl_sync(~0u, thread >> 5, 0), group = warp / 4;
    const int group_m = group % (M / 64) * 64, group_n = group / (M / 64) * GROUP_N;
    const int blocks_n = (work.channels + N - 1) / N, total = (work.listed + M - 1) / M * blocks_n;
    const int members = TOGETHER ? SPLIT : 1, rank = blockIdx.x % members;
    const int first_step = rank * h.steps / members;
    const int steps = ((rank + 1) * h.steps / members - first_step + P - 1) / P * P;  // zeros change no sum
    const int stride = gridDim.x / members;
    const bool loads = !LOADERS || warp >= THREADS / 32;
    const int loader = LOADERS ? thread - THREADS : thread;
    const int piece = loader % PIECES, first_row = loader / PIECES;

    if (thread == 0) {
#pragma unroll
        for (int i = 0; i < S; i++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrived + i * 8) : "memory");
    }
    if (loads)
        for (int i = loader; i < steps * STEP_TAPS; i += LOADS) taps[i] = h.taps[first_step * STEP_TAPS + i];
    publish();

    const auto describe = [&](int block, int turn) {
        if (!loads) return;
        if (COMPARE && loader < M / 32) rows.moved[turn][loader] = 0;
        if (loader >= M || block >= total) return;
        const int at = block / blocks_n * M + loader;
        const int place = at < work.listed ? work.list[at] : -1;
        const int n = place / (work.OH * work.OW), pixel = place - n * work.OH * work.OW, y = pixel / work.OW;
        const int top = y * h.sh - h.ph, left = (pixel - y * work.OW) * h.sw - h.pw;
        Bits across = 0, inside = 0;
#pragma unroll 1
        for (int k = 0; k < h.kw; k++) across |= (Bits)((u32)(left + k * h.dw) < (u32)h.W) << k;
#pragma unroll 1
        for (int i = 0; i < h.kh; i++)
            if ((u32)(top + i * h.dh) < (u32)h.H) inside |= across << i * h.kw;
#if ALSO
        inside |= (Bits)1 << h.kh * h.kw;
        rows.also[loader] = ((n * h.also_H + y * h.also_sh) * h.also_W + (pixel - y * work.OW) * h.also_sw) * h.also_pitch;
#endif
        rows.base[loader] = ((n * h.H + top) * h.W + left) * h.pitch;
        rows.inside[loader] = place < 0 ? 0 : inside;
        rows.places[turn][loader] = place;
    };

    int slot = 0, load_slot = 0;
    u32 phase = 0;
    int base[ROWS], also[ALSO ? ROWS : 1];
    Bits inside[ROWS];
    const char* weights_at;
    float bias;
    const auto load_weights = [&](int step, int to) {
        if (loader == 0)
            bulk_copy(stages + to * STAGE + M * STEP, weights_at + (size_t)step * (BN * STEP), N * STEP, arrived + to * 8);
    };
    const auto load_pixels = [&](int step) {
        const u32 a = stages + load_slot * STAGE;
        const Tap tap = taps[step * STEP_TAPS + (STEP_TAPS > 1 ? piece : 0)];
        const int offset = tap.offset + (STEP_TAPS > 1 ? 0 : piece);
        const bool second = ALSO && tap.bit == h.kh * h.kw;
        const char* const at = second ? h.also : h.at;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const bool valid = inside[r] >> tap.bit & 1;
            const int first = second ? also[ALSO ? r : 0] : base[r];
            const char* from = at + (valid ? (long long)(first + offset) * PIECE : 0);
            copy(place_of(a, first_row + r * (LOADS / PIECES), piece * PIECE / 16) + piece * PIECE % 16, from, valid);
        }
        load_slot = load_slot + 1 == S ? 0 : load_slot + 1;
    };
    const auto start = [&](int block, bool first) {
        if (!loads) {
            if (first && work.early) wait_for_predecessor();
            return;
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            base[r] = rows.base[first_row + r * (LOADS / PIECES)];
            inside[r] = rows.inside[first_row + r * (LOADS / PIECES)];
#if ALSO
            also[r] = rows.also[first_row + r * (LOADS / PIECES)];
#endif
        }
        const int n = block % blocks_n * N;
        weights_at = h.weight + (((size_t)(n / BN) * even(h.steps) + first_step) * BN + n % BN) * STEP;
        bias = loader < N ? h.bias[n + loader] : 0;
#pragma unroll
        for (int step = 0; step < AHEAD; step++)
            if (step < steps) load_weights(step, (load_slot + step) % S);
        if (first && work.early) wait_for_predecessor();  // it wrote the pixels, and nothing else read so far
#pragma unroll
        for (int step = 0; step < AHEAD; step++) {
            if (step < steps) load_pixels(step);
            end_of_stage();
        }
    };

    int block = blockIdx.x / members, turn = 0;
    const auto load_added = [&](Pack& into, int place, int first) {
        const Operand& map = work.added;
        if (place >= 0 && first < work.channels) into = *(const Pack*)((const value*)map.at + place * map.pitch + first);
    };
    const auto is_moved = [&](int row) { return rows.moved[turn][row / 32] >> row % 32 & 1; };
    if (block >= total) {
        if (work.early && blockIdx.x == 0) wait_for_predecessor();
        return;
    }
    describe(block, 0);
    meet();
    start(block, true);
    // The slots of the next steps; what was loaded there is seen by all after the next barrier.
    const auto take_steps = [&](int(&slots)[P], bool loaded) {
        if (loaded) wait<AHEAD - P>(), publish();
#pragma unroll
        for (int p = 0; p < P; p++) {
            slots[p] = slot;
            if (loaded) await(arrived + slot * 8, phase);
            slot++;
            if (slot == S) slot = 0, phase ^= 1;
        }
    };
    const auto load_ahead = [&](int step, int next) {
        if (step == 0) {
            describe(next, turn ^ 1);
            if (loader < N) rows.bias[loader] = bias;
        }
#pragma unroll
        for (int p = 0; p < P; p++) {
            const int later = step + AHEAD + p;
            if (later < steps) load_weights(later, load_slot), load_pixels(later);
            end_of_stage();
        }
    };
    while (LOADERS && loads) {  // barrier for barrier beside what the others do below
        const int next = block + stride;
        for (int step = 0; step < steps; step += P) {
            int slots[P];
            take_steps(slots, true);
            meet();
            load_ahead(step, next);
        }
        meet();
        if (TOGETHER) cluster_barrier();
        if (TOGETHER && COMPARE) meet();
        if (TOGETHER) cluster_barrier();
        if (next < total) start(next, false);
        if (!TOGETHER && COMPARE) meet();
        if (next >= total) return;
        block = next, turn ^= 1;
    }
    while (true) {
        const int next = block + stride, first_n = block % blocks_n * N + group_n;
        float sums[GROUP_N / WIDE][WIDE / 2], totals[IN_SHARES ? GROUP_N / WIDE : 1][WIDE / 2] = {};
        int more = 0, share = 1;
        const int* places = rows.places[turn];
        // Where this thread finishes pack i of a chunk.
        const auto row_of = [&](int i) { return group_m + warp % 4 * 16 + (i * 32 + lane) / (CHUNK / WIDTH); };
        const auto first_of = [&](int chunk) { return first_n + chunk * CHUNK + lane % (CHUNK / WIDTH) * WIDTH; };
        const auto bias_of = [&](int first) { return *(const float4*)&rows.bias[first - (first_n - group_n)]; };
        const auto own_row = [&](int i) { return rank * (M / SPLIT) + (i * THREADS + thread) / (N / WIDTH); };
        const auto own_first = [&](int i) { return first_n - group_n + (i * THREADS + thread) % (N / WIDTH) * WIDTH; };
        Pack added[TOGETHER ? (EARLY_OWN ? EARLY_OWN : 1) : (EARLY ? EARLY : 1)][TOGETHER ? 1 : PACKS];
        const auto load_chunk = [&](int chunk) {
#pragma unroll
            for (int i = 0; i < PACKS; i++)
                load_added(added[chunk % (EARLY ? EARLY : 1)][i], places[row_of(i)], first_of(chunk));
        };
        if (TOGETHER) {
#pragma unroll
            for (int i = 0; i < EARLY_OWN; i++)
                if (own_row(i) < (rank + 1) * (M / SPLIT)) load_added(added[i][0], places[own_row(i)], own_first(i));
        } else {
#pragma unroll
            for (int chunk = 0; chunk < EARLY; chunk++) load_chunk(chunk);
        }
        for (int step = 0; step < steps; step += P) {
            if (LOADERS && step == 0) publish();  // the sums of the last tile went through a stage
            int slots[P];
            take_steps(slots, !LOADERS);
            meet();
#if TYPE == 1 && ROUND
            u32 mine[P][4][4];
#pragma unroll
            for (int k = 0; k < 4 * P; k++) {
                u32(&rounded)[4] = mine[k / 4][k % 4];
                const u32 a = stages + slots[k / 4] * STAGE + group_m * STEP;
                load_matrices(rounded, place_of(a, warp % 4 * 16 + (lane & 15), k % 4 * 2 + (lane >> 4)));
#pragma unroll
                for (int j = 0; j < 4; j++)
                    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded[j]) : "f"(__uint_as_float(rounded[j])));
            }
#endif
            start_multiplying();
#pragma unroll
            for (int p = 0; p < P; p++) {
                const u32 a = stages + slots[p] * STAGE + group_m * STEP, b = stages + slots[p] * STAGE + (M + group_n) * STEP;
#pragma unroll
                for (int k = 0; k < 4; k++) {
#pragma unroll
                    for (int i = 0; i < GROUP_N / WIDE; i++)
#if TYPE == 1 && ROUND
                        multiply(sums[i], mine[p][k], matrix(b + i * WIDE * STEP + k * 32), more);
#else
                        multiply(sums[i], matrix(a + k * 32), matrix(b + i * WIDE * STEP + k * 32), more);
#endif
                    more = 1;
                }
            }
            end_of_step();
            if (!LOADERS) load_ahead(step, next);
            wait_for_sums<OPEN>();
            if (IN_SHARES && step + 1 == share * h.steps / SPLIT) {
                wait_for_sums<0>();
#pragma unroll
                for (int i = 0; i < GROUP_N / WIDE; i++)
#pragma unroll
                    for (int j = 0; j < WIDE / 2; j++) totals[IN_SHARES ? i : 0][j] += sums[i][j];
                more = 0, share++;
            }
        }
        wait_for_sums<0>();
        if (IN_SHARES) {
#pragma unroll
            for (int i = 0; i < GROUP_N / WIDE; i++)
#pragma unroll
                for (int j = 0; j < WIDE / 2; j++) sums[i][j] = totals[IN_SHARES ? i : 0][j];
        }
        meet();
        // Through shared memory, so that a thread finishes neighbouring channels of one pixel.
        if (TOGETHER) {
            float* const staged = (float*)memory;
            float* const to = staged + (group_m + warp % 4 * 16 + lane / 4) * SUMS_PITCH + group_n + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < GROUP_N / 8; j++) {
                const float* from = sums[j * 8 / WIDE] + j * 8 % WIDE / 2;
                *(float2*)(to + j * 8) = make_float2(from[0], from[1]);
                *(float2*)(to + j * 8 + 8 * SUMS_PITCH) = make_float2(from[2], from[3]);
            }
            cluster_barrier();
#pragma unroll 1
            for (int pass = !COMPARE; pass < 2; pass++) {
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    const int row = own_row(i), first = own_first(i);
                    if (row >= (rank + 1) * (M / SPLIT) || first >= work.channels) continue;
                    const int place = places[row];
                    if (place < 0 || (COMPARE && pass && !is_moved(row))) continue;
                    float v[WIDTH] = {};
#pragma unroll
                    for (int j = 0; j < WIDTH; j += 4)
#pragma unroll
                        for (int other = 0; other < SPLIT; other++)
                            add_from(v, j, staged + row * SUMS_PITCH + first - (first_n - group_n) + j, other);
#pragma unroll
                    for (int j = 0; j < WIDTH; j += 4) add_four(v, j, bias_of(first + j));
                    const Pack* early = i < EARLY_OWN ? &added[i < EARLY_OWN ? i : 0][0] : nullptr;
                    if (finish(v, work, place, first, !pass, early)) atomicOr(&rows.moved[turn][row / 32], 1u << row % 32);
                }
                if (COMPARE && !pass) meet();
            }
            if (COMPARE && warp == 0) {
                const int row = rank * (M / SPLIT) + min(lane, M / SPLIT - 1);
                mark(work, places[row], lane < M / SPLIT && is_moved(row));
            }
            publish();
            cluster_barrier();  // before the sums are overwritten
            if (!LOADERS && next < total) start(next, false);
        } else {
            float* const staged = (float*)(memory + (slot == 0 ? S - 1 : slot - 1) * STAGE) + warp * 16 * CHUNK_PITCH;
            float* const to = staged + lane / 4 * CHUNK_PITCH + lane % 4 * 2;
            if (!LOADERS && next < total) start(next, false);
#pragma unroll 1
            for (int pass = !COMPARE; pass < 2; pass++) {
#pragma unroll AT_A_TIME
                for (int chunk = 0; chunk < CHUNKS; chunk++) {
                    __syncwarp();
#pragma unroll
                    for (int j = 0; j < GROUP_N / 8; j++) {
                        if (j / (CHUNK / 8) != chunk) continue;
                        const float* from = sums[j * 8 / WIDE] + j * 8 % WIDE / 2;
                        *(float2*)(to + j * 8 % CHUNK) = make_float2(from[0], from[1]);
                        *(float2*)(to + j * 8 % CHUNK + 8 * CHUNK_PITCH) = make_float2(from[2], from[3]);
                    }
                    __syncwarp();
#pragma unroll
                    for (int i = 0; i < PACKS; i++) {
                        const int row = row_of(i), first = first_of(chunk), place = places[row];
                        if (place < 0 || first >= work.channels || (COMPARE && pass && !is_moved(row))) continue;
                        const float* from = staged + (i * 32 + lane) / (CHUNK / WIDTH) * CHUNK_PITCH +
                                            lane % (CHUNK / WIDTH) * WIDTH;
                        float v[WIDTH];
#pragma unroll
                        for (int j = 0; j < WIDTH; j += 4) put_four(v, j, *(float4*)(from + j));
#pragma unroll
                        for (int j = 0; j < WIDTH; j += 4) add_four(v, j, bias_of(first + j));
                        const Pack* early = EARLY ? &added[chunk % (EARLY ? EARLY : 1)][i] : nullptr;
                        if (finish(v, work, place, first, !pass, early))
                            atomicOr(&rows.moved[turn][row / 32], 1u << row % 32);
                    }
                    if (EARLY && chunk + EARLY < CHUNKS) load_chunk(chunk + EARLY);
                }
                if (COMPARE && !pass) meet();
            }
            if (COMPARE && warp < M / 32) mark(work, places[thread], is_moved(thread));
        }
        if (next >= total) return;
        block = next, turn ^= 1;
    }
}
