// Direct convolution, any rank: fprop, and dgrad as the gather that it is. No scratch memory.
//
// Indices. A "point" is a place of the result, flattened over images and spatial axes in the order of memory; a "tap"
// is a place of the filter, flattened. K counts the result's channels of a group, C those summed over (dgrad: the
// forward problem's the other way round). Along each axis a result at point o sums over taps t what the data holds at
//     fprop:  o * STRIDES - PADS + t * DILATIONS
//     dgrad:  j + (phase + PADS - t * DILATIONS) / STRIDES, where o = j * STRIDES + phase and the division is exact.
// A dgrad block does points of one phase, so which taps count is the same for all its threads: none is idle, and stride
// costs no multiplications with zeros.
//
// Block map. blockIdx.x = ((phase * POINT_BLOCKS + points) * GROUPS + group) * CHANNEL_BLOCKS + channels: blocks that
// read the same data are neighbours in time. Only x is used: y and z end at 65535 blocks. Threads: x along points, y
// along channels. A thread sums POINTS x CHANNELS results in registers: points threadIdx.x, + blockDim.x, ..., so that a
// warp reads 32 neighbours of an image row at a time; channels threadIdx.y * CHANNELS + 0, 1, ...
//
// Memory. Filters go through shared memory, TAPS_AT_ONCE taps by DEPTH channels by the block's channels, in the type
// that is summed; all lanes of a warp read the same CHANNELS values, 16 bytes per instruction, without conflicts. Each
// tap's slice is 16 bytes longer than its values, so that the staging threads, which read filters in the order of
// memory (taps first), write to different banks. Data comes from global memory through L1, where the taps' re-reading
// hits: per channel a thread issues POINTS loads and CHANNELS / 4 shared loads for POINTS * CHANNELS multiply-adds, with
// 4 x 8 six instructions of the load unit (one a clock) beside 32 of the arithmetic units (four a clock, 128 lanes).
// With channels innermost (DATA_C == 1) DATA_PACK channels are one load, RESULT_PACK results one store.
//
// Constants. ELEMENT; INDEX: int, or i64 where 2^31 elements or places are exceeded; RANK; DGRAD: 0 or 1; FLIP;
// lists by axis: DATA_SIZES, RESULT_SIZES, TAPS, STRIDES, DILATIONS, PADS (before); BATCH, GROUPS, C, K (per group);
// distances in elements: DATA_N, DATA_C, DATA_AXES, RESULT_N, RESULT_C, RESULT_AXES, FILTER_GROUP, FILTER_K, FILTER_C;
// BATCH_INNERMOST: images are innermost in memory (chwn), so points count images first;
// POINT_THREADS, CHANNEL_THREADS, POINTS, CHANNELS, DEPTH, TAPS_AT_ONCE, DATA_PACK, RESULT_PACK.

typedef accumulator<ELEMENT> Sum;

constexpr int block_channels = CHANNEL_THREADS * CHANNELS;
constexpr int block_points = POINT_THREADS * POINTS;
constexpr int threads = POINT_THREADS * CHANNEL_THREADS;
constexpr int channel_blocks = ceil_div(K, block_channels);
constexpr int filter_pack = CHANNELS % (16 / (int)sizeof(Sum)) ? 1 : 16 / (int)sizeof(Sum);
constexpr int slice = DEPTH * block_channels + 16 / (int)sizeof(Sum);  // of shared memory, per tap

__device__ constexpr int product(const int (&sizes)[RANK], int count) {
  int all = 1;
  for (int axis = 0; axis < count; axis++) all *= sizes[axis];
  return all;
}
__device__ constexpr INDEX lattice_size(int axis) {  // points along an axis: of the result, or of one phase of it
  constexpr INDEX sizes[RANK] = {RESULT_SIZES};
  constexpr int strides[RANK] = {STRIDES};
  return DGRAD ? (INDEX)ceil_div((i64)sizes[axis], (i64)strides[axis]) : sizes[axis];
}
__device__ constexpr INDEX count_points() {
  INDEX all = BATCH;
  for (int axis = 0; axis < RANK; axis++) all *= lattice_size(axis);
  return all;
}

struct Point {
  INDEX image, at[RANK];
};

__device__ __forceinline__ Point point_of(INDEX number) {
  Point point;
  if (BATCH_INNERMOST) {
    point.image = number % BATCH;
    number /= BATCH;
  }
#pragma unroll
  for (int axis = RANK - 1; axis > 0; axis--) {
    point.at[axis] = number % lattice_size(axis);
    number /= lattice_size(axis);
  }
  if (BATCH_INNERMOST) {
    point.at[0] = number;
  } else {
    point.at[0] = number % lattice_size(0);
    point.image = number / lattice_size(0);
  }
  return point;
}

extern "C" __global__ void __launch_bounds__(POINT_THREADS * CHANNEL_THREADS)
    convolve(const ELEMENT* __restrict__ data, const ELEMENT* __restrict__ filters, ELEMENT* __restrict__ result) {
  constexpr INDEX data_sizes[RANK] = {DATA_SIZES}, data_axes[RANK] = {DATA_AXES}, pads[RANK] = {PADS};
  constexpr INDEX result_sizes[RANK] = {RESULT_SIZES}, result_axes[RANK] = {RESULT_AXES};
  constexpr int taps[RANK] = {TAPS}, strides[RANK] = {STRIDES}, dilations[RANK] = {DILATIONS};
  constexpr int all_taps = product(taps, RANK), last = RANK - 1;
  constexpr INDEX points = count_points(), point_blocks = ceil_div(points, (INDEX)block_points);
  DYNAMIC_SHARED(Sum, staged);

  INDEX block = blockIdx.x;
  const int first_channel = (int)(block % channel_blocks) * block_channels;
  block /= channel_blocks;
  const int group = (int)(block % GROUPS);
  block /= GROUPS;
  const INDEX first_point = block % point_blocks * block_points + threadIdx.x;
  int phase[RANK];
  block /= point_blocks;
#pragma unroll
  for (int axis = last; axis >= 0; axis--) {
    phase[axis] = DGRAD ? (int)(block % strides[axis]) : 0;
    block /= strides[axis];
  }
  const int thread = threadIdx.y * POINT_THREADS + threadIdx.x;

  // Where each point's taps begin: in the data, before the tap's own step, and in memory, at its image and group.
  INDEX at[POINTS][RANK], base[POINTS];
#pragma unroll
  for (int p = 0; p < POINTS; p++) {
    const INDEX number = first_point + p * POINT_THREADS;
    const Point point = point_of(number < points ? number : 0);
    base[p] = point.image * (INDEX)DATA_N + group * (INDEX)C * (INDEX)DATA_C;
#pragma unroll
    for (int axis = 0; axis < RANK; axis++)
      at[p][axis] = DGRAD ? point.at[axis] : point.at[axis] * strides[axis] - pads[axis];
  }

  Sum sums[POINTS][CHANNELS];
#pragma unroll
  for (int p = 0; p < POINTS; p++)
#pragma unroll
    for (int k = 0; k < CHANNELS; k++) sums[p][k] = 0;

  for (int first_c = 0; first_c < C; first_c += DEPTH) {
    for (int first_tap = 0; first_tap < all_taps; first_tap += TAPS_AT_ONCE) {
      __syncthreads();
      for (int i = thread; i < TAPS_AT_ONCE * DEPTH * block_channels; i += threads) {
        const int tap = i % TAPS_AT_ONCE, c = i / TAPS_AT_ONCE % DEPTH, k = i / TAPS_AT_ONCE / DEPTH;
        Sum value = 0;
        if (first_tap + tap < all_taps && first_c + c < C && first_channel + k < K) {
          const int place = FLIP ? all_taps - 1 - first_tap - tap : first_tap + tap;
          value = widen(filters[group * (INDEX)FILTER_GROUP + (first_channel + k) * (INDEX)FILTER_K +
                                (first_c + c) * (INDEX)FILTER_C + place]);
        }
        staged[tap * slice + c * block_channels + k] = value;
      }
      __syncthreads();

      INDEX row[POINTS];
      bool row_there[POINTS], row_counts = true;
      for (int tap = 0; tap < TAPS_AT_ONCE; tap++) {
        if (first_tap + tap >= all_taps) break;
        const int column_tap = (first_tap + tap) % taps[last];
        if (tap == 0 || column_tap == 0) {  // a new row of taps: all axes but the last
          INDEX step[RANK];
          int rest = (first_tap + tap) / taps[last];
          row_counts = true;
#pragma unroll
          for (int axis = last - 1; axis >= 0; axis--) {
            const INDEX reach = (INDEX)(rest % taps[axis]) * dilations[axis];
            const INDEX way = phase[axis] + pads[axis] - reach;
            step[axis] = DGRAD ? way / strides[axis] : reach;
            row_counts &= !DGRAD || way % strides[axis] == 0;
            rest /= taps[axis];
          }
#pragma unroll
          for (int p = 0; p < POINTS; p++) {
            row[p] = base[p];
            row_there[p] = first_point + p * POINT_THREADS < points;
#pragma unroll
            for (int axis = 0; axis < last; axis++) {
              const INDEX place = at[p][axis] + step[axis];
              row_there[p] &= within(place, data_sizes[axis]);
              row[p] += place * data_axes[axis];
            }
          }
        }
        const INDEX reach = (INDEX)column_tap * dilations[last], way = phase[last] + pads[last] - reach;
        if (!row_counts || (DGRAD && way % strides[last])) continue;
        const INDEX step = DGRAD ? way / strides[last] : reach;
        const ELEMENT* from[POINTS];
        bool there[POINTS];
#pragma unroll
        for (int p = 0; p < POINTS; p++) {
          const INDEX place = at[p][last] + step;
          there[p] = row_there[p] && within(place, data_sizes[last]);
          from[p] = data + (there[p] ? row[p] + place * data_axes[last] + first_c * (INDEX)DATA_C : 0);
        }
#pragma unroll
        for (int c = 0; c < DEPTH; c += DATA_PACK) {
          if (C % DEPTH && first_c + c >= C) break;
          Pack<ELEMENT, DATA_PACK> values[POINTS] = {};
#pragma unroll
          for (int p = 0; p < POINTS; p++)
            if (there[p]) values[p] = load_pack<DATA_PACK>(from[p] + c * (INDEX)DATA_C);
#pragma unroll
          for (int lane = 0; lane < DATA_PACK; lane++) {
            const Sum* weights = staged + tap * slice + (c + lane) * block_channels + threadIdx.y * CHANNELS;
#pragma unroll
            for (int k = 0; k < CHANNELS; k += filter_pack) {
              const Pack<Sum, filter_pack> weight = load_pack<filter_pack>(weights + k);
#pragma unroll
              for (int p = 0; p < POINTS; p++) {
                const Sum value = widen(values[p].lane[lane]);
#pragma unroll
                for (int i = 0; i < filter_pack; i++) sums[p][k + i] += value * weight.lane[i];
              }
            }
          }
        }
      }
    }
  }

  const int own_channel = first_channel + threadIdx.y * CHANNELS;
#pragma unroll
  for (int p = 0; p < POINTS; p++) {
    const INDEX number = first_point + p * POINT_THREADS;
    if (number >= points) continue;
    const Point point = point_of(number);
    INDEX to = point.image * (INDEX)RESULT_N + (group * (INDEX)K + own_channel) * (INDEX)RESULT_C;
    bool there = true;
#pragma unroll
    for (int axis = 0; axis < RANK; axis++) {
      const INDEX place = DGRAD ? point.at[axis] * strides[axis] + phase[axis] : point.at[axis];
      there &= place < result_sizes[axis];
      to += place * result_axes[axis];
    }
    if (!there) continue;
#pragma unroll
    for (int k = 0; k < CHANNELS; k += RESULT_PACK) {
      if (own_channel + k >= K) break;
      Pack<ELEMENT, RESULT_PACK> values;
#pragma unroll
      for (int i = 0; i < RESULT_PACK; i++) values.lane[i] = narrow<ELEMENT>(sums[p][k + i]);
      store_pack<RESULT_PACK>(result + to + k * (INDEX)RESULT_C, values);
    }
  }
}
