/* Separable filters: a pass along the rows into a ring of finished rows, and a pass down its columns (see separable.py).
 *
 * A task is a tile of TILE columns of BAND output rows. Its ring holds the RING rows that a block of RB output rows
 * looks at; RB new ones replace the oldest before the next block. Along a row HB vectors are summed at a time; down
 * the columns RB x CB are, so that a vector of the ring serves up to RB sums.
 */
#define RING (R + RB - 1)
#define HB 8
#define STAGE_T (TILE + S - 1 + VW)
#define PACKED_FILTER (R + S)
#define TILES CEIL_DIV(Q, TILE)
#define BANDS CEIL_DIV(P, BAND)
#define TASKS (N * GROUPS * KG * TILES * BANDS)

/* [g][k][c][column of R, row of S]: the lines through the largest tap, the column divided by it (see rows_of). */
void pack(const T *w, T *packed)
{
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < KG; k++)
            for (int c = 0; c < CG; c++, packed += PACKED_FILTER) {
                const T *from = w + W_BASE + (long)g * W_G + (long)k * W_K + (long)c * W_C;
                int top = 0, left = 0;
                T most = 0;
                for (int r = 0; r < R; r++)
                    for (int s = 0; s < S; s++) {
                        T tap = from[r * W_R + s * W_S], size = tap < 0 ? -tap : tap;
                        if (size > most)
                            most = size, top = r, left = s;
                    }
                T peak = from[top * W_R + left * W_S];
                for (int r = 0; r < R; r++)
                    packed[r] = peak == 0 ? 0 : from[r * W_R + left * W_S] / peak;
                for (int s = 0; s < S; s++)
                    packed[R + s] = from[top * W_R + s * W_S];
            }
}

/* The n vectors of a tile's row from column q0 - PL on of image row x, padded; x itself where all of them lie in it. */
INLINE const T *stage_row(T *stage, const T *x, int q0, int n)
{
    int first = q0 - PL, width = n * VW + S - 1;
    if (X_W == 1 && first >= 0 && first + width <= W)
        return x + first;
    int begin = MIN(MAX(-first, 0), width), end = MAX(MIN(W - first, width), begin);
    for (int i = 0; i < begin; i++)
        stage[i] = 0;
    for (int i = begin; i < end; i++)
        stage[i] = x[(long)(first + i) * X_W];
    for (int i = end; i < width; i++)
        stage[i] = 0;
    return stage;
}

/* `count` vectors of sums along a row. */
INLINE void along(T *to, const T *from, const T *row, int count)
{
    vec acc[HB];
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        acc[i] = (vec){0};
    UNROLL_ROW
    for (int s = 0; s < S; s++) {
        vec tap = splat(row[s]);
        #pragma GCC unroll 8
        for (int i = 0; i < count; i++)
            acc[i] += tap * load(from + s + i * VW);
    }
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        *(vec *)(to + i * VW) = acc[i];
}

static void filter_row(T *to, const T *from, const T *row, int n)
{
    int v = 0;
    for (; v + 8 <= n; v += 8)
        along(to + v * VW, from + v * VW, row, 8);
    if (n - v >= 4)
        along(to + v * VW, from + v * VW, row, 4), v += 4;
    if (n - v >= 2)
        along(to + v * VW, from + v * VW, row, 2), v += 2;
    if (n - v)
        along(to + v * VW, from + v * VW, row, 1);
}

/* Ring row u of a block, which is tap u - a of output row a. */
INLINE void take_row(vec acc[RB][CB], const T *x, const T *column, int u, int first, int last, int count)
{
    vec v[CB];
    #pragma GCC unroll 8
    for (int b = 0; b < count; b++)
        v[b] = *(const vec *)(x + b * VW);
    #pragma GCC unroll 16
    for (int a = first; a <= last; a++) {
        vec tap = splat(column[u - a]);
        #pragma GCC unroll 8
        for (int b = 0; b < count; b++)
            acc[a][b] += tap * v[b];
    }
}

#define NEXT(x) x = x + TILE == end ? begin : x + TILE
#define RIM MIN(RB - 1, R)

/* RB x `count` vectors of sums down the columns of ring rows oldest, oldest + 1, ... */
INLINE void down(T *y, const T *ring, const T *packed, int oldest, int rows, int left, int count)
{
    vec acc[RB][CB];
    #pragma GCC unroll 16
    for (int a = 0; a < RB; a++)
        #pragma GCC unroll 8
        for (int b = 0; b < count; b++)
            acc[a][b] = (vec){0};
    for (int c = 0; c < CG; c++) {
        const T *begin = ring + (long)c * RING * TILE, *end = begin + (long)RING * TILE;
        const T *x = begin + (long)oldest * TILE, *column = packed + c * PACKED_FILTER;
        #pragma GCC unroll 16
        for (int u = 0; u < RIM; u++) {
            take_row(acc, x, column, u, 0, u, count);
            NEXT(x);
        }
        #pragma GCC unroll 16
        for (int u = R; u < RB - 1; u++) { /* filters lower than the block */
            take_row(acc, x, column, u, u - R + 1, u, count);
            NEXT(x);
        }
        UNROLL_COLUMN
        for (int u = RB - 1; u < R; u++) {
            take_row(acc, x, column, u, 0, RB - 1, count);
            NEXT(x);
        }
        #pragma GCC unroll 16
        for (int u = MAX(R, RB - 1); u < RING; u++) {
            take_row(acc, x, column, u, u - R + 1, RB - 1, count);
            NEXT(x);
        }
    }
    #pragma GCC unroll 16
    for (int a = 0; a < RB; a++) {
        if (a >= rows)
            break;
        #pragma GCC unroll 8
        for (int b = 0; b < count; b++) {
            T *to = y + (long)a * Y_H + (long)b * VW * Y_W;
            int lanes = MIN(left - b * VW, VW);
            if (Y_W == 1)
                store_first(to, acc[a][b], lanes);
            else
                for (int lane = 0; lane < lanes; lane++)
                    to[(long)lane * Y_W] = acc[a][b][lane];
        }
    }
}

static void one_task(const T *x, const T *packed, T *y, T *ring, int task)
{
    T *stage = ring + (long)CG * RING * TILE;
    int p0 = task % BANDS * BAND, q0 = task / BANDS % TILES * TILE;
    int k = task / BANDS / TILES % KG, g = task / BANDS / TILES / KG % GROUPS, n = task / BANDS / TILES / KG / GROUPS;
    int p_end = MIN(p0 + BAND, P), columns = MIN(TILE, Q - q0), vectors = CEIL_DIV(columns, VW);
    packed += (long)(g * KG + k) * CG * PACKED_FILTER;
    x += (long)n * X_N + (long)g * CG * X_C;
    y += (long)n * Y_N + (long)(g * KG + k) * Y_C + (long)q0 * Y_W;
    int ready = p0; /* the first row of the padded image that is not in the ring yet; row i lies at (i - p0) % RING */
    for (int p = p0; p < p_end; p += RB) {
        int rows = MIN(RB, p_end - p);
        for (; ready < p + rows + R - 1; ready++)
            for (int c = 0; c < CG; c++) {
                T *to = ring + ((long)c * RING + (ready - p0) % RING) * TILE;
                int h = ready - PT;
                if (h < 0 || h >= H) {
                    memset(to, 0, (size_t)vectors * VECTOR_BYTES);
                    continue;
                }
                const T *from = stage_row(stage, x + (long)c * X_C + (long)h * X_H, q0, vectors);
                filter_row(to, from, packed + c * PACKED_FILTER + R, vectors);
            }
        int v = 0, oldest = (p - p0) % RING;
        T *to = y + (long)p * Y_H;
        for (; v + CB <= vectors; v += CB)
            down(to + (long)v * VW * Y_W, ring + v * VW, packed, oldest, rows, columns - v * VW, CB);
        for (; v < vectors; v++)
            down(to + (long)v * VW * Y_W, ring + v * VW, packed, oldest, rows, columns - v * VW, 1);
    }
}

void run(const T *x, const T *packed, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *scratch = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        OMP(for schedule(dynamic))
        for (int task = 0; task < TASKS; task++)
            one_task(x, packed, y, scratch, task);
    }
}
