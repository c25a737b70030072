/* Depthwise filters over channels-last data where it lies (see window.c): no copy, so that an array beyond the caches
 * passes once, in the order of its addresses. A task is a strip of output rows of an image; it takes CHUNK vectors of
 * channels at a time, whose filters stay in the second-level cache, and for these block by block along the rows.
 * The last vector of channels overlaps the one before it where the channels are no whole number of vectors.
 */
#define VECTORS CEIL_DIV(GROUPS, VW)
#define FIRST_CHANNEL(v) MIN((v) * VW, GROUPS - VW)
#define STRIPS CEIL_DIV(P, STRIP)
#define LAST_Q ((Q - 1) / CB * CB) /* the last block's first column */

/* [vector of channels][tap][lane] */
void pack(const T *w, T *packed)
{
    for (int v = 0; v < VECTORS; v++)
        for (int r = 0; r < R; r++)
            for (int s = 0; s < S; s++)
                for (int lane = 0; lane < VW; lane++)
                    *packed++ = w[W_BASE + (long)(FIRST_CHANNEL(v) + lane) * W_G + r * W_R + s * W_S];
}

/* The block whose first column is q, for vectors [v0, v1) of channels; `edge` is q where the block meets padding. */
INLINE void block_of_channels(const T *x, const T *w, T *y, struct inside in, int rows, int q, const int edge, int v0,
                              int v1)
{
    x += ((long)q * SW - PL) * X_W;
    y += (long)q * Y_W;
    for (int v = v0; v < v1; v++) {
        int channel = FIRST_CHANNEL(v);
        /* the next block's results: a core that owns their lines when it writes them does not wait for these */
        _Pragma("GCC unroll 8") for (int i = 0; i < RB; i++)
            _Pragma("GCC unroll 16") for (int j = CB; j < 2 * CB; j++)
                __builtin_prefetch(y + channel + i * ROW_STEP * Y_H + j * Y_W, 1, 3);
        block(x + channel, w + (long)v * R * S * VW, y + channel, Y_H, Y_W, in, 1, rows, Q - q, edge);
    }
}

/* RB output rows of an image, the first of them p. */
static void take_block_row(const T *x, const T *w, T *y, int p, int rows, int v0, int v1)
{
    struct inside in = {p * SH - PT, 0, S};
    x += (long)in.h * X_H;
    y += (long)p * Y_H;
    block_of_channels(x, w, y, in, rows, 0, 0, v0, v1);
    for (int q = CB; q < LAST_Q; q += CB)
        block_of_channels(x, w, y, in, rows, q, -1, v0, v1);
#if LAST_Q > 0
    block_of_channels(x, w, y, in, rows, LAST_Q, LAST_Q, v0, v1);
#endif
}

void run(const T *x, const T *w, T *y, char *workspace)
{
    OMP(parallel for num_threads(autoconv_threads) schedule(static))
    for (int task = 0; task < N * STRIPS; task++) {
        int n = task / STRIPS, p0 = task % STRIPS * STRIP, end = MIN(P, p0 + STRIP);
        for (int v = 0; v < VECTORS; v += CHUNK)
            for (int residue = 0; residue < ROW_STEP; residue++)
                for (int p = p0 + residue; p < end; p += RB * ROW_STEP)
                    take_block_row(x + n * X_N, w, y + n * Y_N, p, CEIL_DIV(end - p, ROW_STEP), v,
                                   MIN(VECTORS, v + CHUNK));
    }
}
