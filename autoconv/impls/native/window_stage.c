/* Staging and tasks of the sliding window (window.c), when it takes the taps as they are. */
#if LANES_ARE_CHANNELS

/* STAGE_H rows from h0 on of `channels` channels, zero outside the image and beyond the channels. */
static void stage_rows(T *stage, const T *x, int h0, int channels)
{
    for (int i = 0; i < STAGE_H; i++) {
        int h = h0 + i;
        T *row = stage + (long)i * ROW_T;
        int begin = PL < 0 ? 0 : PL < STAGE_W ? PL : STAGE_W, end = W + PL < STAGE_W ? W + PL : STAGE_W;
        if (h < 0 || h >= H || end <= begin)
            begin = end = STAGE_W;
        for (int j = 0; j < begin * VW; j++)
            row[j] = 0;
        const T *from = x + (long)h * X_H - (long)PL * X_W;
        if (X_C == 1 && channels == VW)
            for (int j = begin; j < end; j++)
                store(row + j * VW, load(from + (long)j * X_W));
        else
            for (int j = begin; j < end; j++)
                for (int lane = 0; lane < VW; lane++)
                    row[j * VW + lane] = lane < channels ? from[j * X_W + lane * X_C] : 0;
        for (int j = end * VW; j < ROW_T; j++)
            row[j] = 0;
    }
}

/* A finished strip whose lanes are not whole vectors of y leaves scratch. */
static void unstage(T *y, const T *out, int rows, int channels)
{
    for (int p = 0; p < rows; p++)
        for (int lane = 0; lane < channels; lane++)
            for (int q = 0; q < Q; q++)
                y[(long)p * Y_H + q * Y_W + (long)lane * Y_C] = out[((long)p * Q + q) * VW + lane];
}

#else

/* One input row, split into SW phases so that neighbouring outputs find neighbouring inputs. */
static void stage_row(T *stage, const T *x)
{
    for (int phase = 0; phase < SW; phase++) {
        T *row = stage + phase * STAGE_W;
        int begin = CEIL_DIV(PL > phase ? PL - phase : 0, SW), end = CEIL_DIV(W + PL > phase ? W + PL - phase : 0, SW);
        if (end > STAGE_W)
            end = STAGE_W;
        if (!x || end <= begin)
            begin = end = STAGE_W;
        for (int i = 0; i < begin; i++)
            row[i] = 0;
        for (int i = begin; i < end; i++)
            row[i] = x[(long)(i * SW + phase - PL) * X_W];
        for (int i = end; i < STAGE_W; i++)
            row[i] = 0;
    }
}

#endif
