// Gradient of depthwise filters, 1-D to 3-D, both memory formats, in two stages; the same bits in every run.
//
// Indices. A "point" is a place of the output gradient, flattened over images and axes D, H, W; axes missing have size 1.
// A "tap" is a place of a filter, flattened. dw[k][tap] sums dy[k] at a point times x[k / MULTIPLIER] where the tap looks:
// point * STRIDES - PADS + tap * DILATIONS.
//
// partial: blockIdx.x = (chunk * CHANNEL_BLOCKS + channels) * TAP_BLOCKS + taps. A block sums TILE_TAPS taps of its
// channels over one chunk of the points: a thread over every POINT_THREADS-th, then the threads in pairs, halves of
// halves. Threads: x along channels (32 with channels innermost, where they are neighbours in memory; else 1), y along
// points (neighbours in memory with channels first). A point costs TILE_TAPS + 1 loads, which hit L1 but for the first,
// for as many multiply-adds: at 3x3 ten clocks of the load unit a warp, about what its two new numbers a thread cost the
// device's memory. parts is (chunk, filter, tap).
// total: a thread adds one gradient's parts in the order of chunks.
//
// Constants. ELEMENT; INDEX: int, or i64 where 2^31 elements are exceeded; FLIP; FILTERS, MULTIPLIER, BATCH; lists by axis
// D, H, W: X_SIZES, Y_SIZES, TAPS, STRIDES, DILATIONS, PADS (before); distances in elements: X_N, X_C, X_AXES, Y_N, Y_C,
// Y_AXES; CHUNKS, TILE_TAPS, CHANNEL_THREADS, POINT_THREADS (a power of two).

typedef accumulator<ELEMENT> Sum;

struct Axes {
  int at[3];
};
constexpr Axes x_size = {{X_SIZES}}, y_size = {{Y_SIZES}}, taps = {{TAPS}}, stride = {{STRIDES}};
constexpr Axes dilation = {{DILATIONS}}, pad = {{PADS}};
struct Distances {
  INDEX at[3];
};
constexpr Distances x_axis = {{X_AXES}}, y_axis = {{Y_AXES}};
constexpr int all_taps = taps.at[0] * taps.at[1] * taps.at[2];
constexpr INDEX points = (INDEX)BATCH * y_size.at[0] * y_size.at[1] * y_size.at[2];

extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS * POINT_THREADS)
    partial(const ELEMENT* __restrict__ x, const ELEMENT* __restrict__ dy, Sum* __restrict__ parts) {
  constexpr int tap_blocks = ceil_div(all_taps, TILE_TAPS), channel_blocks = ceil_div(FILTERS, CHANNEL_THREADS);
  constexpr INDEX chunk_points = ceil_div(points, (INDEX)CHUNKS);
  __shared__ Sum pairs[POINT_THREADS][CHANNEL_THREADS];

  const int first_tap = (int)(blockIdx.x % tap_blocks) * TILE_TAPS;
  const int filter = (int)(blockIdx.x / tap_blocks % channel_blocks) * CHANNEL_THREADS + threadIdx.x;
  const int chunk = (int)(blockIdx.x / tap_blocks / channel_blocks);
  const int channel = min(filter, FILTERS - 1);
  const INDEX begin = chunk * chunk_points, end = min(begin + chunk_points, points);

  Sum sums[TILE_TAPS];
#pragma unroll
  for (int t = 0; t < TILE_TAPS; t++) sums[t] = 0;
  for (INDEX point = begin + threadIdx.y; point < end; point += POINT_THREADS) {
    const int w = (int)(point % y_size.at[2]), h = (int)(point / y_size.at[2] % y_size.at[1]);
    const int d = (int)(point / y_size.at[2] / y_size.at[1] % y_size.at[0]);
    const INDEX image = point / y_size.at[2] / y_size.at[1] / y_size.at[0];
    const Sum slope =
        widen(dy[image * Y_N + channel * (INDEX)Y_C + d * y_axis.at[0] + h * y_axis.at[1] + w * y_axis.at[2]]);
    const ELEMENT* const from = x + image * X_N + channel / MULTIPLIER * (INDEX)X_C;
#pragma unroll
    for (int t = 0; t < TILE_TAPS; t++) {
      const int tap = first_tap + t;
      const int at_w = w * stride.at[2] - pad.at[2] + tap % taps.at[2] * dilation.at[2];
      const int at_h = h * stride.at[1] - pad.at[1] + tap / taps.at[2] % taps.at[1] * dilation.at[1];
      const int at_d = d * stride.at[0] - pad.at[0] + tap / taps.at[2] / taps.at[1] * dilation.at[0];
      if (tap < all_taps && within(at_d, x_size.at[0]) && within(at_h, x_size.at[1]) && within(at_w, x_size.at[2]))
        sums[t] += slope * widen(from[at_d * x_axis.at[0] + at_h * x_axis.at[1] + at_w * x_axis.at[2]]);
    }
  }

#pragma unroll
  for (int t = 0; t < TILE_TAPS; t++) {
    pairs[threadIdx.y][threadIdx.x] = sums[t];
    __syncthreads();
    for (int half = POINT_THREADS / 2; half; half /= 2) {
      if (threadIdx.y < half) pairs[threadIdx.y][threadIdx.x] += pairs[threadIdx.y + half][threadIdx.x];
      __syncthreads();
    }
    if (threadIdx.y == 0 && filter < FILTERS && first_tap + t < all_taps)
      parts[((INDEX)chunk * FILTERS + filter) * all_taps + first_tap + t] = pairs[0][threadIdx.x];
    __syncthreads();
  }
}

extern "C" __global__ void total(const Sum* __restrict__ parts, ELEMENT* __restrict__ dw) {
  const INDEX i = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (INDEX)FILTERS * all_taps) return;
  Sum sum = 0;
  for (int chunk = 0; chunk < CHUNKS; chunk++) sum += parts[(INDEX)chunk * FILTERS * all_taps + i];
  const INDEX filter = i / all_taps, tap = i % all_taps;
  dw[filter * all_taps + (FLIP ? all_taps - 1 - tap : tap)] = narrow<ELEMENT>(sum);
}
