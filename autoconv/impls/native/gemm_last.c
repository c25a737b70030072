/* Implicit GEMM on channels-last data: lanes lie across the output channels (see gemm.py).
 *
 * Filters are packed [block of NV vectors of filters][tap][channel][filter]; the input's scalars are broadcast from
 * where they lie, or from rows staged with their padding. Neighbouring taps of a row make one run of products. CHUNKs
 * of runs keep the filters of a block in the first-level cache; between chunks the sums rest in the output. A task takes
 * one block of filters after the other, chunk by chunk, or where filters outweigh its pixels (CHUNKS_FIRST) one chunk
 * after the other, block by block, so that filters and input are both read from afar only once.
 * A PASS is one phase of a strided gradient's output; everything else has a single one.
 */
#define NK (NV * VW)
#define EVEN_OUT (OSW * Y_W)

struct pass { int first_chunk, chunks, steps; long filters; int start[3], count[3]; };
struct chunk { int first_run, runs, first_step, steps; };
struct run { int offset, length; };
static const struct run RUN[] = {RUNS};
static const struct chunk CHUNK[] = {CHUNKS};
static const struct pass PASS[] = {PASS_TABLE};

/* MP pixels (those beyond `pixels` are copies of the last, not stored) times nv vectors of filters; `even` ones lie
 * EVEN apart in x and EVEN_OUT in y, others where at[] and to[] say. */
INLINE void multiply(const T *b, const T *x, const long *at, T *y, const long *to, const struct chunk *chunk, int more,
                     int pixels, int filters, const int nv, const int even)
{
    vec acc[MP][NV];
    _Pragma("GCC unroll 32")
    for (int m = 0; m < MP; m++)
        _Pragma("GCC unroll 8")
        for (int v = 0; v < nv; v++)
            acc[m][v] = more && m < pixels ? load_first(y + (even ? m * EVEN_OUT : to[m]) + v * VW,
                                                        MIN(VW, filters - v * VW)) : (vec){0};
    for (const struct run *run = RUN + chunk->first_run; run < RUN + chunk->first_run + chunk->runs; run++) {
        multiply_run(acc, b, nv * VW, x + run->offset, at, run->length, nv, even);
        b += (long)run->length * nv * VW;
    }
    _Pragma("GCC unroll 32")
    for (int m = 0; m < MP; m++)
        if (m < pixels)
            _Pragma("GCC unroll 8")
            for (int v = 0; v < nv; v++)
                store_first(y + (even ? m * EVEN_OUT : to[m]) + v * VW, acc[m][v], MIN(VW, filters - v * VW));
}

static void multiply_even(const T *b, const T *x, T *y, const struct chunk *chunk, int more)
{
    multiply(b, x, NULL, y, NULL, chunk, more, MP, NK, NV, 1);
}
static void multiply_any(const T *b, const T *x, const long *at, T *y, const long *to, const struct chunk *chunk,
                         int more, int pixels)
{
    multiply(b, x, at, y, to, chunk, more, pixels, NK, NV, 0);
}
#if K_REST < NK
static void multiply_rest_even(const T *b, const T *x, T *y, const struct chunk *chunk, int more)
{
    multiply(b, x, NULL, y, NULL, chunk, more, MP, K_REST, CEIL_DIV(K_REST, VW), 1);
}
static void multiply_rest(const T *b, const T *x, const long *at, T *y, const long *to, const struct chunk *chunk,
                          int more, int pixels)
{
    multiply(b, x, at, y, to, chunk, more, pixels, K_REST, CEIL_DIV(K_REST, VW), 0);
}
#else /* every block is whole */
#define multiply_rest_even multiply_even
#define multiply_rest multiply_any
#endif

/* [pass][group][block of filters][tap][channel][filter]; the last block has whole vectors, filled up with zeros. */
void pack(const T *w, T *packed)
{
    static const int tap[] = {TAP_INDEX}, taps[] = {TAPS};
    OMP(parallel for num_threads(autoconv_threads) collapse(2) schedule(dynamic))
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < KG; k += NK)
            for (int p = 0, first = 0; p < PASSES; first += taps[p++]) {
                int width = MIN(NK, ROUND_UP(KG - k, VW));
                T *to = packed + PASS[p].filters + ((long)g * ROUND_UP(KG, VW) + k) * CG * taps[p];
                for (int t = first; t < first + taps[p]; t++)
                    for (int c = 0; c < CG; c++)
                        for (int i = 0; i < width; i++)
                            *to++ = k + i < KG ? w[g * W_G + (k + i) * W_K + c * W_C + tap[t]] : 0;
            }
}

#define IMAGE_BLOCKS CEIL_DIV(N, IMAGES)
#define ROW_BLOCKS CEIL_DIV(P, ROWS)
#define FILTER_BLOCKS CEIL_DIV(KG, FILTERS)

static void one_pass(const struct pass *pass, const T *x, const T *filters, T *y, int images, int rows, int k0, int k1)
{
    int width = pass->count[2], pixels = images * rows * width, blocks = CEIL_DIV(k1 - k0, NK);
    for (int block = 0; block < blocks * pass->chunks; block++) {
        int c = CHUNKS_FIRST ? block / blocks : block % pass->chunks;
        int k = k0 + (CHUNKS_FIRST ? block % blocks : block / pass->chunks) * NK, whole = KG - k >= NK;
        const struct chunk *chunk = CHUNK + pass->first_chunk + c;
        const T *b = filters + (long)k * pass->steps + (long)chunk->first_step * (whole ? NK : ROUND_UP(K_REST, VW));
        int image = 0, i = 0, j = 0;
        for (int first = 0; first < pixels; first += MP) {
            int here = MIN(MP, pixels - first);
            if (j + MP <= width && here == MP) {
                (whole ? multiply_even : multiply_rest_even)(
                    b, x + image * IN_IMAGE + i * IN_ROW + j * IN_COLUMN,
                    y + image * Y_N + i * (OSH * Y_H) + j * (OSW * Y_W) + k, chunk, c > 0);
                j += MP;
                if (j == width) {
                    j = 0;
                    if (++i == rows) {
                        i = 0;
                        image++;
                    }
                }
                continue;
            }
            long at[MP], to[MP];
            for (int m = 0; m < MP; m++) {
                at[m] = image * IN_IMAGE + i * IN_ROW + j * IN_COLUMN;
                to[m] = image * Y_N + i * (OSH * Y_H) + j * (OSW * Y_W) + k;
                if (m < here - 1 || here == MP)
                    if (++j == width) {
                        j = 0;
                        if (++i == rows) {
                            i = 0;
                            image++;
                        }
                    }
            }
            (whole ? multiply_any : multiply_rest)(b, x, at, y, to, chunk, c > 0, here);
        }
    }
    for (int first = 0; pass->chunks == 0 && first < pixels; first++) { /* a phase that no tap meets */
        T *to = y + first / (rows * width) * Y_N + first / width % rows * (OSH * Y_H) + first % width * (OSW * Y_W);
        memset(to + k0, 0, (MIN(k1, KG) - k0) * sizeof(T));
    }
}

void run(const T *x, const T *packed, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *staged = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        int held = -1; /* what this thread's scratch holds: tasks that differ by their filters only share it */
        (void)staged, (void)held;
        OMP(for schedule(dynamic))
        for (int task = 0; task < IMAGE_BLOCKS * GROUPS * Z * ROW_BLOCKS * FILTER_BLOCKS; task++) {
            int k0 = task % FILTER_BLOCKS * FILTERS, where = task / FILTER_BLOCKS;
            int i0 = where % ROW_BLOCKS * ROWS, z = where / ROW_BLOCKS % Z, g = where / ROW_BLOCKS / Z % GROUPS;
            int n = where / ROW_BLOCKS / Z / GROUPS * IMAGES, images = MIN(IMAGES, N - n);
            const T *from = x + (long)n * X_N + (long)g * CG;
#if STAGED
            if (held != where)
                for (int row = 0; row < images * DEPTH_TAPS * STAGE_H; row++)
                    stage_row(staged + (long)row * STAGE_W * CG, from, row, z, i0);
            held = where;
            from = staged;
#else
            from += z * ISD * X_D + i0 * ISH * X_H;
#endif
            for (const struct pass *pass = PASS; pass < PASS + PASSES; pass++) {
                int rows = MIN(ROWS, pass->count[1] - i0);
                if (z >= pass->count[0] || rows <= 0 || pass->count[2] <= 0)
                    continue;
                T *to = y + (long)n * Y_N + (long)g * KG + (pass->start[0] + z * OSD) * Y_D
                        + (pass->start[1] + i0 * OSH) * Y_H + pass->start[2] * Y_W;
                one_pass(pass, from, packed + pass->filters + (long)g * ROUND_UP(KG, VW) * pass->steps, to, images,
                         rows, k0, MIN(k0 + FILTERS, KG));
            }
        }
    }
}
