/* The gradient of the filters as a matrix product: sums over pixels, lanes across output channels (see gemm.py).
 *
 * Rows of pixels are taken in chunks that fit the cache. Of each chunk the output gradient is packed
 * [block of NV vectors of output channels][pixel][channel], and the input staged with its padding; then the threads
 * share the tiles of MP (tap, channel) pairs x NV vectors, whose sums rest in scratch between chunks.
 */
#define NK (NV * VW)
#define CT (TAPS * CG)
#define K_BLOCKS CEIL_DIV(KG, NK)
#define CT_BLOCKS CEIL_DIV(CT, MP)
#define CHUNK_PIXELS (IMAGES * ROWS * Q)
static const int OFFSET[] = {OFFSETS}, TAP[] = {TAP_INDEX};

/* Tile of sums: pairs ct.. of (tap, channel), all MP of them in one tap if `even`. */
INLINE void multiply(T *sums, const T *b, const T *x, int ct, int images, int rows, int more, const int even)
{
    vec acc[MP][NV];
    long at[MP];
    _Pragma("GCC unroll 32")
    for (int m = 0; m < MP; m++) {
        int pair = MIN(ct + m, CT - 1);
        at[m] = OFFSET[pair / CG] + pair % CG * (long)EVEN;
        _Pragma("GCC unroll 8")
        for (int v = 0; v < NV; v++)
            acc[m][v] = more ? load(sums + (MIN(m, CT - 1 - ct) * NV + v) * VW) : (vec){0};
    }
    if (even)
        x += at[0];
    for (int n = 0; n < images; n++) {
        int run = ROWS_JOIN ? rows * Q : Q;
        for (int i = 0; i < (ROWS_JOIN ? 1 : rows); i++, b += (long)run * NK)
            multiply_run(acc, b, NK, x + n * IN_IMAGE + i * IN_ROW, at, run, NV, even);
    }
    _Pragma("GCC unroll 32")
    for (int m = 0; m < MP; m++)
        if (even || ct + m < CT)
            _Pragma("GCC unroll 8")
            for (int v = 0; v < NV; v++)
                store(sums + (m * NV + v) * VW, acc[m][v]);
}

static void tile(T *sums, const T *b, const T *x, int ct, int images, int rows, int more)
{
    if (ct % CG + MP <= CG)
        multiply(sums, b, x, ct, images, rows, more, 1);
    else
        multiply(sums, b, x, ct, images, rows, more, 0);
}

/* One vector of output channels of a chunk's output gradient: `pixels` neighbouring ones. */
static void pack_lanes(T *to, const T *dy, int pixels, int filters)
{
    int p = 0;
    if (Y_W == 1)
        for (; p + VW <= pixels; p += VW) {
            vec square[VW];
            _Pragma("GCC unroll 16")
            for (int k = 0; k < VW; k++)
                square[k] = k < filters ? load(dy + k * Y_C + p) : (vec){0};
            transpose(square);
            _Pragma("GCC unroll 16")
            for (int k = 0; k < VW; k++)
                store(to + (long)(p + k) * NK, square[k]);
        }
    for (; p < pixels; p++)
        if (Y_C == 1 && filters >= VW)
            store(to + (long)p * NK, load(dy + p * Y_W));
        else
            for (int k = 0; k < VW; k++)
                to[(long)p * NK + k] = k < filters ? dy[k * Y_C + p * Y_W] : 0;
}

void run(const T *x, const T *dy, T *dw, char *workspace)
{
    T *packed = (T *)workspace, *sums = packed + (long)K_BLOCKS * CHUNK_PIXELS * NK;
    T *staged = sums + (long)K_BLOCKS * CT * NK;
    (void)staged;
    OMP(parallel num_threads(autoconv_threads))
    for (int g = 0; g < GROUPS; g++) {
        int more = 0;
        for (int n = 0; n < N; n += IMAGES)
            for (int z = 0; z < Z; z++)
                for (int i0 = 0; i0 < P; i0 += ROWS, more = 1) {
                    int images = MIN(IMAGES, N - n), rows = MIN(ROWS, P - i0), pixels = rows * Q;
                    const T *from = x + (long)n * X_N + (long)g * CG * X_C;
                    const T *dy0 = dy + (long)n * Y_N + (long)g * KG * Y_C + z * Y_D + i0 * Y_H;
                    OMP(for schedule(dynamic) nowait)
                    for (int task = 0; task < images * K_BLOCKS * NV; task++) {
                        int k = task % (K_BLOCKS * NV) * VW, image = task / (K_BLOCKS * NV);
                        pack_lanes(packed + ((long)(k / NK) * CHUNK_PIXELS + image * pixels) * NK + k % NK,
                                   dy0 + image * Y_N + k * Y_C, pixels, MIN(VW, KG - k));
                    }
#if STAGED && CHANNELS_LAST
                    OMP(for schedule(static))
                    for (int row = 0; row < images * DEPTH_TAPS * STAGE_H; row++)
                        stage_row(staged + (long)row * STAGE_W * CG, from, row, z, i0);
                    from = staged;
#elif STAGED
                    OMP(for schedule(static))
                    for (int c = 0; c < CG; c++)
                        stage_channel(staged + (long)c * CHANNEL_T, from + (long)c * X_C, images, z, i0);
                    from = staged;
#else
                    OMP(barrier)
                    from += z * ISD * X_D + i0 * ISH * X_H;
#endif
                    OMP(for schedule(dynamic))
                    for (int task = 0; task < K_BLOCKS * CT_BLOCKS; task++) {
                        int k = task / CT_BLOCKS, ct = task % CT_BLOCKS * MP;
                        tile(sums + ((long)k * CT + ct) * NK, packed + (long)k * CHUNK_PIXELS * NK, from, ct, images,
                             rows, more);
                    }
                }
        OMP(for collapse(2) schedule(static))
        for (int block = 0; block < K_BLOCKS; block++)
            for (int c0 = 0; c0 < CG; c0 += 16) /* few enough channels for a first-level cache */
                for (int k = block * NK; k < MIN(KG, (block + 1) * NK); k++)
                    for (int c = c0; c < MIN(CG, c0 + 16); c++)
                        for (int t = 0; t < TAPS; t++)
                            dw[((long)(g * KG + k) * CG + c) * TAPS + TAP[t]] =
                                sums[((long)block * CT + t * CG + c) * NK + k % NK];
    }
}
