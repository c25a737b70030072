/* Volumes by the sliding window (window.c): one output depth at a time, the depth taps of a filter as further
 * channels. A task stages the planes of DEPTHS neighbouring output depths once; planes outside the volume are zero.
 */
#define STRIPS CEIL_DIV(P, STRIP)
#define SLABS CEIL_DIV(Z, DEPTHS)
#define BLOCKS CEIL_DIV(GROUPS, LANE_GROUPS)
#define IMAGES CEIL_DIV(N, NB)

/* [groups of a vector][filter][depth tap][channel][tap][lane]; lanes beyond the groups are zero. */
void pack(const T *w, T *packed)
{
    for (int g0 = 0; g0 < GROUPS; g0 += LANE_GROUPS)
        for (int k = 0; k < KG; k++)
            for (int t = 0; t < DEPTH_TAPS; t++)
                for (int c = 0; c < CHANNELS; c++)
                    for (int rs = 0; rs < R * S; rs++)
                        for (int lane = 0; lane < LANE_GROUPS; lane++) {
                            const T *from = w + FULL_W_BASE + (long)k * FULL_W_K + t * FULL_W_D + c * FULL_W_C
                                            + rs / S * FULL_W_R + rs % S * FULL_W_S;
                            *packed++ = g0 + lane < GROUPS ? from[(long)(g0 + lane) * FULL_W_G] : 0;
                        }
}

/* Input planes of `depths` outputs from z0 on, rows from h0 on: [image][plane][channel][row]. */
static void stage_volume(T *stage, const T *x, int z0, int h0, int depths, int images, int groups)
{
    int planes = (depths - 1) * SD + DEPTH_TAPS;
    for (int i = 0; i < images * planes * CHANNELS; i++, stage += CHANNEL_T) {
        int d = z0 * SD - PF + i / CHANNELS % planes * DD, outside = d < 0 || d >= D;
        const T *plane = x + (long)(i / CHANNELS / planes) * X_N + (long)(i % CHANNELS) * X_C + (outside ? 0 : d * X_D);
#if LANES_ARE_CHANNELS
        stage_rows(stage, plane, outside ? H : h0, groups);
#else
        for (int j = 0; j < STAGE_H; j++) {
            int h = h0 + j;
            stage_row(stage + (long)j * ROW_T, outside || h < 0 || h >= H ? 0 : plane + (long)h * X_H);
        }
#endif
    }
}

/* `rows` rows of one output depth. */
static void one_depth(const T *stage, const T *w, T *y, T *out, int p0, int rows, int images, int groups)
{
    int whole = !LANES_ARE_CHANNELS || (Y_C == 1 && groups == VW);
    T *to = whole ? y : out;
    long y_row = whole ? Y_H : Q * VW, y_column = whole ? Y_W : VW;
    for (int residue = 0; residue < ROW_STEP; residue++)
        for (int p = residue; p < rows; p += RB * ROW_STEP)
            for (int k = 0; k < KG; k += KB)
                for (int q = 0; q < Q; q += LANES_ARE_CHANNELS ? CB : CB * VW)
                    block(stage + (long)p * SH * ROW_T + (LANES_ARE_CHANNELS ? q * SW * VW : q), w + (long)k * W_K,
                          to + (long)k * Y_C + p * y_row + q * y_column, y_row, y_column, find_inside(p0 + p, q),
                          images, CEIL_DIV(rows - p, ROW_STEP), Q - q, -1);
#if LANES_ARE_CHANNELS
    if (!whole)
        unstage(y, out, rows, groups);
#endif
}

static void one_task(const T *x, const T *w, T *y, T *scratch, int task)
{
    int p0 = task % STRIPS * STRIP, z0 = task / STRIPS % SLABS * DEPTHS;
    int g = task / STRIPS / SLABS % BLOCKS * LANE_GROUPS, n = task / STRIPS / SLABS / BLOCKS * NB;
    int rows = MIN(STRIP, P - p0), depths = MIN(DEPTHS, Z - z0);
    int images = MIN(NB, N - n), groups = MIN(LANE_GROUPS, GROUPS - g);
    stage_volume(scratch, x + (long)n * X_N + (long)g * CHANNELS * X_C, z0, p0 * SH - PT, depths, images, groups);
    y += (long)n * Y_N + (long)g * KG * Y_C + (long)p0 * Y_H;
    for (int z = 0; z < depths; z++)
        one_depth(scratch + (long)z * SD * CHANNELS * CHANNEL_T, w + (long)g * KG * CG * R * S,
                  y + (long)(z0 + z) * Y_D, scratch + STAGED_T, p0, rows, images, groups);
}

#if LANES_ARE_CHANNELS
#define SCHEDULE static /* as in window_run.c */
#else
#define SCHEDULE dynamic
#endif

void run(const T *x, const T *w, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *scratch = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        OMP(for schedule(SCHEDULE))
        for (int task = 0; task < STRIPS * SLABS * BLOCKS * IMAGES; task++)
            one_task(x, w, y, scratch, task);
    }
}
