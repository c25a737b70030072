/* The gradient of the filters by Winograd's filtering, for one spec and one config (see _winograd_wgrad.py).
 *
 * dw is a correlation of x with dy whose results are the R x S taps: F(R, MH) by F(S, MW), with tiles of MH x MW values
 * of dy in the place of filters. The products are summed over tiles and images before the inverse transform, so that
 * one inverse serves them all.
 *
 * Rows of tiles are taken BR at a time. Of each such chunk the threads first transform x and dy, then share the items:
 * CI vectors of input channels by KI blocks of KU = KV * VW output channels, whose sums fit the second-level cache.
 * TR divides VW: so many input channels by KV vectors of output channels are summed in registers.
 *
 * V [position][IC / VW][tile][VW]    transformed x, the channels that are spread over lanes
 * U [position][OC / KU][tile][KU]    transformed dy
 * M [output block][input vector][position][VW][KU]    sums of an item; with several chunks every item keeps its own
 */
#define NH (MH + R - 1)
#define NW (MW + S - 1)
#define POSITIONS (NH * NW)
#define TAPS (R * S)
#define TH CEIL_DIV(YH, MH)
#define TW CEIL_DIV(YW, MW)
#define TILE_ROWS (BATCH * TH)
#define TILES (BR * TW)
#define CHUNKS CEIL_DIV(TILE_ROWS, BR)
#define C_VECTORS CEIL_DIV(IC, VW)
#define KU (KV * VW)
#define K_BLOCKS CEIL_DIV(OC, KU)
#define C_ITEMS CEIL_DIV(C_VECTORS, CI)
#define K_ITEMS CEIL_DIV(K_BLOCKS, KI)
/* A vector of slack per position keeps the positions of a tile out of each other's cache sets. */
#define V_POSITION ((size_t)C_VECTORS * TILES * VW + VW)
#define U_POSITION ((size_t)K_BLOCKS * TILES * KU + VW)
#define M_POSITION (VW * KU + VW)
#define M_BLOCK ((size_t)POSITIONS * M_POSITION)
#define ITEM_SIZE (CI * KI * M_BLOCK)
#define STRIP_SIZE ((size_t)MAX(((STRIP - 1) * MH + NH) * MAX(XW, YW), VW * TAPS + VW) * VW)

/* ---- Data and gradient ---------------------------------------------------------------------------------------- */

/* The transform of NH x NW values of x, or of MH x MW values of dy: both give POSITIONS vectors. */
INLINE void transform_tile(const T *from, size_t row_step, size_t column_step, const int gradient, T *to, size_t position) {
    const int height = gradient ? MH : NH, width = gradient ? MW : NW;
    vec half[NH * NW], out[NW];
    _Pragma("GCC unroll 16") for (int b = 0; b < width; b++) {
        vec d[NH];
        _Pragma("GCC unroll 16") for (int a = 0; a < height; a++) d[a] = load(from + a * row_step + b * column_step);
        if (gradient) filter_h(d, 1, half + b, NW);
        else data_h(d, 1, half + b, NW);
    }
    _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) {
        if (gradient) filter_w(half + a * NW, 1, out, 1);
        else data_w(half + a * NW, 1, out, 1);
        _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) store(to + (a * NW + b) * position, out[b]);
    }
}

/* Rows [row, end) of tiles, all of one image, of channels [channel, channel + live): YH x YW dy or XH x XW x. */
INLINE void transform_strip(const T *array, int channels, int channel, int live, int row, int end, const int gradient,
                            T *to, size_t tile_step, size_t position, T *strip) {
    const int height = gradient ? MH : NH, width = gradient ? MW : NW;
    const int rows = gradient ? YH : XH, columns = gradient ? YW : XW, top = gradient ? 0 : PH, left = gradient ? 0 : PW;
    const int n = row / TH, i0 = row % TH, i1 = i0 + end - row;
#if CHANNELS_LAST
    (void)strip;
    const size_t column_step = channels, row_step = (size_t)columns * channels;
    const T *image = array + (size_t)n * rows * row_step + channel;
    const int y0 = 0, whole = live;
#else
    const size_t plane = (size_t)rows * columns, column_step = VW, row_step = (size_t)columns * VW;
    const int y0 = MIN(MAX(0, i0 * MH - top), rows), y1 = MAX(y0, MIN(rows, (i1 - 1) * MH - top + height));
    const T *image = strip;
    const int whole = VW; /* the transpose has filled up the vectors */
    gather_channels(array + ((size_t)n * channels + channel) * plane + (size_t)y0 * columns, plane, live,
                    (y1 - y0) * columns, strip, VW);
#endif
    for (int i = i0; i < i1; i++)
        for (int j = 0; j < TW; j++, to += tile_step) {
            const int y = i * MH - top, x = j * MW - left;
            const T *from = image + (ptrdiff_t)(y - y0) * (ptrdiff_t)row_step + (ptrdiff_t)x * (ptrdiff_t)column_step;
            if (whole == VW && y >= 0 && x >= 0 && y + height <= rows && x + width <= columns) {
                transform_tile(from, row_step, column_step, gradient, to, position);
                continue;
            }
            T tile[NH * NW * VW] __attribute__((aligned(VECTOR_BYTES)));
            for (int a = 0; a < height; a++)
                for (int b = 0; b < width; b++) {
                    const int inside = y + a >= 0 && y + a < rows && x + b >= 0 && x + b < columns;
                    const T *pixel = from + (ptrdiff_t)a * (ptrdiff_t)row_step + (ptrdiff_t)b * (ptrdiff_t)column_step;
                    store(tile + (a * width + b) * VW, inside ? load_first(pixel, whole) : (vec){0});
                }
            transform_tile(tile, width * VW, VW, gradient, to, position);
        }
}

/* Part `part` of a chunk: a vector of channels and a strip of rows of tiles, of x first and then of dy. */
static void transform_part(const T *x, const T *dy, int group, int row0, int end, int part, T *V, T *U, T *strip) {
    const int strips = CEIL_DIV(end - row0, STRIP), vector = part / strips;
    int row = row0 + part % strips * STRIP;
    for (int next, stop = MIN(end, row + STRIP); row < stop; row = next) {
        next = MIN(stop, (row / TH + 1) * TH);
        const size_t tile = (size_t)(row - row0) * TW;
        if (vector < C_VECTORS) {
            const int c = vector * VW;
            transform_strip(x, GROUPS * IC, group * IC + c, MIN(VW, IC - c), row, next, 0,
                            V + ((size_t)vector * TILES + tile) * VW, VW, V_POSITION, strip);
        } else {
            const int k = (vector - C_VECTORS) * VW, live = MIN(VW, OC - k);
            T *to = U + ((size_t)(k / KU) * TILES + tile) * KU + k % KU;
            if (live > 0) transform_strip(dy, GROUPS * OC, group * OC + k, live, row, next, 1, to, KU, U_POSITION, strip);
            else
                for (int q = 0; q < POSITIONS; q++)
                    for (int t = 0; t < (next - row) * TW; t++) store(to + q * U_POSITION + (size_t)t * KU, (vec){0});
        }
    }
}

/* ---- Products ------------------------------------------------------------------------------------------------- */

/* TR input channels by KU output channels, summed over `tiles`. */
INLINE void multiply(const T *V, const T *U, int tiles, T *M, int more) {
    vec acc[TR][KV];
    _Pragma("GCC unroll 16") for (int c = 0; c < TR; c++)
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) acc[c][v] = more ? load(M + c * KU + v * VW) : (vec){0};
    _Pragma("GCC unroll 2") for (int t = 0; t < tiles; t++) {
        vec u[KV];
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) u[v] = load(U + (size_t)t * KU + v * VW);
        _Pragma("GCC unroll 16") for (int c = 0; c < TR; c++) {
            const vec data = splat(V[t * VW + c]);
            _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) acc[c][v] += data * u[v];
        }
    }
    _Pragma("GCC unroll 16") for (int c = 0; c < TR; c++)
        _Pragma("GCC unroll 8") for (int v = 0; v < KV; v++) store(M + c * KU + v * VW, acc[c][v]);
}

static void multiply_item(const T *V, const T *U, int c0, int c1, int k0, int k1, int tiles, T *M, int more) {
    for (int q = 0; q < POSITIONS; q++)
        for (int k = k0; k < k1; k++)
            for (int c = c0; c < c1; c++)
                for (int lane = 0; lane < VW; lane += TR)
                    multiply(V + q * V_POSITION + (size_t)c * TILES * VW + lane, U + q * U_POSITION + (size_t)k * TILES * KU,
                             tiles, M + ((k - k0) * CI + c - c0) * M_BLOCK + (size_t)q * M_POSITION + lane * KU, more);
}

/* ---- Results -------------------------------------------------------------------------------------------------- */

/* Sums of VW input channels from c on by KU output channels from k on. */
static void inverse_block(const T *M, int group, int c, int k, T *dw, T *strip) {
    const int live = MIN(VW, IC - c);
    for (int v = 0; v < KV && k + v * VW < OC; v++) {
        for (int lane = 0; lane < live; lane++) {
            const T *from = M + lane * KU + v * VW;
            vec half[R * NW];
            _Pragma("GCC unroll 16") for (int b = 0; b < NW; b++) {
                vec m[NH];
                _Pragma("GCC unroll 16") for (int a = 0; a < NH; a++) m[a] = load(from + (size_t)(a * NW + b) * M_POSITION);
                inverse_h(m, 1, half + b, NW);
            }
            _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
                vec taps[S];
                inverse_w(half + r * NW, 1, taps, 1);
                _Pragma("GCC unroll 16") for (int s = 0; s < S; s++) {
                    const int tap = r * S + s;
                    store(strip + (lane * TAPS + (REVERSED ? TAPS - 1 - tap : tap)) * VW, taps[s]);
                }
            }
        }
        const int first = k + v * VW;
        scatter_channels(strip, dw + ((size_t)(group * OC + first) * IC + c) * TAPS, (size_t)IC * TAPS,
                         MIN(VW, OC - first), live * TAPS);
    }
}

void run(const T *x, const T *dy, T *dw, char *workspace) {
    T *const V = (T *)workspace, *const U = V + POSITIONS * V_POSITION, *const sums = U + POSITIONS * U_POSITION;
    OMP(parallel num_threads(autoconv_threads))
    {
        T *const kept = sums + (size_t)(CHUNKS > 1 ? C_ITEMS * K_ITEMS : THREADS) * ITEM_SIZE;
        T *const strip = kept + thread_number() * STRIP_SIZE;
        for (int group = 0; group < GROUPS; group++)
            for (int row = 0; row < TILE_ROWS; row += BR) {
                const int end = MIN(TILE_ROWS, row + BR), parts = (C_VECTORS + K_BLOCKS * KV) * CEIL_DIV(end - row, STRIP);
                OMP(for schedule(dynamic))
                for (int part = 0; part < parts; part++) transform_part(x, dy, group, row, end, part, V, U, strip);
                OMP(for schedule(dynamic))
                for (int item = 0; item < C_ITEMS * K_ITEMS; item++) {
                    const int c0 = item % C_ITEMS * CI, c1 = MIN(C_VECTORS, c0 + CI);
                    const int k0 = item / C_ITEMS * KI, k1 = MIN(K_BLOCKS, k0 + KI);
                    T *const M = sums + (CHUNKS > 1 ? item : thread_number()) * ITEM_SIZE;
                    multiply_item(V, U, c0, c1, k0, k1, (end - row) * TW, M, row > 0);
                    if (end < TILE_ROWS) continue;
                    for (int k = k0; k < k1; k++)
                        for (int c = c0; c < c1; c++)
                            inverse_block(M + ((k - k0) * CI + c - c0) * M_BLOCK, group, c * VW, k * KU, dw, strip);
                }
            }
    }
}
