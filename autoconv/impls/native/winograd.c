/* Fused Winograd convolution for one spec and one config. Above this text stand the vocabulary of _c.py, the `#define`s
 * of winograd.py and the one-dimensional transforms data_h, data_w, filter_h, filter_w, inverse_h, inverse_w.
 *
 * VW channels share a vector everywhere, so that rows of any length waste no lanes: channels-last data is read and
 * written as it lies, NCHW data passes through a square transpose on its way in and out.
 *
 * Letters: IC, OC channels of a group, GROUPS; XH x XW data, YH x YW result; PH, PW padding before; R x S taps;
 * tiles of MH x MW results need NH x NW data and as many products, POSITIONS = NH * NW; TH x TW tiles cover an image.
 * A block is BR rows of tiles by BC tiles. The products multiply TR tiles by KU = KV * VW output channels in registers.
 *
 * V [position][IC / VW][tile of the block][VW]    transformed data
 * U [position][ic][KU]                            transformed filters of KU channels
 * M [position][tile][KU]                          products
 *
 * FILTERS says how `run` gets them: all of U made by `pack` (TRANSFORMED), or U made CHUNK channels at a time within
 * `run`, from [KU channels][ic][tap][KU] (LAID_OUT by `pack`) or from the caller's array (PLAIN, no `pack`).
 */
#define TRANSFORMED 0
#define LAID_OUT 1
#define PLAIN 2
#define NH (MH + R - 1)
#define NW (MW + S - 1)
#define POSITIONS (NH * NW)
#define TAPS (R * S)
#define TH CEIL_DIV(YH, MH)
#define TW CEIL_DIV(YW, MW)
#define TILE_ROWS (BATCH * TH)
#define IC_BLOCKS CEIL_DIV(IC, VW)
#define KU (KV * VW)
#define OC_BLOCKS CEIL_DIV(OC, KU)
#define ROW_BLOCKS CEIL_DIV(TILE_ROWS, BR)
#define COLUMN_BLOCKS CEIL_DIV(TW, BC)
#define WHOLE_ROWS (BC == TW)
#define TILES ROUND_UP(BR * BC, TR)
/* A vector of slack per position keeps the positions of a tile out of each other's cache sets. */
#define V_POSITION (IC_BLOCKS * TILES * VW + VW)
#define M_POSITION (TILES * KU + VW)
#define U_POSITION (CHUNK * KU + VW)
#define V_SIZE ((size_t)POSITIONS * V_POSITION)
#define M_SIZE ((size_t)POSITIONS * M_POSITION)
#define U_SIZE (FILTERS == TRANSFORMED ? 0 : (size_t)POSITIONS * U_POSITION)
#define FILTER_SIZE ((size_t)IC * KU * (FILTERS == LAID_OUT ? TAPS : POSITIONS))
#define X_CHANNELS (GROUPS * IC)
#define Y_CHANNELS (GROUPS * OC)
/* Rows of tiles that are transposed together: images of a few short rows fill whole vectors that way. */
#define IN_ROWS ((STRIP - 1) * MH + NH)
#define IN_COLUMNS (WHOLE_ROWS ? XW : (BC - 1) * MW + NW)
#define OUT_COLUMNS (WHOLE_ROWS ? YW : BC * MW)
#define STRIP_SIZE ((size_t)(MAX(IN_ROWS * IN_COLUMNS, STRIP * MH * OUT_COLUMNS) + VW) * VW)
#define THREAD_SIZE ((SHARED ? 0 : V_SIZE) + M_SIZE + U_SIZE + STRIP_SIZE)

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

/* U[position][c][KU] from taps [c][tap][KU]. */
static void transform_filters(const T *taps, int count, T *U, size_t position_step) {
    for (int c = 0; c < count; c++)
        for (int v = 0; v < KV; v++) {
            const T *from = taps + (size_t)c * TAPS * KU + v * VW;
            T *to = U + (size_t)c * KU + v * VW;
            vec g[TAPS], half[NH * S], u[NW];
            _Pragma("GCC unroll 64") for (int i = 0; i < TAPS; i++)
                g[i] = load(from + (size_t)(REVERSED ? TAPS - 1 - i : i) * KU);
            _Pragma("GCC unroll 8") for (int s = 0; s < S; s++) filter_h(g + s, S, half + s, S);
            _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) {
                filter_w(half + a * S, 1, u, 1);
                _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) store(to + (a * NW + b) * position_step, u[b]);
            }
        }
}

#define FEW 8 /* channels whose taps go through the stack: they stay in the first-level cache */

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
        gather_and_transform(w, block / OC_BLOCKS, block % OC_BLOCKS, ic, count, to + (size_t)ic * KU, (size_t)IC * KU);
#endif
    }
}
#endif

/* ---- Data ----------------------------------------------------------------------------------------------------- */

INLINE void transform_tile(const T *from, size_t row_step, size_t column_step, T *V) {
    vec half[NH * NW], v[NW];
    _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) {
        vec d[NH];
        _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) d[a] = load(from + a * row_step + b * column_step);
        data_h(d, 1, half + b, NW);
    }
    _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) {
        data_w(half + a * NW, 1, v, 1);
        _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) store(V + (size_t)(a * NW + b) * V_POSITION, v[b]);
    }
}

/* One tile that reaches over the edge of the data, or whose channels fill no vector. */
static void transform_edge(const T *from, size_t row_step, size_t column_step, int y, int x, int live, T *V) {
    T tile[NH * NW * VW] __attribute__((aligned(VECTOR_BYTES)));
    for (int a = 0; a < NH; a++)
        for (int b = 0; b < NW; b++) {
            const int inside = y + a >= 0 && y + a < XH && x + b >= 0 && x + b < XW;
            const T *pixel = from + (ptrdiff_t)a * (ptrdiff_t)row_step + (ptrdiff_t)b * (ptrdiff_t)column_step;
            store(tile + (a * NW + b) * VW, !inside ? (vec){0} : live == VW ? load(pixel) : load_first(pixel, IC % VW));
        }
    transform_tile(tile, NW * VW, VW, V);
}

/* Rows [row, end) of tiles, all of one image, columns [j0, j1), channels of block cb; V points at the first tile. */
static void transform_strip(const T *x, int group, int cb, int row, int end, int j0, int j1, T *V, T *strip) {
    const int n = row / TH, i0 = row % TH, i1 = i0 + end - row, live = MIN(VW, IC - cb * VW);
    const size_t channel = (size_t)group * IC + (size_t)cb * VW;
#if CHANNELS_LAST
    (void)strip;
    const T *image = x + (size_t)n * XH * XW * X_CHANNELS + channel;
    const size_t column_step = X_CHANNELS, row_step = (size_t)XW * X_CHANNELS;
    const int y0 = 0, x0 = 0, whole = live;
#else
    const int y0 = MIN(MAX(0, i0 * MH - PH), XH), y1 = MAX(y0, MIN(XH, (i1 - 1) * MH - PH + NH));
    const int x0 = WHOLE_ROWS ? 0 : MIN(MAX(0, j0 * MW - PW), XW);
    const int x1 = WHOLE_ROWS ? XW : MAX(x0, MIN(XW, (j1 - 1) * MW - PW + NW));
    const T *planes = x + (((size_t)n * X_CHANNELS + channel) * XH + y0) * XW + x0;
    const size_t plane = (size_t)XH * XW, column_step = VW, row_step = (size_t)(x1 - x0) * VW;
#if WHOLE_ROWS
    gather_channels(planes, plane, live, (y1 - y0) * XW, strip, VW);
#else
    for (int y = y0; y < y1; y++)
        gather_channels(planes + (size_t)(y - y0) * XW, plane, live, x1 - x0, strip + (y - y0) * row_step, VW);
#endif
    const T *image = strip;
    const int whole = VW; /* the transpose has filled up the vectors */
#endif
    for (int i = i0; i < i1; i++)
        for (int j = j0; j < j1; j++, V += VW) {
            const int ty = i * MH - PH, tx = j * MW - PW;
            const T *from = image + (ptrdiff_t)(ty - y0) * (ptrdiff_t)row_step + (ptrdiff_t)(tx - x0) * (ptrdiff_t)column_step;
            if (whole == VW && ty >= 0 && tx >= 0 && ty + NH <= XH && tx + NW <= XW)
                transform_tile(from, row_step, column_step, V);
            else transform_edge(from, row_step, column_step, ty, tx, whole, V);
        }
}

/* The same for any rows of the block that begins at block_row. */
static void transform_rows(const T *x, int group, int cb, int block_row, int row, int end, int j0, int j1, T *V, T *strip) {
    T *to = V + (size_t)cb * TILES * VW;
    for (int next; row < end; row = next) {
        next = MIN(MIN(end, row + STRIP), (row / TH + 1) * TH);
        transform_strip(x, group, cb, row, next, j0, j1, to + (size_t)(row - block_row) * (j1 - j0) * VW, strip);
    }
}

/* Tiles beyond the block's last one, up to a multiple of TR: multiplied with the others and thrown away. */
static void clear_spare_tiles(int cb, int tiles, T *V) {
    for (int t = tiles; t < ROUND_UP(tiles, TR); t++)
        for (int q = 0; q < POSITIONS; q++) store(V + (size_t)q * V_POSITION + ((size_t)cb * TILES + t) * VW, (vec){0});
}

/* ---- Products ------------------------------------------------------------------------------------------------- */

INLINE void multiply_channels(const T *V, const T *U, int count, int ahead, vec acc[TR][KV]) {
    _Pragma("GCC unroll 2") for (int c = 0; c < count; c++) {
        vec u[KV];
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) {
            u[v] = load(U + c * KU + v * VW);
            if (ahead) __builtin_prefetch(U + c * KU + v * VW + ahead, 0, 2);
        }
        _Pragma("GCC unroll 32") for (int t = 0; t < TR; t++) {
            const vec data = splat(V[t * VW + c]);
            _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) acc[t][v] += data * u[v];
        }
    }
}

/* TR tiles by KU channels, summed over `count` channels. */
INLINE void multiply_tiles(const T *V, const T *U, T *M, int count, int first, int ahead) {
    vec acc[TR][KV];
    _Pragma("GCC unroll 32") for (int t = 0; t < TR; t++)
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) acc[t][v] = first ? (vec){0} : load(M + t * KU + v * VW);
    for (; count >= VW; count -= VW, V += TILES * VW, U += VW * KU) multiply_channels(V, U, VW, ahead, acc);
    if (IC % VW) multiply_channels(V, U, count, 0, acc);
    _Pragma("GCC unroll 32") for (int t = 0; t < TR; t++)
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) store(M + t * KU + v * VW, acc[t][v]);
}

/* All tiles at one position; the first ones fetch the filters, which then stay in the first-level cache. */
INLINE void multiply_position(const T *V, const T *U, T *M, int tiles, int count, int first) {
    if (AHEAD) multiply_tiles(V, U, M, count, first, AHEAD);
    for (int t = AHEAD ? TR : 0; t < tiles; t += TR)
        multiply_tiles(V + t * VW, U, M + (size_t)t * KU, count, first, 0);
}

#if FILTERS != TRANSFORMED
/* The next chunk of filters comes from far away while this one is multiplied: part q of POSITIONS. */
INLINE void prefetch_filters(const T *filters, int group, int block, int ic, int q) {
    const int count = MIN(CHUNK, IC - ic);
#if FILTERS == LAID_OUT
    const char *from = (const char *)(filters + ((size_t)(group * OC_BLOCKS + block) * IC + ic) * TAPS * KU);
    const size_t bytes = (size_t)count * TAPS * KU * sizeof(T);
    for (size_t at = bytes * q / POSITIONS & ~(size_t)63; at < bytes * (q + 1) / POSITIONS; at += 64)
        __builtin_prefetch(from + at, 0, 2);
#elif DGRAD /* runs of KU filters lie IC apart */
    for (int c = count * q / POSITIONS; c < count * (q + 1) / POSITIONS; c++)
        for (int at = 0; at < MIN(KU, OC - block * KU) * TAPS; at += 64 / (int)sizeof(T))
            __builtin_prefetch(filters + ((size_t)(group * IC + ic + c) * OC + block * KU) * TAPS + at, 0, 2);
#else
    for (int k = KU * q / POSITIONS; k < KU * (q + 1) / POSITIONS && block * KU + k < OC; k++)
        for (int at = 0; at < count * TAPS; at += 64 / (int)sizeof(T))
            __builtin_prefetch(filters + ((size_t)(group * OC + block * KU + k) * IC + ic) * TAPS + at, 0, 2);
#endif
}

#endif

/* One block of output channels for all tiles of the block. */
static void multiply_block(const T *V, const T *filters, int group, int block, int tiles, T *M, T *U) {
#if FILTERS == TRANSFORMED
    (void)U;
    const T *u = filters + (size_t)(group * OC_BLOCKS + block) * FILTER_SIZE;
    for (int q = 0; q < POSITIONS; q++, u += (size_t)IC * KU, V += V_POSITION, M += M_POSITION) {
        multiply_position(V, u, M, tiles, MIN(CHUNK, IC), 1);
        for (int ic = CHUNK; ic < IC; ic += CHUNK)
            multiply_position(V + (size_t)(ic / VW) * TILES * VW, u + (size_t)ic * KU, M, tiles, MIN(CHUNK, IC - ic), 0);
    }
#else
    for (int ic = 0; ic < IC; ic += CHUNK) {
        const int count = MIN(CHUNK, IC - ic);
#if FILTERS == LAID_OUT
        transform_filters(filters + (size_t)(group * OC_BLOCKS + block) * FILTER_SIZE + (size_t)ic * TAPS * KU, count, U,
                          U_POSITION);
#else
        gather_and_transform(filters, group, block, ic, count, U, U_POSITION);
#endif
        for (int q = 0; q < POSITIONS; q++) {
            if (ic + CHUNK < IC) prefetch_filters(filters, group, block, ic + CHUNK, q);
            const T *v = V + (size_t)q * V_POSITION + (size_t)(ic / VW) * TILES * VW, *u = U + (size_t)q * U_POSITION;
            T *m = M + (size_t)q * M_POSITION;
            if (ic == 0) multiply_position(v, u, m, tiles, count, 1);
            else multiply_position(v, u, m, tiles, count, 0);
        }
    }
#endif
}

/* ---- Results -------------------------------------------------------------------------------------------------- */

INLINE void inverse_tile(const T *M, vec *y) {
    vec half[MH * NW];
    _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) {
        vec m[NH];
        _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) m[a] = load(M + (size_t)(a * NW + b) * M_POSITION);
        inverse_h(m, 1, half + b, NW);
    }
    _Pragma("GCC unroll 16") for (int a = 0; a < MH; a++) inverse_w(half + a * NW, 1, y + a * MW, 1);
}

/* Rows [row, end) of tiles, all of one image; M points at the first tile, lane 0 of VW channels from `oc` on. */
static void inverse_strip(const T *M, int group, int oc, int row, int end, int j0, int j1, T *y, T *strip) {
    const int n = row / TH, i0 = row % TH, i1 = i0 + end - row, live = MIN(VW, OC - oc);
    const int x0 = j0 * MW, x1 = MIN(YW, j1 * MW), y0 = i0 * MH, y1 = MIN(YH, i1 * MH);
    const size_t channel = (size_t)group * OC + oc;
#if CHANNELS_LAST
    (void)strip, (void)x1, (void)y1;
    const size_t column_step = Y_CHANNELS, row_step = (size_t)YW * Y_CHANNELS;
    T *to = y + (((size_t)n * YH + y0) * YW + x0) * Y_CHANNELS + channel;
#else
    const size_t column_step = VW, row_step = (size_t)(x1 - x0) * VW;
    T *to = strip;
#endif
    for (int i = i0; i < i1; i++)
        for (int j = j0; j < j1; j++, M += KU) {
            vec tile[MH * MW];
            inverse_tile(M, tile);
            T *corner = to + (size_t)(i * MH - y0) * row_step + (size_t)(j * MW - x0) * column_step;
            const int height = MIN(MH, YH - i * MH), width = MIN(MW, YW - j * MW);
            if (height == MH && width == MW && (live == VW || !CHANNELS_LAST)) {
                _Pragma("GCC unroll 16") for (int a = 0; a < MH; a++)
                    _Pragma("GCC unroll 16") for (int b = 0; b < MW; b++)
                        store(corner + a * row_step + b * column_step, tile[a * MW + b]);
            } else {
                for (int a = 0; a < height; a++)
                    for (int b = 0; b < width; b++)
                        if (live == VW || !CHANNELS_LAST) store(corner + a * row_step + b * column_step, tile[a * MW + b]);
                        else store_first(corner + a * row_step + b * column_step, tile[a * MW + b], OC % VW);
            }
        }
#if !CHANNELS_LAST
    T *planes = y + (((size_t)n * Y_CHANNELS + channel) * YH + y0) * YW + x0;
#if WHOLE_ROWS
    scatter_channels(strip, planes, (size_t)YH * YW, live, (y1 - y0) * YW);
#else
    for (int r = y0; r < y1; r++)
        scatter_channels(strip + (r - y0) * row_step, planes + (size_t)(r - y0) * YW, (size_t)YH * YW, live, x1 - x0);
#endif
#endif
}

static void inverse_block(const T *M, int group, int oc, int block_row, int end, int j0, int j1, T *y, T *strip) {
    for (int v = 0; v < KV && oc + v * VW < OC; v++)
        for (int row = block_row, next; row < end; row = next) {
            next = MIN(MIN(end, row + STRIP), (row / TH + 1) * TH);
            inverse_strip(M + (size_t)(row - block_row) * (j1 - j0) * KU + v * VW, group, oc + v * VW, row, next, j0, j1, y,
                          strip);
        }
}

/* ---- The whole ------------------------------------------------------------------------------------------------ */

void run(const T *x, const T *filters, T *y, char *workspace) {
    T *const shared = (T *)workspace;
    OMP(parallel num_threads(autoconv_threads))
    {
        T *M = shared + (SHARED ? V_SIZE : 0) + (size_t)thread_number() * THREAD_SIZE;
        T *U = M + M_SIZE, *strip = U + U_SIZE;
#if SHARED
        /* Few tiles: all threads make V together, then each takes its own output channels, so that every filter is
         * read once. */
        T *V = shared;
        for (int item = 0; item < GROUPS * ROW_BLOCKS * COLUMN_BLOCKS; item++) {
            const int group = item / (ROW_BLOCKS * COLUMN_BLOCKS), block = item % (ROW_BLOCKS * COLUMN_BLOCKS);
            const int row = block / COLUMN_BLOCKS * BR, end = MIN(TILE_ROWS, row + BR);
            const int j0 = block % COLUMN_BLOCKS * BC, j1 = MIN(TW, j0 + BC), tiles = (end - row) * (j1 - j0);
            const int strips = CEIL_DIV(end - row, STRIP);
            OMP(for schedule(static))
            for (int part = 0; part < IC_BLOCKS * strips; part++) {
                const int cb = part / strips, first = row + part % strips * STRIP;
                transform_rows(x, group, cb, row, first, MIN(end, first + STRIP), j0, j1, V, strip);
                if (part % strips == 0) clear_spare_tiles(cb, tiles, V);
            }
            OMP(for schedule(static))
            for (int ob = 0; ob < OC_BLOCKS; ob++) {
                multiply_block(V, filters, group, ob, tiles, M, U);
                inverse_block(M, group, ob * KU, row, end, j0, j1, y, strip);
            }
        }
#else
        /* Many tiles: every thread works through blocks of its own. */
        T *V = strip + STRIP_SIZE;
        OMP(for schedule(dynamic, 1))
        for (int item = 0; item < GROUPS * ROW_BLOCKS * COLUMN_BLOCKS; item++) {
            const int group = item / (ROW_BLOCKS * COLUMN_BLOCKS), block = item % (ROW_BLOCKS * COLUMN_BLOCKS);
            const int row = block / COLUMN_BLOCKS * BR, end = MIN(TILE_ROWS, row + BR);
            const int j0 = block % COLUMN_BLOCKS * BC, j1 = MIN(TW, j0 + BC), tiles = (end - row) * (j1 - j0);
            for (int cb = 0; cb < IC_BLOCKS; cb++) {
                transform_rows(x, group, cb, row, row, end, j0, j1, V, strip);
                clear_spare_tiles(cb, tiles, V);
            }
            for (int ob = 0; ob < OC_BLOCKS; ob++) {
                multiply_block(V, filters, group, ob, tiles, M, U);
                inverse_block(M, group, ob * KU, row, end, j0, j1, y, strip);
            }
        }
#endif
    }
}
