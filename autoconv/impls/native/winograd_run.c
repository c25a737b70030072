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
            const int h = y + a * SH, w = x + b * SW, inside = h >= 0 && h < XH && w >= 0 && w < XW;
            const T *pixel = from + (ptrdiff_t)a * (ptrdiff_t)row_step + (ptrdiff_t)b * (ptrdiff_t)column_step;
            store(tile + (a * NW + b) * VW, !inside ? (vec){0} : live == VW ? load(pixel) : load_first(pixel, IC % VW));
        }
    transform_tile(tile, NW * VW, VW, V);
}

/* Rows [row, end) of V's tiles, all of one image, columns [j0, j1), channels of block cb; V points at the first tile. */
static void transform_strip(const T *x, int group, int cb, int row, int end, int j0, int j1, T *V, T *strip) {
    const int n = row / VH, i0 = row % VH, i1 = i0 + end - row, live = MIN(VW, IC - cb * VW);
    const size_t channel = (size_t)group * IC + (size_t)cb * VW;
#if CHANNELS_LAST
    (void)strip;
    const T *image = x + (size_t)n * XH * XW * X_CHANNELS + channel;
    const size_t column_step = X_CHANNELS, row_step = (size_t)XW * X_CHANNELS;
    const int y0 = 0, x0 = 0, whole = live;
#else
    const int y0 = MIN(MAX(0, i0 * MH * SH - PH), XH), y1 = MAX(y0, MIN(XH, ((i1 - 1) * MH + NH) * SH - PH));
    const int x0 = WHOLE_ROWS ? 0 : MIN(MAX(0, j0 * MW * SW - PW), XW);
    const int x1 = WHOLE_ROWS ? XW : MAX(x0, MIN(XW, ((j1 - 1) * MW + NW) * SW - PW));
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
        for (int j = j0; j < j1; j++, V += VW)
            for (int phase = 0; phase < PHASES; phase++) {
                const int ty = i * MH * SH - PH + phase / PHASES_W, tx = j * MW * SW - PW + phase % PHASES_W;
                const T *from = image + (ptrdiff_t)(ty - y0) * (ptrdiff_t)row_step + (ptrdiff_t)(tx - x0) * (ptrdiff_t)column_step;
                T *to = V + phase * V_PHASE;
                if (whole == VW && ty >= 0 && tx >= 0 && ty + (NH - 1) * SH < XH && tx + (NW - 1) * SW < XW)
                    transform_tile(from, SH * row_step, SW * column_step, to);
                else transform_edge(from, row_step * SH, column_step * SW, ty, tx, whole, to);
            }
}

/* The same for any rows of the block that begins at block_row. */
static void transform_rows(const T *x, int group, int cb, int block_row, int row, int end, int j0, int j1, T *V, T *strip) {
    T *to = V + (size_t)cb * V_TILES * VW;
    for (int next; row < end; row = next) {
        next = MIN(MIN(end, row + STRIP), (row / VH + 1) * VH);
        transform_strip(x, group, cb, row, next, j0, j1, to + (size_t)(row - block_row) * (j1 - j0) * VW, strip);
    }
}

/* Tiles beyond the block's last one, up to a multiple of TR: multiplied with the others and thrown away. */
static void clear_spare_tiles(int cb, int tiles, T *V) {
    for (int t = tiles; t < ROUND_UP(tiles, TR); t++)
        for (int q = 0; q < POSITIONS; q++)
            for (int phase = 0; phase < PHASES; phase++)
                store(V + (size_t)q * V_POSITION + phase * V_PHASE + ((size_t)cb * V_TILES + t) * VW, (vec){0});
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
    for (; count >= VW; count -= VW, V += V_TILES * VW, U += VW * KU) multiply_channels(V, U, VW, ahead, acc);
    if (IC % VW) multiply_channels(V, U, count, 0, acc);
    _Pragma("GCC unroll 32") for (int t = 0; t < TR; t++)
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) store(M + t * KU + v * VW, acc[t][v]);
}

/* Rows of tiles that are multiplied one after the other: the block's rows [row, end), `columns` tiles each. */
struct tiles { int row, end, columns; };

/* All tiles at one position; the first ones fetch the filters, which then stay in the first-level cache. */
INLINE void multiply_position(const T *V, const T *U, T *M, struct tiles tiles, int count, int first) {
    if (AHEAD) multiply_tiles(V, U, M, count, first, AHEAD);
    for (int row = tiles.row; row < tiles.end; row++) {
        const T *v = V + (size_t)(DATA_ROW(row) - DATA_ROW(tiles.row)) * (tiles.columns + PIECES_W - 1) * VW;
        T *m = M + (size_t)(row - tiles.row) * ROUND_UP(tiles.columns, TR) * KU;
        for (int t = AHEAD && row == tiles.row ? TR : 0; t < tiles.columns; t += TR)
            multiply_tiles(v + t * VW, U, m + (size_t)t * KU, count, first, 0);
    }
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
static void multiply_block(const T *V, const T *filters, int group, int block, struct tiles tiles, T *M, T *U) {
#if FILTERS == TRANSFORMED
    (void)U;
    const T *u = filters + (size_t)(group * OC_BLOCKS + block) * FILTER_SIZE;
    for (int q = 0; q < POSITIONS; q++, V += V_POSITION, M += M_POSITION)
        for (int part = 0; part < PARTS; part++, u += (size_t)IC * KU) {
            const int piece = part % PIECES;
            const T *v = V + part / PIECES * V_PHASE
                         + (size_t)(piece / PIECES_W * (tiles.columns + PIECES_W - 1) + piece % PIECES_W) * VW;
            if (part == 0) multiply_position(v, u, M, tiles, MIN(CHUNK, IC), 1);
            for (int ic = part == 0 ? CHUNK : 0; ic < IC; ic += CHUNK)
                multiply_position(v + (size_t)(ic / VW) * V_TILES * VW, u + (size_t)ic * KU, M, tiles, MIN(CHUNK, IC - ic), 0);
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
            const T *v = V + (size_t)q * V_POSITION + (size_t)(ic / VW) * V_TILES * VW, *u = U + (size_t)q * U_POSITION;
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
    for (int i = i0; i < i1; i++, M += (M_COLUMNS(j1 - j0) - (j1 - j0)) * KU)
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
            inverse_strip(M + (size_t)(row - block_row) * M_COLUMNS(j1 - j0) * KU + v * VW, group, oc + v * VW, row, next, j0, j1, y,
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
            const int from = DATA_ROW(row), to = DATA_ROW(end - 1) + PIECES_H, reach = j1 + PIECES_W - 1;
            const struct tiles joined = PIECES > 1 ? (struct tiles){row, end, j1 - j0} : (struct tiles){0, 1, tiles};
            const int strips = CEIL_DIV(to - from, STRIP);
            OMP(for schedule(static))
            for (int part = 0; part < IC_BLOCKS * strips; part++) {
                const int cb = part / strips, first = from + part % strips * STRIP;
                transform_rows(x, group, cb, from, first, MIN(to, first + STRIP), j0, reach, V, strip);
                if (PIECES == 1 && part % strips == 0) clear_spare_tiles(cb, tiles, V);
            }
            OMP(for schedule(static))
            for (int ob = 0; ob < OC_BLOCKS; ob++) {
                multiply_block(V, filters, group, ob, joined, M, U);
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
            const int from = DATA_ROW(row), to = DATA_ROW(end - 1) + PIECES_H, reach = j1 + PIECES_W - 1;
            const struct tiles joined = PIECES > 1 ? (struct tiles){row, end, j1 - j0} : (struct tiles){0, 1, tiles};
            for (int cb = 0; cb < IC_BLOCKS; cb++) {
                transform_rows(x, group, cb, from, from, to, j0, reach, V, strip);
                if (PIECES == 1) clear_spare_tiles(cb, tiles, V);
            }
            for (int ob = 0; ob < OC_BLOCKS; ob++) {
                multiply_block(V, filters, group, ob, joined, M, U);
                inverse_block(M, group, ob * KU, row, end, j0, j1, y, strip);
            }
        }
#endif
    }
}
