/* Convolution with the images innermost: a vector holds the same pixel of VW images.
 *
 * Data is brought into blocks [image block][channel][row][column][image], IMAGES = IB * VW images a block, with a rim of
 * zeros around each plane and zeros for images that do not exist. No tap then needs a test, and every load is whole.
 * Arrays that lie like that already (images last, no rim, whole blocks) are used where they are: *_STAGED is 0.
 *
 * Constants: N images, A_CHANNELS of A_H x A_W pixels come in and lie AT (row and column) in planes of SIDE_H x SIDE_W,
 * OUT_CHANNELS of OUT_H x OUT_W go out, R x R taps, STRIDE, PAD; *_N, *_C, *_H, *_W are strides of arrays in elements.
 */
#define IMAGES (IB * VW)
#define BLOCKS CEIL_DIV(N, IMAGES)
#define TAPS (R * R)

/* to[j][i] = from[i][j] for `rows` x `columns` elements of `from`; rows beyond read as zero, and the first `written`
 * elements of each row of `to` are stored. */
static void copy_transposed(T *to, long to_step, const T *from, long from_step, int rows, int columns, int written)
{
    for (int i = 0; i < written; i += VW)
        for (int j = 0; j < columns; j += VW) {
            vec tile[VW];
            for (int k = 0; k < VW; k++)
                tile[k] = i + k < rows ? load_first(from + (i + k) * from_step + j, columns - j) : (vec){0};
            transpose(tile);
            for (int k = 0; k < MIN(VW, columns - j); k++)
                store_first(to + (j + k) * to_step + i, tile[k], written - i);
        }
}

/* One row of one block: `to` is its first channel's row, in planes of side_h x side_w pixels with the data AT `at`. */
static void stage_row(T *to, const T *from, long n, long c, long w, int images, int channels, int width,
                      int at, int side_w, long plane)
{
    for (int k = 0; k < channels; k++) {
        memset(to + k * plane, 0, sizeof(T) * IMAGES * at);
        memset(to + k * plane + (long)(at + width) * IMAGES, 0, sizeof(T) * IMAGES * (side_w - at - width));
    }
    to += (long)at * IMAGES;
    if (n == 1)
        for (int k = 0; k < channels; k++)
            for (int q = 0; q < width; q++) {
                T *pixel = to + k * plane + (long)q * IMAGES;
                memcpy(pixel, from + k * c + q * w, sizeof(T) * images);
                memset(pixel + images, 0, sizeof(T) * (IMAGES - images));
            }
    else if (w == 1)
        for (int k = 0; k < channels; k++)
            copy_transposed(to + k * plane, IMAGES, from + k * c, n, images, width, IMAGES);
    else /* channels are neighbours */
        for (int q = 0; q < width; q++)
            copy_transposed(to + (long)q * IMAGES, plane, from + q * w, n, images, channels, IMAGES);
}

/* The whole of an array; to be called by every thread of a parallel region. */
static void stage(T *to, const T *from, long n, long c, long h, long w, int channels, int height, int width,
                  int at, int side_h, int side_w)
{
    const long row = (long)side_w * IMAGES, plane = side_h * row;
    OMP(for collapse(2) schedule(static))
    for (int block = 0; block < BLOCKS; block++)
        for (int i = 0; i < side_h; i++) {
            T *target = to + (long)block * channels * plane + i * row;
            if (i >= at && i < at + height)
                stage_row(target, from + (long)block * IMAGES * n + (i - at) * h, n, c, w,
                          MIN(IMAGES, N - block * IMAGES), channels, width, at, side_w, plane);
            else
                for (int k = 0; k < channels; k++)
                    memset(target + k * plane, 0, sizeof(T) * row);
        }
}

/* From one pixel to the next, to the next row, channel and block of images. */
#define A_PIXEL ((long)(A_STAGED ? IMAGES : N))
#define A_ROW (SIDE_W * A_PIXEL)
#define A_PLANE (SIDE_H * A_ROW)
#define A_BLOCK (A_STAGED ? A_CHANNELS * A_PLANE : IMAGES)

#if !WGRAD

/* [block of OB output channels][input channel][tap][output channel]; channels that do not exist are zero. */
void pack(const T *w, T *packed)
{
    OMP(parallel for num_threads(autoconv_threads) schedule(static))
    for (int o = 0; o < CEIL_DIV(OUT_CHANNELS, OB) * OB; o++)
        for (int i = 0; i < A_CHANNELS; i++)
            for (int t = 0; t < TAPS; t++)
                packed[(((long)(o / OB) * A_CHANNELS + i) * TAPS + t) * OB + o % OB] =
                    o < OUT_CHANNELS ? w[o * W_OUT + i * W_IN + (FLIP ? TAPS - 1 - t : t)] : 0;
}

/* Taps that reach output pixel o: FIRST(o), then every STEP-th; tap t takes the staged pixel SOURCE(o, t). */
#if DGRAD
#define STEP STRIDE
#define FIRST(o) (((o) + PAD) % STRIDE)
#define SOURCE(o, t) (((o) + PAD - (t)) / STRIDE + AT)
#else
#define STEP 1
#define FIRST(o) 0
#define SOURCE(o, t) ((o) * STRIDE + (t)) /* AT is PAD */
#endif

/* `channels` of OB channels of one row of a block of images into row[channel][column][image]. */
static void output_row(T *row, long row_channel, long row_pixel, int channels, const T *a, const T *w, int p)
{
    for (int q = 0; q < OUT_W; q++) {
        vec sum[OB][IB];
        for (int o = 0; o < OB; o++)
            for (int i = 0; i < IB; i++)
                sum[o][i] = (vec){0};
        for (int c = 0; c < A_CHANNELS; c++)
            for (int r = FIRST(p); r < R; r += STEP)
                for (int s = FIRST(q); s < R; s += STEP) {
                    const T *pixel = a + c * A_PLANE + SOURCE(p, r) * A_ROW + SOURCE(q, s) * A_PIXEL;
                    const T *taps = w + ((long)c * TAPS + r * R + s) * OB;
                    vec x[IB];
                    for (int i = 0; i < IB; i++)
                        x[i] = load(pixel + i * VW);
                    for (int o = 0; o < OB; o++)
                        for (int i = 0; i < IB; i++)
                            sum[o][i] += taps[o] * x[i];
                }
        for (int o = 0; o < OB; o++)
            if (o < channels)
                for (int i = 0; i < IB; i++)
                    store(row + o * row_channel + q * row_pixel + i * VW, sum[o][i]);
    }
}

void run(const T *a, const T *packed, T *out, char *workspace)
{
    T *staged = (T *)workspace;
    const T *data = A_STAGED ? staged : a;
    OMP(parallel num_threads(autoconv_threads))
    {
        T *row = (T *)(workspace + STAGED_BYTES + thread_number() * THREAD_BYTES);
        if (A_STAGED)
            stage(staged, a, A_N, A_C, A_STEP_H, A_STEP_W, A_CHANNELS, A_H, A_W, AT, SIDE_H, SIDE_W);
        OMP(for collapse(3) schedule(dynamic))
        for (int block = 0; block < BLOCKS; block++)
            for (int o = 0; o < OUT_CHANNELS; o += OB)
                for (int p = 0; p < OUT_H; p++) {
                    const int images = MIN(IMAGES, N - block * IMAGES), channels = MIN(OB, OUT_CHANNELS - o);
                    const T *from = data + block * A_BLOCK, *taps = packed + (long)o * A_CHANNELS * TAPS;
                    T *to = out + (long)block * IMAGES * OUT_N + o * OUT_C + p * OUT_STEP_H;
                    if (!OUT_STAGED) {
                        output_row(to, OUT_C, OUT_STEP_W, channels, from, taps, p);
                        continue;
                    }
                    output_row(row, (long)OUT_W * IMAGES, IMAGES, OB, from, taps, p);
                    if (OUT_N == 1)
                        for (int k = 0; k < channels; k++)
                            for (int q = 0; q < OUT_W; q++)
                                memcpy(to + k * OUT_C + q * OUT_STEP_W, row + ((long)k * OUT_W + q) * IMAGES,
                                       sizeof(T) * images);
                    else if (OUT_STEP_W == 1)
                        for (int k = 0; k < channels; k++)
                            copy_transposed(to + k * OUT_C, OUT_N, row + (long)k * OUT_W * IMAGES, IMAGES,
                                            OUT_W, images, OUT_W);
                    else
                        for (int q = 0; q < OUT_W; q++)
                            copy_transposed(to + q * OUT_STEP_W, OUT_N, row + (long)q * IMAGES, (long)OUT_W * IMAGES,
                                            channels, images, channels);
                }
    }
}

#else

#define B_PIXEL ((long)(B_STAGED ? IMAGES : N))
#define B_PLANE (B_H * B_W * B_PIXEL)
#define B_BLOCK (B_STAGED ? B_CHANNELS * B_PLANE : IMAGES)

/* OB filters times CB channels, every tap: sums of one output row over all its pixels are added to sums[tap]. */
static void add_row(vec (*sums)[OB][CB], const T *x, const T *dy, int p)
{
    for (int r = 0; r < R; r++)
        for (int s = 0; s < R; s++) {
            const T *pixels = x + (p * STRIDE + r) * A_ROW + s * A_PIXEL, *grads = dy + p * B_W * B_PIXEL;
            vec sum[OB][CB];
            for (int o = 0; o < OB; o++)
                for (int c = 0; c < CB; c++)
                    sum[o][c] = sums[r * R + s][o][c];
            for (int q = 0; q < B_W; q++)
                for (int i = 0; i < IB; i++) {
                    vec g[OB];
                    for (int o = 0; o < OB; o++)
                        g[o] = load(grads + o * B_PLANE + q * B_PIXEL + i * VW);
                    for (int c = 0; c < CB; c++) {
                        const vec pixel = load(pixels + c * A_PLANE + q * STRIDE * A_PIXEL + i * VW);
                        for (int o = 0; o < OB; o++)
                            sum[o][c] += g[o] * pixel;
                    }
                }
            for (int o = 0; o < OB; o++)
                for (int c = 0; c < CB; c++)
                    sums[r * R + s][o][c] = sum[o][c];
        }
}

void run(const T *x, const T *dy, T *dw, char *workspace)
{
    T *staged = (T *)workspace, *staged_grads = (T *)(workspace + STAGED_BYTES);
    const T *pixels = A_STAGED ? staged : x, *grads = B_STAGED ? staged_grads : dy;
    OMP(parallel num_threads(autoconv_threads))
    {
        vec (*sums)[OB][CB] = (void *)(workspace + STAGED_BYTES + STAGED_B_BYTES + thread_number() * THREAD_BYTES);
        if (A_STAGED)
            stage(staged, x, A_N, A_C, A_STEP_H, A_STEP_W, A_CHANNELS, A_H, A_W, AT, SIDE_H, SIDE_W);
        if (B_STAGED)
            stage(staged_grads, dy, B_N, B_C, B_STEP_H, B_STEP_W, B_CHANNELS, B_H, B_W, 0, B_H, B_W);
        OMP(for collapse(2) schedule(dynamic))
        for (int k = 0; k < B_CHANNELS; k += OB)
            for (int c = 0; c < A_CHANNELS; c += CB) {
                memset(sums, 0, sizeof *sums * TAPS);
                for (int block = 0; block < BLOCKS; block++)
                    for (int p = 0; p < B_H; p++)
                        add_row(sums, pixels + block * A_BLOCK + c * A_PLANE, grads + block * B_BLOCK + k * B_PLANE, p);
                for (int t = 0; t < TAPS; t++)
                    for (int i = 0; i < OB * CB; i++) {
                        T total = 0;
                        for (int lane = 0; lane < VW; lane++)
                            total += sums[t][i / CB][i % CB][lane];
                        dw[((long)(k + i / CB) * A_CHANNELS + c + i % CB) * TAPS + (FLIP ? TAPS - 1 - t : t)] = total;
                    }
            }
    }
}

#endif
