/* Depthwise convolution by spectra (see fft.py): lanes across neighbouring channels, two planes in one transform.
 *
 * A real plane A and a real plane B that meet the same filter are transformed as A + iB: the product with the
 * filter's spectrum and the way back keep them apart. So a pair of items (an image's strip of rows) is one complex
 * transform: rows first, then per column the transform, the product and its inverse, then the rows back.
 *
 * The rows of an item begin ORIGIN rows from its first result; results are circular, with lengths such that what
 * wraps round meets zeros or is not wanted.
 */
#define BLOCKS CEIL_DIV(CHANNELS, VW)
#define ITEMS (N * STRIPS)
#define PAIRS CEIL_DIV(ITEMS, 2)
#define CELL (2 * VW)                 /* a complex number of VW channels */
#define ROW_T (PITCH * CELL)
#define COLUMNS (WIDTH / 2 + 1)       /* of a filter's spectrum; the others are their conjugates */
#define BLOCK_T (COLUMNS * HEIGHT * CELL)
#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)
#define along_width NAMED(transform_, WIDTH)
#define along_height NAMED(transform_, HEIGHT)

/* The spectrum of every channel's filter, column by column; its conjugate, since filters are not turned round. */
void pack(const T *w, T *packed)
{
    OMP(parallel for num_threads(autoconv_threads) schedule(static))
    for (int b = 0; b < BLOCKS; b++) {
        T *to = packed + (long)b * BLOCK_T;
        memset(to, 0, sizeof(T) * BLOCK_T);
        for (int r = R_FIRST; r < R_END; r++) {
            T row[WIDTH * CELL] __attribute__((aligned(VECTOR_BYTES)));
            memset(row, 0, sizeof row);
            for (int s = S_FIRST; s < S_END; s++)
                for (int lane = 0; lane < VW && b * VW + lane < CHANNELS; lane++)
                    row[(s * DW - PL + WIDTH) % WIDTH * CELL + lane] =
                        w[W_BASE + (long)(b * VW + lane) * W_G + r * W_R + s * W_S];
            along_width(row, CELL, WIDTH, to + (r * DH - PT + HEIGHT) % HEIGHT * CELL, HEIGHT * CELL, COLUMNS, 0);
        }
        for (int v = 0; v < COLUMNS; v++) {
            T *column = to + (long)v * HEIGHT * CELL;
            along_height(column, CELL, HEIGHT, column, CELL, HEIGHT, 0);
            for (int u = 0; u < HEIGHT; u++) {
                store(column + u * CELL, load(column + u * CELL) * splat((T)1 / (HEIGHT * WIDTH)));
                store(column + u * CELL + VW, load(column + u * CELL + VW) * splat((T)-1 / (HEIGHT * WIDTH)));
            }
        }
    }
}

/* W pixels of `channels` channels, into every other vector of row. */
INLINE void take_row(T *row, const T *x, int channels)
{
#if X_LAST
    if (channels == VW)
        for (int w = 0; w < W; w++)
            store(row + w * CELL, load(x + (long)w * X_W));
    else
        for (int w = 0; w < W; w++)
            store(row + w * CELL, load_first(x + (long)w * X_W, channels));
#else
    for (int w = 0; w < W; w += VW) {
        vec square[VW];
        for (int lane = 0; lane < VW; lane++) {
            const T *from = x + (long)lane * X_C + w;
            square[lane] = lane >= channels ? (vec){0} : w + VW <= W ? load(from) : load_first(from, W % VW);
        }
        transpose(square);
        for (int j = 0; j < VW && w + j < W; j++)
            store(row + (w + j) * CELL, square[j]);
    }
#endif
}

/* The way back, for Q results. */
INLINE void give_row(T *y, const T *row, int channels)
{
#if X_LAST
    if (channels == VW)
        for (int q = 0; q < Q; q++)
            store(y + (long)q * Y_W, load(row + q * CELL));
    else
        for (int q = 0; q < Q; q++)
            store_first(y + (long)q * Y_W, load(row + q * CELL), channels);
#else
    for (int q = 0; q < Q; q += VW) {
        vec square[VW];
        for (int j = 0; j < VW; j++)
            square[j] = q + j < Q ? load(row + (q + j) * CELL) : (vec){0};
        transpose(square);
        for (int lane = 0; lane < channels; lane++) {
            T *to = y + (long)lane * Y_C + q;
            if (q + VW <= Q)
                store(to, square[lane]);
            else
                store_first(to, square[lane], Q % VW);
        }
    }
#endif
}

/* Column v of a spectrum times the filter's. */
INLINE void multiply(T *column, const T *filter, int v)
{
    int mirrored = v >= COLUMNS;
    const T *from = filter + (long)(mirrored ? WIDTH - v : v) * HEIGHT * CELL;
    vec sign = splat(mirrored ? -1 : 1);
    for (int u = 0; u < HEIGHT; u++) {
        const T *f = from + (mirrored && u ? HEIGHT - u : u) * CELL;
        vec re = load(column + u * CELL), im = load(column + u * CELL + VW), fre = load(f), fim = sign * load(f + VW);
        store(column + u * CELL, re * fre - im * fim);
        store(column + u * CELL + VW, re * fim + im * fre);
    }
}

static __attribute__((noinline)) void row_forward(const T *row, T *plane)
{
    along_width(row, CELL, W, plane, CELL, WIDTH, 0);
}

static __attribute__((noinline)) void row_back(const T *plane, T *row)
{
    along_width(plane, CELL, WIDTH, row, CELL, Q, 1);
}

static __attribute__((noinline)) void columns(T *plane, const T *filter)
{
    T column[HEIGHT * CELL] __attribute__((aligned(VECTOR_BYTES)));
    for (int v = 0; v < WIDTH; v++) {
        along_height(plane + v * CELL, ROW_T, STRIP_IN, column, CELL, HEIGHT, 0);
        multiply(column, filter, v);
        along_height(column, CELL, HEIGHT, plane + v * CELL, ROW_T, STRIP, 1);
    }
}

static void one_task(const T *x, const T *filter, T *y, T *scratch, int block, int pair)
{
    T *plane = scratch, *row = scratch + (long)PLANE_ROWS * ROW_T;
    int channels = MIN(VW, CHANNELS - block * VW), p[2];
    long image[2];
    for (int part = 0; part < 2; part++) {
        int item = 2 * pair + part;
        image[part] = item < ITEMS ? item / STRIPS : -1;
        p[part] = item % STRIPS * STRIP;
    }
    x += (long)block * VW * X_C;
    y += (long)block * VW * Y_C;
    for (int i = 0; i < STRIP_IN; i++) {
        int met = 0;
        for (int part = 0; part < 2; part++) {
            int h = p[part] + ORIGIN + i;
            if (image[part] >= 0 && h >= 0 && h < H) {
                take_row(row + part * VW, x + image[part] * X_N + (long)h * X_H, channels);
                met = 1;
            } else
                for (int w = 0; w < W; w++)
                    store(row + w * CELL + part * VW, (vec){0});
        }
        if (met)
            row_forward(row, plane + (long)i * ROW_T);
        else
            memset(plane + (long)i * ROW_T, 0, sizeof(T) * WIDTH * CELL);
    }
    columns(plane, filter + (long)block * BLOCK_T);
    for (int i = 0; i < STRIP; i++) {
        row_back(plane + (long)i * ROW_T, row);
        for (int part = 0; part < 2; part++)
            if (image[part] >= 0 && p[part] + i < P)
                give_row(y + image[part] * Y_N + (long)(p[part] + i) * Y_H, row + part * VW, channels);
    }
}

void run(const T *x, const T *w, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *scratch = (T *)(workspace + thread_number() * SCRATCH_BYTES);
                /* one run of blocks for each thread: cores that write neighbouring lines take them from one another */
        OMP(for schedule(static))
        for (int task = 0; task < BLOCKS * PAIRS; task++)
            one_task(x, w, y, scratch, task / PAIRS, task % PAIRS);
    }
}
