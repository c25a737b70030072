/* Implicit GEMM on channels-first data: lanes lie along the output pixels (see gemm.py).
 *
 * A task is some rows of output pixels of one group, and a range of its filters. Its input is staged in scratch with
 * its padding, split into the phases of the stride, so that tap t of pixel i is found at OFFSET[t] + i whatever the
 * stride. With PANELS the patches of NR pixels are then packed, [channel][tap][pixel], as a matrix product would;
 * without, the kernel reads the staged rows in place, and computes (but does not write) the columns between rows.
 * Filters come packed [block of MR filters][channel][tap][MR]. MR x NV vectors of sums stay in registers.
 *
 * A PASS is one phase of a strided gradient's output; everything else has a single one.
 */
#define NR (NV * VW)

struct pass { int first_tap, taps; long filters; int start[3], count[3]; };
static const int OFFSET[] = {OFFSETS};
static const struct pass PASS[] = {PASS_TABLE};
#define PANEL_T ((long)NR * CHANNEL_BLOCK * MAX_TAPS + VW) /* a vector of room for the last row's overshoot */
#define MAX_RUNS (NR + 1)
struct run { int from, length; long to; };

/* mr x nv vectors of sums over `channels` channels; c (row distance ldc) is added to where `more` says so. */
INLINE void multiply(const T *a, const T *b, const int *offset, int channels, int taps, T *c, long ldc, int more,
                     const int mr, const int nv)
{
    vec acc[MR][NV];
    _Pragma("GCC unroll 32")
    for (int i = 0; i < mr; i++)
        _Pragma("GCC unroll 8")
        for (int j = 0; j < nv; j++)
            acc[i][j] = more ? load(c + i * ldc + j * VW) : (vec){0};
#if PANELS
    for (int step = 0; step < channels * taps; step++, a += mr, b += NR) {
        const T *at = b;
#else
    for (int channel = 0; channel < channels; channel++, b += CHANNEL_T)
        for (int t = 0; t < taps; t++, a += mr) {
            const T *at = b + offset[t];
#endif
            vec pixels[NV];
            _Pragma("GCC unroll 8")
            for (int j = 0; j < nv; j++)
                pixels[j] = load(at + j * VW);
            _Pragma("GCC unroll 32")
            for (int i = 0; i < mr; i++) {
                vec filter = splat(a[i]);
                _Pragma("GCC unroll 8")
                for (int j = 0; j < nv; j++)
                    acc[i][j] += filter * pixels[j];
            }
        }
    _Pragma("GCC unroll 32")
    for (int i = 0; i < mr; i++)
        _Pragma("GCC unroll 8")
        for (int j = 0; j < nv; j++)
            store(c + i * ldc + j * VW, acc[i][j]);
}

static void multiply_full(const T *a, const T *b, const int *offset, int channels, int taps, T *c, long ldc, int more,
                          int vectors)
{
    if (vectors == NV)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR, NV);
#if NV > 1
    else if (vectors == NV - 1)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR, NV - 1);
#endif
#if NV > 2
    else if (vectors == NV - 2)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR, NV - 2);
#endif
#if NV > 3
    else
        multiply(a, b, offset, channels, taps, c, ldc, more, MR, NV - 3);
#endif
}
static void multiply_rest(const T *a, const T *b, const int *offset, int channels, int taps, T *c, long ldc, int more,
                          int vectors)
{
    if (vectors == NV)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR_REST, NV);
#if NV > 1
    else if (vectors == NV - 1)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR_REST, NV - 1);
#endif
#if NV > 2
    else if (vectors == NV - 2)
        multiply(a, b, offset, channels, taps, c, ldc, more, MR_REST, NV - 2);
#endif
#if NV > 3
    else
        multiply(a, b, offset, channels, taps, c, ldc, more, MR_REST, NV - 3);
#endif
}

/* Runs of neighbouring pixels in the block of `pixels` from `first` on, where rows are `pitch` apart, images
 * `image_rows` rows, and only `width` columns and `rows` rows of them real; `to` tells where they are in y or the input. */
INLINE int find_runs(struct run *runs, int first, int pixels, int pitch, int image_rows, int rows, int width,
                     long image_step, long row_step, long column_step)
{
    int count = 0, row = first / pitch, column = first % pitch;
    for (int at = 0; at < pixels; row++, column = 0) {
        int image = row / image_rows, i = row % image_rows;
        int length = i < rows ? MIN(width - column, pixels - at) : 0;
        if (length > 0) {
            long to = image * image_step + i * row_step + column * column_step;
            if (count && runs[count - 1].from + runs[count - 1].length == at
                && runs[count - 1].to + runs[count - 1].length * column_step == to)
                runs[count - 1].length += length;
            else
                runs[count++] = (struct run){at, length, to};
        }
        at += pitch - column;
    }
    return count;
}

#if PANELS
/* The patches of a group of panels, NR pixels for each channel and tap. Panels take turns inside, so that the input is
 * read in long stretches, which the hardware then fetches ahead. */
static void pack_panels(T *panels, const T *b, const T *b_end, const struct run *runs, int count, const int *offset,
                        int channels, int taps)
{
    for (int c = 0; c < channels; c++)
        for (int t = 0; t < taps; t++)
            for (const struct run *run = runs; run < runs + count; run++) {
                const T *from = b + c * CHANNEL_T + offset[t] + run->to;
                for (int i = 0, at = run->from; i < run->length; ) {
                    int length = MIN(run->length - i, NR - at % NR);
                    T *to = panels + at / NR * PANEL_T + (c * taps + t) * NR + at % NR;
                    int j = 0; /* whole vectors: what is too much the next run, or row, overwrites */
                    for (; j < length && (STAGED || from + i + j + VW <= b_end); j += VW)
                        store(to + j, load(from + i + j));
                    for (; j < length; j++)
                        to[j] = from[i + j];
                    i += length;
                    at += length;
                }
            }
}
#endif

static void write_out(T *y, const T *tile, long ld, const struct run *runs, int count, int filters)
{
    for (int k = 0; k < filters; k++)
        for (const struct run *run = runs; run < runs + count; run++) {
            T *to = y + k * Y_C + run->to;
            const T *from = tile + k * ld + run->from;
            int i = 0;
            if (OSW * Y_W == 1)
                for (; i + VW <= run->length; i += VW)
                    store(to + i, load(from + i));
            for (; i < run->length; i++)
                to[i * (OSW * Y_W)] = from[i];
        }
}

/* One pass over the staged input: filters k0..k1 of a group, `rows` output rows of each of `images` images. */
static void one_pass(const struct pass *pass, const T *input, const T *input_end, const T *filters, T *y, T *panels,
                     T *sums, int images, int rows, int k0, int k1)
{
    int width = pass->count[2], pitch = PANELS ? width : WQ, image_rows = PANELS ? rows : HQ;
    int pixels = PANELS ? images * rows * width : ((images - 1) * HQ + rows - 1) * WQ + width;
    const int *offset = OFFSET + pass->first_tap;
    T tile[MR * NR] __attribute__((aligned(64)));
    struct run runs[MAX_RUNS];
    for (int group = 0; group < pixels; group += PANEL_GROUP * NR)
        for (int c0 = 0; c0 < CG; c0 += CHANNEL_BLOCK) {
            int channels = MIN(CG - c0, CHANNEL_BLOCK), last = c0 + channels == CG;
            int group_end = MIN(pixels, group + PANEL_GROUP * NR);
#if PANELS
            struct run stretches[PANEL_GROUP * NR + 1];
            int stretch_count = find_runs(stretches, group, group_end - group, pitch, image_rows, rows, width,
                                          INPUT_IMAGE, INPUT_ROW, 1);
            pack_panels(panels, input + (long)c0 * CHANNEL_T, input_end, stretches, stretch_count, offset, channels,
                        pass->taps);
#endif
            int blocks = CEIL_DIV(k1 - k0, MR), panels_here = CEIL_DIV(group_end - group, NR);
            for (int i = 0; i < blocks * panels_here; i++) {
                int k = k0 + (FILTERS_INSIDE ? i % blocks : i / panels_here) * MR, mr = MIN(MR, k1 - k);
                int first = group + (FILTERS_INSIDE ? i / blocks : i % panels_here) * NR;
                int here = MIN(NR, pixels - first), vectors = CEIL_DIV(here, VW), count = 0, straight = 0;
                const T *a = filters + (long)k * CG * pass->taps + (long)c0 * mr * pass->taps;
                const T *b = PANELS ? panels + (long)(first - group) / NR * PANEL_T
                                    : input + (long)c0 * CHANNEL_T + first;
                T *c = CHANNEL_BLOCK < CG ? sums + (long)(k - k0) * (PANEL_GROUP * NR) + (first - group) : tile;
                long ldc = CHANNEL_BLOCK < CG ? PANEL_GROUP * NR : NR;
                if (last) {
                    count = find_runs(runs, first, here, pitch, image_rows, rows, width, Y_N, OSH * Y_H, OSW * Y_W);
                    straight = CHANNEL_BLOCK >= CG && OSW * Y_W == 1 && count == 1 && runs[0].length == NR;
                }
                if (straight) { /* to its place, without the tile */
                    c = y + (long)k * Y_C + runs[0].to;
                    ldc = Y_C;
                }
                (mr == MR ? multiply_full : multiply_rest)(a, b, offset, channels, pass->taps, c, ldc, c0 > 0,
                                                           vectors);
                if (last && !straight)
                    write_out(y + (long)k * Y_C, c, ldc, runs, count, mr);
            }
        }
}

/* [pass][group][block of MR filters][channel][tap][filter] */
void pack(const T *w, T *packed)
{
    static const int tap[] = {TAP_INDEX}; /* of the filters, for every tap of every pass */
    OMP(parallel for num_threads(autoconv_threads) collapse(2) schedule(dynamic))
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < KG; k += MR)
            for (int p = 0; p < PASSES; p++) {
                int mr = MIN(MR, KG - k), taps = PASS[p].taps;
                T *to = packed + PASS[p].filters + ((long)g * KG + k) * CG * taps;
                for (int c = 0; c < CG; c++)
                    for (int t = 0; t < taps; t++)
                        for (int i = 0; i < mr; i++)
                            *to++ = w[(long)g * W_G + (long)(k + i) * W_K + (long)c * W_C + tap[PASS[p].first_tap + t]];
            }
}

#define IMAGE_BLOCKS CEIL_DIV(N, IMAGES)
#define ROW_BLOCKS CEIL_DIV(P, ROWS)
#define FILTER_BLOCKS CEIL_DIV(KG, FILTERS)

void run(const T *x, const T *packed, T *y, char *workspace)
{
    OMP(parallel num_threads(autoconv_threads))
    {
        T *staged = (T *)(workspace + thread_number() * SCRATCH_BYTES);
        T *panels = staged + STAGE_T, *sums = panels + PANELS_T;
        int held = -1; /* what this thread's scratch holds: tasks that differ by their filters only share it */
        (void)held;
        OMP(for schedule(dynamic))
        for (int task = 0; task < IMAGE_BLOCKS * GROUPS * Z * ROW_BLOCKS * FILTER_BLOCKS; task++) {
            int k0 = task % FILTER_BLOCKS * FILTERS, where = task / FILTER_BLOCKS;
            int i0 = where % ROW_BLOCKS * ROWS, z = where / ROW_BLOCKS % Z, g = where / ROW_BLOCKS / Z % GROUPS;
            int n = where / ROW_BLOCKS / Z / GROUPS * IMAGES, images = MIN(IMAGES, N - n);
            const T *from = x + (long)n * X_N + (long)g * CG * X_C, *input = staged;
            if (!STAGED)
                input = from + (long)z * ISD * X_D + (long)i0 * ISH * X_H;
#if STAGED
            else if (held != where)
                for (int c = 0; c < CG; c++)
                    stage_channel(staged + (long)c * CHANNEL_T, from + (long)c * X_C, images, z, i0);
#endif
            held = where;
            for (const struct pass *pass = PASS; pass < PASS + PASSES; pass++) {
                int rows = MIN(ROWS, pass->count[1] - i0);
                if (z >= pass->count[0] || rows <= 0 || pass->count[2] <= 0)
                    continue;
                T *to = y + (long)n * Y_N + (long)g * KG * Y_C + (long)(pass->start[0] + z * OSD) * Y_D
                        + (long)(pass->start[1] + i0 * OSH) * Y_H + (long)pass->start[2] * Y_W;
                one_pass(pass, input, x + X_SIZE, packed + pass->filters + (long)g * KG * CG * pass->taps, to, panels,
                         sums, images, rows, k0, MIN(k0 + FILTERS, KG));
            }
        }
    }
}
