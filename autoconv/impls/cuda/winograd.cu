// Winograd's minimal filtering F(m x m, r x r) around a batched product by cuBLAS: the transforms before and after it.
//
//   data_tiles      n x n pixels of a channel, overlapping by r - 1      ->  B' d B, to (point, channel, tile)
//   filter_tiles    r x r taps of a filter                               ->  G g G', to (point, filter, channel)
//                   then for each of n x n points: results = filters x data, summed over channels (cuBLAS)
//   result_tiles    n x n products of a result channel                   ->  A' p A, m x m results
//   gradient_tiles  m x m pixels of the output gradient (for wgrad)      ->  A d A', to (point, channel, tile)
//   filter_results  n x n products summed over tiles (for wgrad)         ->  G' p G, r x r taps
//
// with n = m + r - 1 and the matrices of autoconv/impls/_winograd.py, given as the macros DATA (B'), FILTER (G) and
// INVERSE (A'). They are known when this is compiled: loops unroll, terms with a factor of zero vanish.
//
// Indices. A tile is ((image * TILES_H) + row) * TILES_W + column; one launch does `count` of them from `first` on, and
// `step` is the length of a row of tiles in the transformed arrays: (points, channels, step), or (points, step,
// channels) where CHANNELS_LAST. Pixels outside the data count as zero: that is the padding, and the last tiles' rest.
//
// Block map. One thread owns one tile of one channel, in blocks of THREADS. Channels first: neighbouring threads have
// neighbouring tiles, those of a row of tiles read pixels m apart, so that the n loads of a row of pixels hit the same
// lines of L1, and writes are contiguous. Channels last: LANES neighbouring threads have neighbouring channels, and a
// block has THREADS / LANES neighbouring tiles, whose common columns L1 then holds. No shared memory: every number is
// used by one thread only, but for that overlap.
//
// What to expect. Per tile and channel of F(4, 3): 16 new pixels are read and 36 numbers written, or the reverse, 208
// bytes of float32, for some 250 multiply-adds: on an H100 15 clocks of a multiprocessor's share of the memory against
// 2 of its arithmetic, so memory decides, and the code is kept simple. n * n independent loads per thread hide the
// latency at any occupancy: 48 registers for n = 6 (40 warps on a multiprocessor), 96 for n = 8 (20 warps).
// Numbers in the transformed arrays per result and channel: F(2, 3) 4, F(4, 3) 2.25, F(6, 3) 1.78, written once and read
// once on either side of the product; multiplications per result and pair of channels: 4, 2.25, 1.78 instead of 9.
// So the gain grows with the channels, and a chunk of tiles that stays in L2 between the three steps saves most of
// that traffic: the host cuts chunks (config `mib`).
//
// Macros: ELEMENT, TILE (m), TAPS (r), DATA, FILTER, INVERSE, CHANNELS_LAST, THREADS; IN_* is what data_tiles reads,
// OUT_* what the tiles cut (the result, or the output gradient for wgrad), each with CHANNELS, H, W, LANES; START_H and
// START_W: pixel under the first point of the first tile; TILES_H, TILES_W; TURN: filters with their taps turned round.

constexpr int SIDE = TILE + TAPS - 1;  // n

struct DataMatrix {
  static __device__ __forceinline__ constexpr double at(int i, int j) {
    constexpr double values[SIDE][SIDE] = DATA;
    return values[i][j];
  }
};
struct FilterMatrix {
  static __device__ __forceinline__ constexpr double at(int i, int j) {
    constexpr double values[SIDE][TAPS] = FILTER;
    return values[i][j];
  }
};
struct InverseMatrix {
  static __device__ __forceinline__ constexpr double at(int i, int j) {
    constexpr double values[TILE][SIDE] = INVERSE;
    return values[i][j];
  }
};
template <class MATRIX>
struct Transposed {
  static __device__ __forceinline__ constexpr double at(int i, int j) { return MATRIX::at(j, i); }
};

// One sum of products with a row of a matrix; `by` is the distance between the numbers. A product with 0 is left out
// (it would not vanish by itself: 0 times infinity is NaN), one with 1 is free.
template <class MATRIX, int COUNT>
__device__ __forceinline__ ELEMENT row_sum(int row, const ELEMENT* from, int by) {
  ELEMENT sum = 0;
  bool begun = false;
#pragma unroll
  for (int j = 0; j < COUNT; ++j) {
    const ELEMENT factor = (ELEMENT)MATRIX::at(row, j);
    if (factor == (ELEMENT)0) continue;
    sum = begun ? sum + factor * from[j * by] : factor * from[j * by];
    begun = true;
  }
  return sum;
}

// MATRIX (ROWS x COLUMNS) times `from` times MATRIX turned.
template <class MATRIX, int ROWS, int COLUMNS>
__device__ __forceinline__ void both_sides(const ELEMENT (&from)[COLUMNS][COLUMNS], ELEMENT (&to)[ROWS][ROWS]) {
  ELEMENT half[ROWS][COLUMNS];
#pragma unroll
  for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
    for (int i = 0; i < ROWS; ++i) half[i][j] = row_sum<MATRIX, COLUMNS>(i, &from[0][j], COLUMNS);
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < ROWS; ++j) to[i][j] = row_sum<MATRIX, COLUMNS>(j, half[i], 1);
}

// Which tile of the launch, and which channel, a thread has.
struct Place {
  int tile, channel;
  bool exists;
};
template <int CHANNELS, int LANES>
__device__ __forceinline__ Place place(int count) {
#if CHANNELS_LAST
  constexpr int groups = ceil_div(CHANNELS, LANES);
  const int channel = (int)(blockIdx.x % groups) * LANES + (int)threadIdx.x % LANES;
  const int tile = (int)(blockIdx.x / groups) * (THREADS / LANES) + (int)threadIdx.x / LANES;
  return Place{tile, channel, channel < CHANNELS && tile < count};
#else
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  const int channel = (int)(i / (unsigned)count);
  return Place{(int)(i % (unsigned)count), channel, channel < CHANNELS};
#endif
}

// Where a thread's numbers lie in a transformed array: point 0, and from one point to the next.
template <int CHANNELS>
__device__ __forceinline__ i64 first_point(const Place& at, int step) {
  return CHANNELS_LAST ? (i64)at.tile * CHANNELS + at.channel : (i64)at.channel * step + at.tile;
}
template <int CHANNELS>
__device__ __forceinline__ i64 next_point(int step) {
  return (i64)CHANNELS * step;
}

// Pixels of a tile in an image array of CHANNELS x H x W: `at(i, j)` is the offset of row i, column j from the first.
template <int CHANNELS, int H, int W>
struct Pixels {
  static constexpr int COLUMN = CHANNELS_LAST ? CHANNELS : 1;
  int top, left;
  i64 base;
  __device__ __forceinline__ Pixels(i64 tile, int channel, int start_h, int start_w) {
    const i64 row = tile / TILES_W, image = row / TILES_H;
    top = (int)(row % TILES_H) * TILE + start_h;
    left = (int)(tile % TILES_W) * TILE + start_w;
    base = CHANNELS_LAST ? ((image * H + top) * W + left) * CHANNELS + channel
                         : ((image * CHANNELS + channel) * H + top) * W + left;
  }
  __device__ __forceinline__ bool has(int i, int j) const { return within(top + i, H) && within(left + j, W); }
  __device__ __forceinline__ i64 at(int i, int j) const { return base + ((i64)i * W + j) * COLUMN; }
};

template <class MATRIX, int READ, int CHANNELS, int H, int W, int LANES>
__device__ __forceinline__ void tiles(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, i64 first,
                                      int count, int step, int start_h, int start_w) {
  const Place mine = place<CHANNELS, LANES>(count);
  if (!mine.exists) return;
  const Pixels<CHANNELS, H, W> pixels(first + mine.tile, mine.channel, start_h, start_w);
  ELEMENT values[READ][READ], transformed[SIDE][SIDE];
#pragma unroll
  for (int i = 0; i < READ; ++i)
#pragma unroll
    for (int j = 0; j < READ; ++j) values[i][j] = pixels.has(i, j) ? from[pixels.at(i, j)] : (ELEMENT)0;
  both_sides<MATRIX>(values, transformed);
  to += first_point<CHANNELS>(mine, step);
#pragma unroll
  for (int i = 0; i < SIDE; ++i)
#pragma unroll
    for (int j = 0; j < SIDE; ++j) to[(i * SIDE + j) * next_point<CHANNELS>(step)] = transformed[i][j];
}

extern "C" __global__ void __launch_bounds__(THREADS)
data_tiles(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, i64 first, int count, int step) {
  tiles<DataMatrix, SIDE, IN_CHANNELS, IN_H, IN_W, IN_LANES>(from, to, first, count, step, START_H, START_W);
}

__device__ __forceinline__ int tap(int i, int j) {
  return TURN ? (TAPS - 1 - i) * TAPS + TAPS - 1 - j : i * TAPS + j;
}

extern "C" __global__ void __launch_bounds__(THREADS)
gradient_tiles(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, i64 first, int count, int step) {
  tiles<Transposed<InverseMatrix>, TILE, OUT_CHANNELS, OUT_H, OUT_W, OUT_LANES>(from, to, first, count, step, 0, 0);
}

// filters: (count, TAPS, TAPS), whatever their channels; one thread per filter of one channel.
extern "C" __global__ void __launch_bounds__(THREADS)
filter_results(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ filters, i64 count) {
  const i64 filter = blockIdx.x * (i64)THREADS + threadIdx.x;
  if (filter >= count) return;
  ELEMENT products[SIDE][SIDE], taps[TAPS][TAPS];
#pragma unroll
  for (int i = 0; i < SIDE; ++i)
#pragma unroll
    for (int j = 0; j < SIDE; ++j) products[i][j] = from[(i * SIDE + j) * count + filter];
  both_sides<Transposed<FilterMatrix>>(products, taps);
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < TAPS; ++j) filters[filter * (TAPS * TAPS) + tap(i, j)] = taps[i][j];
}

// Neighbouring results of a row that are written at once: as many as divide the tile and the row, up to 16 bytes.
__host__ __device__ constexpr bool writes(int count) {
  return !CHANNELS_LAST && TILE % count == 0 && OUT_W % count == 0 && count * (int)sizeof(ELEMENT) <= 16;
}
constexpr int WIDE = writes(4) ? 4 : writes(2) ? 2 : 1;

extern "C" __global__ void __launch_bounds__(THREADS)
result_tiles(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, i64 first, int count, int step) {
  const Place mine = place<OUT_CHANNELS, OUT_LANES>(count);
  if (!mine.exists) return;
  ELEMENT products[SIDE][SIDE], results[TILE][TILE];
  from += first_point<OUT_CHANNELS>(mine, step);
#pragma unroll
  for (int i = 0; i < SIDE; ++i)
#pragma unroll
    for (int j = 0; j < SIDE; ++j) products[i][j] = from[(i * SIDE + j) * next_point<OUT_CHANNELS>(step)];
  both_sides<InverseMatrix>(products, results);
  const Pixels<OUT_CHANNELS, OUT_H, OUT_W> pixels(first + mine.tile, mine.channel, 0, 0);
#pragma unroll
  for (int i = 0; i < TILE; ++i)
#pragma unroll
    for (int j = 0; j < TILE; j += WIDE)
      if (pixels.has(i, j)) {
        Pack<ELEMENT, WIDE> run;
#pragma unroll
        for (int k = 0; k < WIDE; ++k) run.lane[k] = results[i][j + k];
        store_pack(to + pixels.at(i, j), run);
      }
}

extern "C" __global__ void __launch_bounds__(THREADS)
filter_tiles(const ELEMENT* __restrict__ filters, ELEMENT* __restrict__ to, i64 count) {
  const i64 filter = blockIdx.x * (i64)THREADS + threadIdx.x;
  if (filter >= count) return;
  ELEMENT taps[TAPS][TAPS], transformed[SIDE][SIDE];
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < TAPS; ++j) taps[i][j] = filters[filter * (TAPS * TAPS) + tap(i, j)];
  both_sides<FilterMatrix>(taps, transformed);
#pragma unroll
  for (int i = 0; i < SIDE; ++i)
#pragma unroll
    for (int j = 0; j < SIDE; ++j) to[(i * SIDE + j) * count + filter] = transformed[i][j];
}
