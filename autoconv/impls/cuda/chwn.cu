// Convolution of arrays with the images innermost, (channels, height, width, images), as in cuda-convnet.
//
//   fprop: y[k, p, q, n] = sum over c, r, s of w[k, c, r, s] x[c, p*stride - pad + r, q*stride - pad + s, n]
//   dgrad: dx[c, h, w, n] = sum over k, r, s of w[k, c, r, s] dy[k, (h + pad - r) / stride, (w + pad - s) / stride, n]
//          where these are whole
//
// Source of the idea: filterActs and imgActs of Krizhevsky's cuda-convnet and cuda-convnet2: threads over images x
// filters, pixels and filters through shared memory, every access to images contiguous whatever stride and padding.
//
// A matrix product whose second matrix is formed while it is loaded. Its rows are the result's channels, its columns the
// result's pixels of all images, images fastest, (p, q, n); it sums over steps (channel, r, s). In dgrad each residue of
// the stride is a problem of its own (blockIdx.z), with the taps that meet it and no others.
//
// Block map. blockIdx.x = block of columns * blocks of rows + block of rows, so that blocks that read the same images
// run together. A block has WARPS_DOWN x WARPS_ACROSS warps; a warp makes ROWS rows x 32 * RUN columns, a thread ROWS
// rows of RUN neighbouring columns, RUN being 16 bytes of numbers. A thread loads the columns that it computes, so it
// looks up their pixels once, at every WARPS_DOWN-th of STEPS steps: into registers while the steps before are computed,
// from there to the other half of shared memory. One barrier per STEPS.
//
// Memory. Shared: 2 * STEPS * (columns + rows + RUN); the RUN is padding that keeps the transposing writes of filters
// free of bank conflicts. 13 KB for 64 rows x 128 columns of float32, 8 steps.
//
// What to expect. Per step, a warp reads 16 bytes per lane of images (4 cycles of shared memory) and ROWS / 4 broadcasts
// of filters (1 each): 8 cycles for ROWS = 16, against 64 warp-wide multiply-adds, 16 cycles of a multiprocessor with
// 128 lanes. So arithmetic decides, given warps enough: 64 sums and as many other registers per thread leave room for 4
// blocks of 128 threads (16 warps), and every warp has RUN * ROWS independent sums. 64 rows x 128 columns take 192
// numbers per step, 12 bytes per clock, well below what L2 gives (40 and more); 16 rows x 512 columns take 33, of which
// L1 saves some, since neighbouring taps read the same images. With 4 rows (gradients of up to 3 channels) shared
// memory decides.
//
// Macros: ELEMENT, IMAGES, KERNEL, STRIDE, PAD, FLIP, BACKWARD (dgrad), STEPS, ROWS, WARPS_DOWN, WARPS_ACROSS; IN_* is the
// operand (x or dy), OUT_* the result, each with CHANNELS, H, W; W_OUT and W_IN: distance in the filters from one channel
// of the result, or of the operand, to the next.

typedef accumulator<ELEMENT> Sum;
constexpr int RUN = 16 / sizeof(Sum);  // numbers of one 16-byte access to shared memory
constexpr bool WHOLE = IMAGES % RUN == 0;  // a run never crosses pixels, and is aligned
constexpr int AREA = KERNEL * KERNEL;
constexpr i64 IN_PLANE = (i64)IN_H * IN_W * IMAGES, OUT_PLANE = (i64)OUT_H * OUT_W * IMAGES;

__device__ __forceinline__ int turned(int tap) { return FLIP ? AREA - 1 - tap : tap; }

constexpr int THREADS = 32 * WARPS_DOWN * WARPS_ACROSS;
constexpr int ROWS_PER_BLOCK = ROWS * WARPS_DOWN, COLUMNS_PER_BLOCK = 32 * WARPS_ACROSS * RUN;
constexpr int ROW_BLOCKS = ceil_div(OUT_CHANNELS, ROWS_PER_BLOCK);
constexpr int LOADS = STEPS / WARPS_DOWN;                                // runs of images per thread
constexpr int FILTER_LOADS = ceil_div(ROWS_PER_BLOCK * STEPS, THREADS);  // filter values per thread
constexpr int RESIDUES = BACKWARD ? STRIDE : 1;                          // along each axis
constexpr int SPREAD = BACKWARD ? STRIDE : 1;                            // from tap to tap of one residue
static_assert(STEPS % WARPS_DOWN == 0, "every warp loads as many steps");
static_assert(ROWS % RUN == 0, "filters are read in whole runs");

// One axis of one residue: taps residue, residue + SPREAD, ...; results first, first + SPREAD, ...
struct Axis {
  int residue, taps, first, results;
  __device__ __forceinline__ Axis(int residue, int size) : residue(residue) {
    if (RESIDUES == 1) {
      taps = KERNEL;
      first = 0;
      results = size;
    } else {
      taps = residue < KERNEL ? ceil_div(KERNEL - residue, STRIDE) : 0;
      first = (residue - PAD % STRIDE + STRIDE) % STRIDE;
      results = first < size ? (size - 1 - first) / STRIDE + 1 : 0;
    }
  }
  // Where a result is, and where its first tap lies in the operand.
  __device__ __forceinline__ int result(int index) const { return first + SPREAD * index; }
  __device__ __forceinline__ int operand(int index) const {
    return BACKWARD ? (result(index) + PAD - residue) / STRIDE : index * STRIDE - PAD;
  }
};
constexpr int TOWARDS = BACKWARD ? -1 : 1;  // the next tap's place in the operand

// One column of acts: its pixel in the operand under the first tap, and in the result.
struct Column {
  int top, left;
  i64 operand, result;
  bool exists;
  __device__ __forceinline__ Column() {}
  __device__ __forceinline__ Column(i64 index, const Axis& down, const Axis& across) {
    const i64 pixel = index / IMAGES;
    const int image = (int)(index % IMAGES), width = RESIDUES == 1 ? OUT_W : max(across.results, 1);
    const int row = (int)(pixel / width), column = (int)(pixel % width);
    exists = row < down.results && column < across.results;
    top = down.operand(row);
    left = across.operand(column);
    operand = ((i64)top * IN_W + left) * IMAGES + image;
    result = ((i64)down.result(row) * OUT_W + across.result(column)) * IMAGES + image;
  }
};

// What a step of the sum is: a channel of the operand, and a tap of this residue.
struct Step {
  int channel, r, s;
  __device__ __forceinline__ Step(int index, const Axis& down, const Axis& across) {
    const int taps = RESIDUES == 1 ? AREA : down.taps * across.taps, width = RESIDUES == 1 ? KERNEL : across.taps;
    channel = index / taps;
    r = index % taps / width;
    s = index % taps % width;
  }
};

// 512 threads at least on a multiprocessor, so 128 registers at most, where they suffice: columns that cross pixels,
// float64, and a warp that loads every step take more.
constexpr bool LEAN = WHOLE && sizeof(Sum) == 4 && WARPS_DOWN > 1;

extern "C" __global__ void __launch_bounds__(THREADS, LEAN ? 512 / THREADS : 1)
acts(const ELEMENT* __restrict__ operand, const ELEMENT* __restrict__ filters, ELEMENT* __restrict__ result) {
  __shared__ __align__(16) Sum images[2][STEPS][COLUMNS_PER_BLOCK];
  __shared__ __align__(16) Sum weights[2][STEPS][ROWS_PER_BLOCK + RUN];

  const Axis down((int)blockIdx.z / RESIDUES, OUT_H), across((int)blockIdx.z % RESIDUES, OUT_W);
  const int count = IN_CHANNELS * down.taps * across.taps;
  const int first_row = (int)(blockIdx.x % ROW_BLOCKS) * ROWS_PER_BLOCK;
  const i64 first_column = (i64)(blockIdx.x / ROW_BLOCKS) * COLUMNS_PER_BLOCK;
  const int run = (int)threadIdx.x % (32 * WARPS_ACROSS), warp_down = (int)threadIdx.x / (32 * WARPS_ACROSS);

  Column columns[WHOLE ? 1 : RUN];
#pragma unroll
  for (int i = 0; i < (WHOLE ? 1 : RUN); ++i) columns[i] = Column(first_column + run * RUN + i, down, across);

  Pack<Sum, RUN> coming[LOADS];
  Sum coming_weights[FILTER_LOADS];
  const auto load = [&](int base) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int index = base + warp_down + i * WARPS_DOWN;
      coming[i] = Pack<Sum, RUN>{};
      if (index >= count) continue;
      const Step step(index, down, across);
      const i64 shift =
          step.channel * IN_PLANE + TOWARDS * ((i64)step.r * IN_W + step.s) * IMAGES;
#pragma unroll
      for (int j = 0; j < (WHOLE ? 1 : RUN); ++j) {
        const Column& column = columns[j];
        if (!column.exists || !within(column.top + TOWARDS * step.r, IN_H) ||
            !within(column.left + TOWARDS * step.s, IN_W))
          continue;
        if (WHOLE)
          coming[i] = load_wide<RUN>(operand + column.operand + shift);
        else
          coming[i].lane[j] = widen(operand[column.operand + shift]);
      }
    }
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i) {
      const int at = (int)threadIdx.x + i * THREADS, index = base + at % STEPS, row = first_row + at / STEPS;
      coming_weights[i] = 0;
      if (at >= ROWS_PER_BLOCK * STEPS || index >= count || row >= OUT_CHANNELS) continue;
      const Step step(index, down, across);
      const int tap = (down.residue + SPREAD * step.r) * KERNEL + across.residue + SPREAD * step.s;
      coming_weights[i] = widen(filters[(i64)row * W_OUT + (i64)step.channel * W_IN + turned(tap)]);
    }
  };
  const auto keep = [&](int half) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) store_pack(&images[half][warp_down + i * WARPS_DOWN][run * RUN], coming[i]);
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i) {
      const int at = (int)threadIdx.x + i * THREADS;
      if (at < ROWS_PER_BLOCK * STEPS) weights[half][at % STEPS][at / STEPS] = coming_weights[i];
    }
  };

  Sum sums[ROWS][RUN];
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < RUN; ++j) sums[i][j] = 0;

  load(0);
  keep(0);
  __syncthreads();
  for (int base = 0, half = 0; base < count; base += STEPS, half ^= 1) {
    const bool more = base + STEPS < count;
    if (more) load(base + STEPS);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const Pack<Sum, RUN> pixels = load_pack<RUN>(&images[half][step][run * RUN]);
#pragma unroll
      for (int group = 0; group < ROWS; group += RUN) {
        const Pack<Sum, RUN> taps = load_pack<RUN>(&weights[half][step][warp_down * ROWS + group]);
#pragma unroll
        for (int i = 0; i < RUN; ++i)
#pragma unroll
          for (int j = 0; j < RUN; ++j) sums[group + i][j] += taps.lane[i] * pixels.lane[j];
      }
    }
    if (more) keep(half ^ 1);  // nobody reads that half: all have passed the barrier behind its last use
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int row = first_row + warp_down * ROWS + i;
    if (row >= OUT_CHANNELS) break;
    ELEMENT* const plane = result + row * OUT_PLANE;
    Pack<ELEMENT, RUN> values;
#pragma unroll
    for (int j = 0; j < RUN; ++j) values.lane[j] = narrow<ELEMENT>(sums[i][j]);
#pragma unroll
    for (int j = 0; j < (WHOLE ? 1 : RUN); ++j) {
      if (!columns[j].exists) continue;
      if (WHOLE)
        store_pack(plane + columns[j].result, values);
      else
        plane[columns[j].result] = values.lane[j];
    }
  }
}
