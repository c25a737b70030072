/* Copies of the input with its padding, so that no product needs a test or reads outside an operand. */
#if STAGED && !CHANNELS_LAST
/* One channel, rows from i0 on: [depth tap][phase of the stride][image][row][column], zero outside the image. */
static void stage_channel(T *to, const T *x, int images, int z, int i0)
{
    static const int depth[] = {DEPTH_OFFSETS}, phase_h[] = {PHASES_H}, phase_w[] = {PHASES_W};
    for (int plane = 0; plane < DEPTH_TAPS * PHASES; plane++) {
        int d = z * ISD + depth[plane / PHASES], ph = phase_h[plane % PHASES], pw = phase_w[plane % PHASES];
        /* columns begin <= j < end lie inside: 0 <= j * ISW + pw < W */
        int begin = pw < 0 ? MIN(CEIL_DIV(-pw, ISW), WQ) : 0, end = pw < W ? MIN(CEIL_DIV(W - pw, ISW), WQ) : 0;
        for (int n = 0; n < images; n++)
            for (int i = 0; i < HQ; i++, to += WQ) {
                int h = (i0 + i) * ISH + ph;
                if (d < 0 || d >= D || h < 0 || h >= H || begin >= end) {
                    memset(to, 0, WQ * sizeof(T));
                    continue;
                }
                const T *from = x + n * X_N + d * X_D + h * X_H + pw * X_W;
                for (int j = 0; j < begin; j++)
                    to[j] = 0;
                if (ISW * X_W == 1)
                    memcpy(to + begin, from + begin, (end - begin) * sizeof(T));
                else
                    for (int j = begin; j < end; j++)
                        to[j] = from[j * (ISW * X_W)];
                for (int j = end; j < WQ; j++)
                    to[j] = 0;
            }
        to += (IMAGES - images) * HQ * WQ;
    }
}
#elif STAGED
/* One of the rows [image][depth tap][row], each [column][channel], zero outside the image. */
static void stage_row(T *to, const T *x, int row, int z, int i0)
{
    static const int depth[] = {DEPTH_OFFSETS};
    int begin = MIN(MAX(-LOW_W, 0), STAGE_W), end = MAX(begin, MIN(W - LOW_W, STAGE_W));
    int n = row / STAGE_H / DEPTH_TAPS, d = z * ISD + depth[row / STAGE_H % DEPTH_TAPS];
    int h = i0 * ISH + row % STAGE_H + LOW_H;
    if (d < 0 || d >= D || h < 0 || h >= H) {
        memset(to, 0, STAGE_W * CG * sizeof(T));
        return;
    }
    const T *from = x + n * X_N + d * X_D + h * X_H + LOW_W * X_W;
    memset(to, 0, (size_t)begin * CG * sizeof(T));
    if (GROUPS == 1)
        memcpy(to + begin * CG, from + begin * X_W, (size_t)(end - begin) * CG * sizeof(T));
    else
        for (int j = begin; j < end; j++)
            for (int c = 0; c < CG; c++)
                to[j * CG + c] = from[j * X_W + c];
    memset(to + end * CG, 0, (size_t)(STAGE_W - end) * CG * sizeof(T));
}
#endif

