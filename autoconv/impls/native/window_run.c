#if PACKED_T
/* [channel block][tap][lane]; lanes beyond the channels are zero. */
void pack(const T *w, T *packed)
{
    for (int g0 = 0; g0 < GROUPS; g0 += VW)
        for (int r = 0; r < R; r++)
            for (int s = 0; s < S; s++)
                for (int lane = 0; lane < VW; lane++)
                    packed[g0 * R * S + (r * S + s) * VW + lane] =
                        g0 + lane < GROUPS ? w[W_BASE + (long)(g0 + lane) * W_G + r * W_R + s * W_S] : 0;
}
#endif

#define STRIPS CEIL_DIV(P, STRIP)
#define IMAGES CEIL_DIV(N, NB)

#if LANES_ARE_CHANNELS

static void one_task(const T *x, const T *w, T *y, T *scratch, int task)
{
    int p0 = task % STRIPS * STRIP, g0 = task / STRIPS % CEIL_DIV(GROUPS, VW) * VW;
    int n = task / STRIPS / CEIL_DIV(GROUPS, VW);
    int rows = P - p0 < STRIP ? P - p0 : STRIP, channels = GROUPS - g0 < VW ? GROUPS - g0 : VW;
    int whole = Y_C == 1 && channels == VW;
    long y_row = whole ? Y_H : Q * VW, y_column = whole ? Y_W : VW;
    y += (long)n * Y_N + (long)g0 * Y_C + (long)p0 * Y_H;
    T *out = whole ? y : scratch + IMAGE_T;
    stage_rows(scratch, x + (long)n * X_N + (long)g0 * X_C, p0 * SH - PT, channels);
    for (int residue = 0; residue < ROW_STEP; residue++)
        for (int p = residue; p < rows; p += RB * ROW_STEP)
            for (int q = 0; q < Q; q += CB)
                block(scratch + (long)p * SH * ROW_T + q * SW * VW, w + (long)g0 * R * S,
                      out + p * y_row + q * y_column, y_row, y_column, find_inside(p0 + p, q), 1,
                      CEIL_DIV(rows - p, ROW_STEP), Q - q, -1);
    if (!whole)
        unstage(y, out, rows, channels);
}
#define TASKS (STRIPS * CEIL_DIV(GROUPS, VW) * N)
#define SCHEDULE static /* cores that write neighbouring lines of an array would take them from one another */

#else

static void one_task(const T *x, const T *w, T *y, T *scratch, int task)
{
    int p0 = task % STRIPS * STRIP, g = task / STRIPS % GROUPS, n = task / STRIPS / GROUPS * NB;
    int rows = P - p0 < STRIP ? P - p0 : STRIP, images = N - n < NB ? N - n : NB;
    for (int i = 0; i < images * CG; i++)
        for (int j = 0; j < STAGE_H; j++) {
            int h = p0 * SH - PT + j;
            const T *plane = x + (long)(n + i / CG) * X_N + (long)(g * CG + i % CG) * X_C;
            stage_row(scratch + ((long)i * STAGE_H + j) * ROW_T, h < 0 || h >= H ? 0 : plane + (long)h * X_H);
        }
    y += (long)n * Y_N + (long)g * KG * Y_C + (long)p0 * Y_H;
    for (int residue = 0; residue < ROW_STEP; residue++)
        for (int p = residue; p < rows; p += RB * ROW_STEP)
            for (int k = 0; k < KG; k += KB)
                for (int q = 0; q < Q; q += CB * VW)
                    block(scratch + (long)p * SH * ROW_T + q, w + W_BASE + (long)g * W_G + (long)k * W_K,
                          y + (long)p * Y_H + (long)k * Y_C + (long)q * Y_W, Y_H, Y_W, find_inside(p0 + p, q),
                          images, CEIL_DIV(rows - p, ROW_STEP), Q - q, -1);
}
#define TASKS (STRIPS * GROUPS * IMAGES)
#define SCHEDULE dynamic

#endif

void run(const T *x, const T *w, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *scratch = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        OMP(for schedule(SCHEDULE))
        for (int task = 0; task < TASKS; task++)
            one_task(x, w, y, scratch, task);
    }
}
