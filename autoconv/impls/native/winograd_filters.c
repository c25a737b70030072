/* ---- Filters -------------------------------------------------------------------------------------------------- */

/* Taps of `count` channels from `ic` on: to[c][tap][KU], zero beyond OC. */
static void gather_filters(const T *w, int group, int oc, int ic, int count, T *to) {
    for (int v = 0; v < KV; v++) {
        const int k = oc + v * VW, live = MAX(0, MIN(VW, OC - k));
#if DGRAD /* the forward filters are [their out = our in][their in = our out][tap] */
        for (int c = 0; c < count; c++)
            gather_channels(w + ((size_t)(group * IC + ic + c) * OC + k) * TAPS, TAPS, live, TAPS,
                            to + (size_t)c * TAPS * KU + v * VW, KU);
#else
        gather_channels(w + ((size_t)(group * OC + k) * IC + ic) * TAPS, (size_t)IC * TAPS, live, count * TAPS,
                        to + v * VW, KU);
#endif
    }
}

/* U[position][c][KU] of one part from taps [c][tap][KU]; a part's taps beyond the filter are zero. */
static void transform_part(const T *taps, int count, int part, T *U, size_t position_step) {
    const int phase = part / PIECES, piece = part % PIECES;
    const int r0 = piece / PIECES_W * RP * SH + phase / PHASES_W, s0 = piece % PIECES_W * SP * SW + phase % PHASES_W;
    for (int c = 0; c < count; c++)
        for (int v = 0; v < KV; v++) {
            const T *from = taps + (size_t)c * TAPS * KU + v * VW;
            T *to = U + (size_t)c * KU + v * VW;
            vec g[RP * SP], half[NH * SP], u[NW];
            _Pragma("GCC unroll 64") for (int i = 0; i < RP * SP; i++) {
                const int r = r0 + i / SP * SH, s = s0 + i % SP * SW, tap = REVERSED ? TAPS - 1 - (r * S + s) : r * S + s;
                g[i] = PARTS == 1 || (r < R && s < S) ? load(from + (size_t)tap * KU) : (vec){0};
            }
            _Pragma("GCC unroll 8") for (int s = 0; s < SP; s++) filter_h(g + s, SP, half + s, SP);
            _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) {
                filter_w(half + a * SP, 1, u, 1);
                _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) store(to + (a * NW + b) * position_step, u[b]);
            }
        }
}

static void transform_filters(const T *taps, int count, T *U, size_t position_step) {
    for (int part = 0; part < PARTS; part++)
        transform_part(taps, count, part, U + (size_t)part * IC * KU, position_step);
}

#define FEW (TAPS > 256 ? 1 : TAPS > 25 ? 2 : 8) /* channels whose taps go through the stack: in the nearer caches */

static inline void gather_and_transform(const T *w, int group, int block, int ic, int count, T *U, size_t position_step) {
    T taps[FEW * TAPS * KU] __attribute__((aligned(VECTOR_BYTES)));
    for (int c = 0; c < count; c += FEW) {
        gather_filters(w, group, block * KU, ic + c, MIN(FEW, count - c), taps);
        transform_filters(taps, MIN(FEW, count - c), U + (size_t)c * KU, position_step);
    }
}

#if FILTERS != PLAIN
#define PACK_ITEMS CEIL_DIV(IC, FEW)

void pack(const T *w, T *packed) {
    OMP(parallel for num_threads(autoconv_threads) schedule(static))
    for (int item = 0; item < GROUPS * OC_BLOCKS * PACK_ITEMS; item++) {
        const int block = item / PACK_ITEMS, ic = item % PACK_ITEMS * FEW, count = MIN(FEW, IC - ic);
        T *to = packed + (size_t)block * FILTER_SIZE;
#if FILTERS == LAID_OUT
        gather_filters(w, block / OC_BLOCKS, block % OC_BLOCKS * KU, ic, count, to + (size_t)ic * TAPS * KU);
#else
        gather_and_transform(w, block / OC_BLOCKS, block % OC_BLOCKS, ic, count, to + (size_t)ic * KU,
                             (size_t)PARTS * IC * KU);
#endif
    }
}
#endif

