/* Large filters cut into PARTS x PARTS interleaved ones (polyphase parts), of which Toom and Cook's transform
 * computes only J x J products, J = 2 * PARTS - 1, instead of PARTS^2 x PARTS^2 pairs of parts: every product is the
 * sliding window (window.c) of a transformed image, PARTS times smaller each way, by a transformed filter part.
 *
 * y[M i + a] = sum over b of part b of the filter on X[a + b], X[t][i] = x[M i + t]: along each axis that is the
 * F(M, M) of Winograd's filters with images in place of numbers.
 */
#define M PARTS
#define J (2 * M - 1)
static const T DATA[J][J] = {DATA_MATRIX}, FILTER[J][M] = {FILTER_MATRIX}, INVERSE[M][J] = {INVERSE_MATRIX};

#define INNER_H (STRIP / M)           /* rows of every product's result in a task */
#define SPREAD_H (STAGE_H)            /* rows of a transformed image */
#define PHASE_W (STAGE_W + 2 * VW)    /* columns of one phase of a staged row: parts reach one further */
#define ROW_IN (M * PHASE_W)
#define RESULT_T (INNER_H * RESULT_W)

/* [group][product][filter][channel][tap]: taps beyond the filter are zero. */
void pack(const T *w, T *packed)
{
    OMP(parallel for num_threads(autoconv_threads) collapse(2) schedule(static))
    for (int g = 0; g < GROUPS; g++)
        for (int j = 0; j < J * J; j++)
            for (int kc = 0; kc < KG * CG; kc++) {
                const T *from = w + W_BASE + g * FULL_W_G + kc / CG * FULL_W_K + kc % CG * FULL_W_C;
                T *to = packed + (((long)g * J * J + j) * KG * CG + kc) * R * S;
                for (int r = 0; r < R; r++)
                    for (int s = 0; s < S; s++, to++) {
                        *to = 0;
                        for (int a = 0; a < M && M * r + a < FULL_R; a++)
                            for (int b = 0; b < M && M * s + b < FULL_S; b++)
                                *to += FILTER[j / J][a] * FILTER[j % J][b]
                                       * from[(M * r + a) * FULL_W_R + (M * s + b) * FULL_W_S];
                    }
            }
}

/* One input row with its padding, split into M phases. */
static void stage_row(T *to, const T *x)
{
    for (int phase = 0; phase < M; phase++, to += PHASE_W) {
        int begin = MIN(CEIL_DIV(MAX(PL - phase, 0), M), PHASE_W);
        int end = MIN(CEIL_DIV(MAX(W + PL - phase, 0), M), PHASE_W);
        if (!x || end <= begin)
            begin = end = PHASE_W;
        for (int i = 0; i < begin; i++)
            to[i] = 0;
        for (int i = begin; i < end; i++)
            to[i] = x[(i * M + phase - PL) * X_W];
        for (int i = end; i < PHASE_W; i++)
            to[i] = 0;
    }
}

/* to[i] = sum over n of c[n] * from[n][i] */
static __attribute__((noinline)) void combine(T *to, const T *const *from, const T *c, long length)
{
    for (long i = 0; i < length; i += VW) {
        vec sum = {0};
        _Pragma("GCC unroll 8")
        for (int n = 0; n < J; n++)
            sum += splat(c[n]) * load(from[n] + i);
        store(to + i, sum);
    }
}

/* to[i] += c * from[i] */
static __attribute__((noinline)) void accumulate(T *to, const T *from, T c, long length)
{
    if (c != 0)
        for (long i = 0; i < length; i += VW)
            store(to + i, load(to + i) + splat(c) * load(from + i));
}

/* The sums of products of one pair of transforms, for all filters of a group. */
static __attribute__((noinline)) void products(const T *image, const T *filters, T *result)
{
    for (int p = 0; p < INNER_H; p += RB)
        for (int k = 0; k < KG; k += KB)
            for (int q = 0; q < RESULT_W; q += CB * VW)
                block(image + (long)p * ROW_T + q, filters + k * W_K, result + (long)k * RESULT_T + p * RESULT_W + q,
                      RESULT_W, 1, (struct inside){0, 0, S}, 1, INNER_H - p, RESULT_W - q, -1);
}

#define STRIPS CEIL_DIV(P, STRIP)

static void one_task(const T *x, const T *w, T *y, T *scratch, int task)
{
    int p0 = task % STRIPS * STRIP, g = task / STRIPS % GROUPS, n = task / STRIPS / GROUPS;
    int rows_in = M * (SPREAD_H - 1) + J;
    T *staged = scratch, *tall = staged + (long)CG * rows_in * ROW_IN;   /* input; transformed along the height */
    T *image = tall + (long)CG * SPREAD_H * ROW_IN;                     /* and along the width */
    T *result = image + (long)IMAGE_T + 2 * VW;                         /* of one product */
    T *wide = result + (long)KG * RESULT_T;                             /* inverse along the width */
    T *sums = wide + (long)M * KG * RESULT_T;                           /* and along the height */

    for (int c = 0; c < CG; c++)
        for (int i = 0; i < rows_in; i++) {
            int h = p0 - PT + i;
            stage_row(staged + ((long)c * rows_in + i) * ROW_IN,
                      h < 0 || h >= H ? 0 : x + n * X_N + (g * CG + c) * X_C + h * X_H);
        }
    memset(sums, 0, sizeof(T) * M * M * KG * RESULT_T);
    for (int j = 0; j < J; j++) {
        for (int ci = 0; ci < CG * SPREAD_H; ci++) {
            const T *from[J];
            for (int t = 0; t < J; t++)
                from[t] = staged + ((long)(ci / SPREAD_H) * rows_in + M * (ci % SPREAD_H) + t) * ROW_IN;
            combine(tall + (long)ci * ROW_IN, from, DATA[j], ROW_IN);
        }
        memset(wide, 0, sizeof(T) * M * KG * RESULT_T);
        for (int i = 0; i < J; i++) {
            for (int ci = 0; ci < CG * SPREAD_H; ci++) {
                const T *from[J];
                for (int t = 0; t < J; t++)
                    from[t] = tall + (long)ci * ROW_IN + t % M * PHASE_W + t / M;
                combine(image + (long)ci * ROW_T, from, DATA[i], STAGE_W);
            }
            const T *filters = w + ((long)g * J * J + j * J + i) * KG * CG * R * S;
            products(image, filters, result);
            for (int a = 0; a < M; a++)
                accumulate(wide + (long)a * KG * RESULT_T, result, INVERSE[a][i], KG * RESULT_T);
        }
        for (int a = 0; a < M; a++)
            accumulate(sums + (long)a * M * KG * RESULT_T, wide, INVERSE[a][j], (long)M * KG * RESULT_T);
    }

    for (int k = 0; k < KG; k++)
        for (int p = 0; p < MIN(STRIP, P - p0); p++) {
            T *to = y + n * Y_N + (g * KG + k) * Y_C + (p0 + p) * Y_H;
            const T *from = sums + (long)(p % M) * M * KG * RESULT_T + (long)k * RESULT_T + p / M * RESULT_W;
            for (int q = 0; q < FULL_Q / M; q++)
                for (int a = 0; a < M; a++)
                    to[(M * q + a) * Y_W] = from[a * (KG * RESULT_T) + q];
            for (int q = FULL_Q / M * M; q < FULL_Q; q++)
                to[q * Y_W] = from[q % M * (KG * RESULT_T) + q / M];
        }
}

void run(const T *x, const T *w, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *scratch = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        OMP(for schedule(dynamic))
        for (int task = 0; task < STRIPS * GROUPS * N; task++)
            one_task(x, w, y, scratch, task);
    }
}
