// Gradient of the filters of arrays with the images innermost, (channels, height, width, images), as in cuda-convnet:
//
//   dw[k, c, r, s] = sum over p, q, n of dy[k, p, q, n] x[c, p*stride - pad + r, q*stride - pad + s, n]
//
// Source of the idea: weightActs of Krizhevsky's cuda-convnet and cuda-convnet2. A product of two matrices that are both
// contiguous along what is summed, places (p, q, n) with images fastest: rows are filters, columns are taps (c, r, s).
//
// Block map of weight_acts. blockIdx.x = block of columns * blocks of filters + block of filters, so that the blocks that
// read the same images run together; blockIdx.y = part of the sum, PER chunks of DEPTH places. 16 x 8 threads: thread
// (x, y) has filters y + 8 i, i < ROWS, and columns x + 16 j, j < ACROSS. A thread loads the same places of several rows,
// so it looks up their pixel once per chunk, into registers while the chunk before is computed; one barrier per chunk.
//
// Memory. Shared: 2 * (filters + columns) * (DEPTH + RUN), RUN being 16 bytes of numbers: rows so long begin 4 banks
// apart, and 8 threads that read neighbouring rows meet 32 different banks. 20 KB for 64 filters x 64 columns of float32.
//
// What to expect. ROWS + ACROSS loads of 16 bytes serve RUN * ROWS * ACROSS multiply-adds of a thread: 12 for 128 of
// float32, some 24 cycles of shared memory against 32 of arithmetic. A bank of filters has few numbers and a GPU many
// multiprocessors, so the sum is cut into PARTS, written apart and added in order by sum_parts: the same bits every
// time, without atomic operations, at the price of PARTS * 8 bytes moved per weight.
//
// Macros: ELEMENT, IMAGES, KERNEL, STRIDE, PAD, FLIP, ROWS, ACROSS, DEPTH, PARTS, PER; IN_* is x, OUT_* is dy, each with
// CHANNELS, H, W.

typedef accumulator<ELEMENT> Sum;
constexpr int RUN = 16 / sizeof(Sum);  // numbers of one 16-byte access to shared memory
constexpr bool WHOLE = IMAGES % RUN == 0;  // a run never crosses pixels, and is aligned
constexpr int AREA = KERNEL * KERNEL;
constexpr i64 IN_PLANE = (i64)IN_H * IN_W * IMAGES, OUT_PLANE = (i64)OUT_H * OUT_W * IMAGES;

__device__ __forceinline__ int turned(int tap) { return FLIP ? AREA - 1 - tap : tap; }

constexpr int ACROSS_THREADS = 16, DOWN_THREADS = 8, WEIGHT_THREADS = ACROSS_THREADS * DOWN_THREADS;
constexpr int FILTERS_PER_BLOCK = DOWN_THREADS * ROWS, TAPS_PER_BLOCK = ACROSS_THREADS * ACROSS;
constexpr int FILTER_BLOCKS = ceil_div(OUT_CHANNELS, FILTERS_PER_BLOCK);
constexpr int TAPS = IN_CHANNELS * AREA;  // of one filter: columns of the product
constexpr int RUNS = DEPTH / RUN;         // of one row of shared memory
constexpr int GRADIENT_LOADS = ceil_div(FILTERS_PER_BLOCK * RUNS, WEIGHT_THREADS);
constexpr int IMAGE_LOADS = ceil_div(TAPS_PER_BLOCK * RUNS, WEIGHT_THREADS);
static_assert(WEIGHT_THREADS % RUNS == 0, "a thread loads the same place of every row");

// A column of weight_acts: where its tap lies in x, seen from the first pixel of its window.
struct Tap {
  int r, s;
  i64 offset;
  bool exists;
  __device__ __forceinline__ Tap() {}
  __device__ __forceinline__ explicit Tap(int index) {
    exists = index < TAPS;
    r = index % AREA / KERNEL;
    s = index % KERNEL;
    offset = index / AREA * IN_PLANE + ((i64)r * IN_W + s) * IMAGES;
  }
};

// A place of the sum: a pixel of dy and the first pixel of its window in x.
struct Pixel {
  int top, left;
  i64 offset;
  bool exists;
  __device__ __forceinline__ explicit Pixel(i64 index) {
    exists = index < OUT_PLANE;
    const int pixel = (int)(index / IMAGES);
    top = pixel / OUT_W * STRIDE - PAD;
    left = pixel % OUT_W * STRIDE - PAD;
    offset = ((i64)top * IN_W + left) * IMAGES + index % IMAGES;
  }
  __device__ __forceinline__ bool sees(const Tap& tap) const {
    return exists && tap.exists && within(top + tap.r, IN_H) && within(left + tap.s, IN_W);
  }
};

template <bool ALONE>
struct TotalOf {
  typedef Sum type;
  static __device__ __forceinline__ Sum of(Sum sum) { return sum; }
};
template <>
struct TotalOf<true> {
  typedef ELEMENT type;
  static __device__ __forceinline__ ELEMENT of(Sum sum) { return narrow<ELEMENT>(sum); }
};
typedef TotalOf<PARTS == 1> Total;

// `sums` is dw itself where PARTS is 1, else PARTS arrays of its shape in the accumulator's type.
extern "C" __global__ void __launch_bounds__(WEIGHT_THREADS)
weight_acts(const ELEMENT* __restrict__ x, const ELEMENT* __restrict__ dy, Total::type* __restrict__ sums) {
  __shared__ __align__(16) Sum gradients[2][FILTERS_PER_BLOCK][DEPTH + RUN];
  __shared__ __align__(16) Sum images[2][TAPS_PER_BLOCK][DEPTH + RUN];

  const int first_filter = (int)(blockIdx.x % FILTER_BLOCKS) * FILTERS_PER_BLOCK;
  const int first_tap = (int)(blockIdx.x / FILTER_BLOCKS) * TAPS_PER_BLOCK;
  const int own_run = (int)threadIdx.x % RUNS, own_row = (int)threadIdx.x / RUNS;
  constexpr int ROWS_APART = WEIGHT_THREADS / RUNS;

  Tap taps[IMAGE_LOADS];
#pragma unroll
  for (int i = 0; i < IMAGE_LOADS; ++i) taps[i] = Tap(first_tap + own_row + i * ROWS_APART);

  Pack<Sum, RUN> coming_gradients[GRADIENT_LOADS], coming_images[IMAGE_LOADS];
  const auto load = [&](i64 chunk) {
    const i64 at = chunk * DEPTH + own_run * RUN;
#pragma unroll
    for (int i = 0; i < GRADIENT_LOADS; ++i) coming_gradients[i] = Pack<Sum, RUN>{};
#pragma unroll
    for (int i = 0; i < IMAGE_LOADS; ++i) coming_images[i] = Pack<Sum, RUN>{};
#pragma unroll
    for (int j = 0; j < (WHOLE ? 1 : RUN); ++j) {
      const Pixel pixel(at + j);
      if (!pixel.exists) break;
#pragma unroll
      for (int i = 0; i < GRADIENT_LOADS; ++i) {
        const int filter = first_filter + own_row + i * ROWS_APART;
        if (filter >= OUT_CHANNELS) continue;
        const ELEMENT* const from = dy + filter * OUT_PLANE + at + j;
        if (WHOLE)
          coming_gradients[i] = load_wide<RUN>(from);
        else
          coming_gradients[i].lane[j] = widen(*from);
      }
#pragma unroll
      for (int i = 0; i < IMAGE_LOADS; ++i) {
        if (!pixel.sees(taps[i])) continue;
        const ELEMENT* const from = x + pixel.offset + taps[i].offset;
        if (WHOLE)
          coming_images[i] = load_wide<RUN>(from);
        else
          coming_images[i].lane[j] = widen(*from);
      }
    }
  };
  const auto keep = [&](int half) {
#pragma unroll
    for (int i = 0; i < GRADIENT_LOADS; ++i) {
      const int row = own_row + i * ROWS_APART;
      if (row < FILTERS_PER_BLOCK) store_pack(&gradients[half][row][own_run * RUN], coming_gradients[i]);
    }
#pragma unroll
    for (int i = 0; i < IMAGE_LOADS; ++i) {
      const int row = own_row + i * ROWS_APART;
      if (row < TAPS_PER_BLOCK) store_pack(&images[half][row][own_run * RUN], coming_images[i]);
    }
  };

  const int x_thread = (int)threadIdx.x % ACROSS_THREADS, y_thread = (int)threadIdx.x / ACROSS_THREADS;
  Sum totals[ROWS][ACROSS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) totals[i][j] = 0;

  const i64 begin = (i64)blockIdx.y * PER;
  const i64 end = min(begin + PER, ceil_div(OUT_PLANE, (i64)DEPTH));
  load(begin);
  keep(0);
  __syncthreads();
  int half = 0;
  for (i64 chunk = begin; chunk < end; ++chunk, half ^= 1) {
    const bool more = chunk + 1 < end;
    if (more) load(chunk + 1);
#pragma unroll
    for (int run = 0; run < RUNS; ++run) {
      Pack<Sum, RUN> right[ACROSS];
#pragma unroll
      for (int j = 0; j < ACROSS; ++j)
        right[j] = load_pack<RUN>(&images[half][x_thread + j * ACROSS_THREADS][run * RUN]);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        const Pack<Sum, RUN> left = load_pack<RUN>(&gradients[half][y_thread + i * DOWN_THREADS][run * RUN]);
#pragma unroll
        for (int j = 0; j < ACROSS; ++j)
#pragma unroll
          for (int lane = 0; lane < RUN; ++lane) totals[i][j] += left.lane[lane] * right[j].lane[lane];
      }
    }
    if (more) keep(half ^ 1);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) {
      const int filter = first_filter + y_thread + i * DOWN_THREADS;
      const int column = first_tap + x_thread + j * ACROSS_THREADS;
      if (filter >= OUT_CHANNELS || column >= TAPS) continue;
      const i64 row = (i64)blockIdx.y * OUT_CHANNELS + filter;
      sums[row * TAPS + column / AREA * AREA + turned(column % AREA)] = Total::of(totals[i][j]);
    }
}

// One thread in 8 per weight: they share out the parts, and one adds what they found; blocks of 32 x 8 threads.
extern "C" __global__ void __launch_bounds__(256)
sum_parts(const Sum* __restrict__ parts, ELEMENT* __restrict__ dw) {
  __shared__ Sum found[8][32];
  constexpr i64 COUNT = (i64)OUT_CHANNELS * TAPS;
  const i64 at = blockIdx.x * 32LL + threadIdx.x;
  Sum sum = 0;
  if (at < COUNT)
    for (int part = (int)threadIdx.y; part < PARTS; part += 8) sum += parts[part * COUNT + at];
  found[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || at >= COUNT) return;
  for (int i = 1; i < 8; ++i) sum += found[i][threadIdx.x];
  dw[at] = narrow<ELEMENT>(sum);
}
