/* Direct convolution by a sliding window, for filters that see few channels (see direct.py, depthwise.py).
 *
 * Lanes lie along the width of one image, or, with LANES_ARE_CHANNELS, across neighbouring channels of a
 * depthwise problem. One block is RB output rows x CB output vectors (of NB images, KB output channels), kept
 * in registers. A staged input row serves every output row of the block whose filter reaches it, so CB loads and
 * RB broadcasts feed RB*CB fused multiply-adds; rows at the block's rim serve only some, and are unrolled.
 *
 * Input rows are first copied to scratch with their padding: no load then needs a test, or leaves an operand. Or, IN_PLACE,
 * channels-last rows are read where they lie; blocks at the image's left and right rim, whose column the compiler
 * knows, then leave out the taps that meet padding (OUTSIDE).
 */
/* Taps s = first + i*TAP_STEP meet the same column phase, so their staged columns lie evenly. */
#define ROW_SPAN (RB * SIGMA - SIGMA + R) /* staged rows (in steps of DH) that a block reads */
#define RIM (RB * SIGMA - SIGMA)          /* rows before every output row of the block has begun */

#if IN_PLACE
#define COLUMN(s) ((s) * DW * X_W)
#define COLUMN_STEP (DW * X_W)
#define VECTOR_STEP (SW * X_W)
#define ROW_T X_H
#define OUTSIDE(q, b, s) ((q) >= 0 && ((q) + (b) >= Q || ((q) + (b)) * SW + (s) * DW < PL \
                                       || ((q) + (b)) * SW + (s) * DW - PL >= W))
#elif LANES_ARE_CHANNELS
#define COLUMN(s) ((s) * DW * VW)
#define COLUMN_STEP (DW * VW)
#define VECTOR_STEP (SW * VW)
#define ROW_T (STAGE_W * VW)
#else
#define COLUMN(s) (((s) * DW) % SW * STAGE_W + ((s) * DW) / SW)
#define COLUMN_STEP (TAP_STEP * DW / SW)
#define VECTOR_STEP VW
#define ROW_T (SW * STAGE_W)
#endif
#ifndef OUTSIDE
#define OUTSIDE(q, b, s) 0
#endif
#define CHANNEL_T (STAGE_H * ROW_T)
#define IMAGE_T (CG * CHANNEL_T)

/* What of a block's window lies inside the image: the image row of its first staged row, and the columns of taps. */
struct inside { int h, s_first, s_end; };

/* Output rows first..last of the block take the taps that staged row u holds for them; q: see OUTSIDE. */
INLINE void take_row(vec acc[KB][RB][NB * CB], const T *x, const T *w, int u, struct inside in, int first, int last,
                     const int q)
{
    if (in.h + u * DH < 0 || in.h + u * DH >= BLOCK_H)
        return;
    for (int s0 = 0; s0 < TAP_STEP && s0 < S; s0++) {
        int skipped = UNROLLED || in.s_first <= s0 ? 0 : CEIL_DIV(in.s_first - s0, TAP_STEP);
        int s_end = UNROLLED ? S : in.s_end;
        UNROLL_TAPS
        for (int s = s0 + skipped * TAP_STEP; s < s_end; s += TAP_STEP) {
            const T *column = x + COLUMN(s0) + (s - s0) / TAP_STEP * COLUMN_STEP;
            vec xv[NB * CB];
            #pragma GCC unroll 64
            for (int b = 0; b < NB * CB; b++)
                if (!OUTSIDE(q, b, s))
                    xv[b] = load(column + b / CB * IMAGE_T + b % CB * VECTOR_STEP);
            #pragma GCC unroll 64
            for (int k = 0; k < KB; k++) {
                #pragma GCC unroll 64
                for (int a = 0; a < RB; a++) {
                    if (a < first || a > last)
                        continue;
#if LANES_ARE_CHANNELS
                    vec weight = load(w + ((u - a * SIGMA) * S + s) * VW);
#else
                    vec weight = splat(w[k * W_K + (u - a * SIGMA) * W_R + s * W_S]);
#endif
                    #pragma GCC unroll 64
                    for (int b = 0; b < NB * CB; b++)
                        if (!OUTSIDE(q, b, s))
                            acc[k][a][b] += weight * xv[b];
                }
            }
        }
    }
}

#define FIRST(u) ((u) < R ? 0 : ((u) - R) / SIGMA + 1)
#define LAST(u) ((u) / SIGMA < RB - 1 ? (u) / SIGMA : RB - 1)

/* One register block; y, of the given strides, takes what of it lies inside the output. */
INLINE void block(const T *stage, const T *w, T *y, long y_row, long y_column, struct inside in,
                  int images, int rows, int columns, const int q)
{
    vec acc[KB][RB][NB * CB];
    #pragma GCC unroll 64
    for (int k = 0; k < KB; k++)
        #pragma GCC unroll 64
        for (int a = 0; a < RB; a++)
            #pragma GCC unroll 64
            for (int b = 0; b < NB * CB; b++)
                acc[k][a][b] = (vec){0};

    for (int c = 0; c < CG; c++) {
        const T *x = stage + c * CHANNEL_T, *wc = w + c * W_C;
        #pragma GCC unroll 64
        for (int u = 0; u < (RIM < ROW_SPAN ? RIM : ROW_SPAN); u++)
            take_row(acc, x + u * DH * ROW_T, wc, u, in, FIRST(u), LAST(u), q);
        for (int u = RIM; u < R; u++)
            take_row(acc, x + u * DH * ROW_T, wc, u, in, 0, RB - 1, q);
        #pragma GCC unroll 64
        for (int u = R > RIM ? R : RIM; u < ROW_SPAN; u++)
            take_row(acc, x + u * DH * ROW_T, wc, u, in, FIRST(u), LAST(u), q);
    }

    #pragma GCC unroll 64
    for (int k = 0; k < KB; k++) {
        #pragma GCC unroll 64
        for (int a = 0; a < RB; a++) {
            #pragma GCC unroll 64
            for (int b = 0; b < NB * CB; b++) {
                int left = LANES_ARE_CHANNELS ? columns - b % CB : columns - b % CB * VW;
                if (a >= rows || left <= 0 || b / CB >= images)
                    continue;
                T *to = y + (long)(b / CB) * Y_N + k * BLOCK_Y_C + a * ROW_STEP * y_row;
#if LANES_ARE_CHANNELS
                store(to + b % CB * y_column, acc[k][a][b]);
#else
                to += b % CB * VW * y_column;
                if (left >= VW && y_column == 1)
                    store(to, acc[k][a][b]);
                else
                    for (int lane = 0; lane < MIN(left, VW); lane++)
                        to[lane * y_column] = acc[k][a][b][lane];
#endif
            }
        }
    }
}

/* The block whose first pixel is (p, q): rows and taps that only meet padding are not computed. */
INLINE struct inside find_inside(int p, int q)
{
    int last = q + (LANES_ARE_CHANNELS ? CB : CB * VW) - 1, before = PL - last * SW, after = W + PL - q * SW;
    return (struct inside){p * SH - PT, before > 0 ? CEIL_DIV(before, DW) : 0,
                           after <= 0 ? 0 : MIN(S, CEIL_DIV(after, DW))};
}
