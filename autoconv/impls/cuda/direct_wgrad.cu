// Gradient of the filters, directly, any rank: no scratch memory, and the same bits in every run.
//
// Indices. A "point" is a place of the output gradient, flattened over images and spatial axes in the order of memory;
// a "tap" a place of the filter, flattened. dw[k][c][tap] sums dy[k] at a point times x[c] where that tap looks:
// point * STRIDES - PADS + tap * DILATIONS along each axis.
//
// Block map. blockIdx.x = ((group * K_BLOCKS + k) * C_BLOCKS + c) * TAP_BLOCKS + taps: a block owns TILE_K x TILE_C x
// TILE_TAPS gradients and sums them over all points, so that nothing is added across blocks. Blocks that share dy are
// neighbours in time. Each thread sums the whole tile in registers, over the points threadIdx.x, + THREADS, ...; then
// the lanes of each warp are added in pairs and the warps in order: a fixed order, whatever the schedule.
//
// Memory. Neighbouring threads read neighbouring points; a point costs TILE_K + TILE_C * TILE_TAPS loads for
// TILE_K * TILE_C * TILE_TAPS multiply-adds, 16 for 64 with the tile 8 x 8. Tiles at the edge read the last channel
// again and leave its sum unused. With channels innermost (X_C == 1) X_PACK and Y_PACK channels are one load.
// Coordinates move on by constant steps, digit by digit, without division.
//
// Constants. ELEMENT; INDEX: int, or i64 where 2^31 elements or places are exceeded; RANK; FLIP; lists by axis: X_SIZES,
// Y_SIZES, TAPS, STRIDES, DILATIONS, PADS (before); BATCH, GROUPS, C, K (per group); distances in elements: X_N, X_C,
// X_AXES, Y_N, Y_C, Y_AXES; BATCH_INNERMOST: images are innermost in memory (chwn), so points count images first;
// THREADS (a multiple of 32), TILE_K, TILE_C, TILE_TAPS, X_PACK, Y_PACK.

typedef accumulator<ELEMENT> Sum;

constexpr int k_blocks = ceil_div(K, TILE_K), c_blocks = ceil_div(C, TILE_C);
constexpr int tile = TILE_K * TILE_C * TILE_TAPS, warps = THREADS / 32;

__device__ constexpr int product(const int (&sizes)[RANK]) {
  int all = 1;
  for (int axis = 0; axis < RANK; axis++) all *= sizes[axis];
  return all;
}

// A point's image and place, as the digits of a number in mixed radix; `size` is the radix, least digit last.
__device__ constexpr INDEX digit_size(int digit) {
  constexpr INDEX sizes[RANK] = {Y_SIZES};
  if (BATCH_INNERMOST) return digit == RANK ? BATCH : sizes[digit];
  return digit == 0 ? BATCH : sizes[digit - 1];
}
struct Digits {
  INDEX digit[RANK + 1];
  __device__ __forceinline__ INDEX image() const { return digit[BATCH_INNERMOST ? RANK : 0]; }
  __device__ __forceinline__ INDEX at(int axis) const { return digit[BATCH_INNERMOST ? axis : axis + 1]; }
};
__device__ __forceinline__ Digits digits_of(INDEX number) {
  Digits digits;
#pragma unroll
  for (int i = RANK; i > 0; i--) {
    digits.digit[i] = number % digit_size(i);
    number /= digit_size(i);
  }
  digits.digit[0] = number;
  return digits;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gradient(const ELEMENT* __restrict__ x, const ELEMENT* __restrict__ dy, ELEMENT* __restrict__ dw) {
  constexpr INDEX x_sizes[RANK] = {X_SIZES}, x_axes[RANK] = {X_AXES}, y_axes[RANK] = {Y_AXES}, pads[RANK] = {PADS};
  constexpr int taps[RANK] = {TAPS}, strides[RANK] = {STRIDES}, dilations[RANK] = {DILATIONS};
  constexpr int all_taps = product(taps), tap_blocks = ceil_div(all_taps, TILE_TAPS);
  __shared__ Sum parts[warps][tile];

  int block = (int)blockIdx.x;
  const int first_tap = block % tap_blocks * TILE_TAPS;
  block /= tap_blocks;
  const int first_c = block % c_blocks * TILE_C;
  block /= c_blocks;
  const int first_k = block % k_blocks * TILE_K, group = block / k_blocks;

  // What a tap adds to a point's place in x.
  INDEX reach[TILE_TAPS][RANK];
#pragma unroll
  for (int t = 0; t < TILE_TAPS; t++) {
    int rest = min(first_tap + t, all_taps - 1);
#pragma unroll
    for (int axis = RANK - 1; axis >= 0; axis--) {
      reach[t][axis] = (INDEX)(rest % taps[axis]) * dilations[axis] - pads[axis];
      rest /= taps[axis];
    }
  }

  Sum sums[TILE_K][TILE_C][TILE_TAPS];
#pragma unroll
  for (int k = 0; k < TILE_K; k++)
#pragma unroll
    for (int c = 0; c < TILE_C; c++)
#pragma unroll
      for (int t = 0; t < TILE_TAPS; t++) sums[k][c][t] = 0;

  const ELEMENT* const x_group = x + group * (INDEX)C * (INDEX)X_C;
  const ELEMENT* const dy_group = dy + group * (INDEX)K * (INDEX)Y_C;
  Digits point = digits_of(threadIdx.x);
  const Digits stride = digits_of(THREADS);
  while (point.digit[0] < digit_size(0)) {
    INDEX from = point.image() * (INDEX)Y_N;
#pragma unroll
    for (int axis = 0; axis < RANK; axis++) from += point.at(axis) * y_axes[axis];
    Sum slope[TILE_K];
#pragma unroll
    for (int k = 0; k < TILE_K; k += Y_PACK) {
      const int channel = min(first_k + k, K - Y_PACK);
      const Pack<ELEMENT, Y_PACK> values = load_pack<Y_PACK>(dy_group + from + channel * (INDEX)Y_C);
#pragma unroll
      for (int i = 0; i < Y_PACK; i++) slope[k + i] = widen(values.lane[i]);
    }
#pragma unroll
    for (int t = 0; t < TILE_TAPS; t++) {
      INDEX place = point.image() * (INDEX)X_N;
      bool there = true;
#pragma unroll
      for (int axis = 0; axis < RANK; axis++) {
        const INDEX at = point.at(axis) * strides[axis] + reach[t][axis];
        there &= within(at, x_sizes[axis]);
        place += at * x_axes[axis];
      }
#pragma unroll
      for (int c = 0; c < TILE_C; c += X_PACK) {
        const int channel = min(first_c + c, C - X_PACK);
        Pack<ELEMENT, X_PACK> values = {};
        if (there) values = load_pack<X_PACK>(x_group + place + channel * (INDEX)X_C);
#pragma unroll
        for (int i = 0; i < X_PACK; i++) {
          const Sum value = widen(values.lane[i]);
#pragma unroll
          for (int k = 0; k < TILE_K; k++) sums[k][c + i][t] += slope[k] * value;
        }
      }
    }
    INDEX carry = 0;
#pragma unroll
    for (int i = RANK; i > 0; i--) {
      point.digit[i] += stride.digit[i] + carry;
      carry = point.digit[i] >= digit_size(i);
      if (carry) point.digit[i] -= digit_size(i);
    }
    point.digit[0] += stride.digit[0] + carry;
  }

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int k = 0; k < TILE_K; k++)
#pragma unroll
    for (int c = 0; c < TILE_C; c++)
#pragma unroll
      for (int t = 0; t < TILE_TAPS; t++) {
        const Sum sum = warp_sum(sums[k][c][t]);
        if (lane == 0) parts[warp][(k * TILE_C + c) * TILE_TAPS + t] = sum;
      }
  __syncthreads();
  for (int i = threadIdx.x; i < tile; i += THREADS) {
    const int t = first_tap + i % TILE_TAPS, c = first_c + i / TILE_TAPS % TILE_C, k = first_k + i / TILE_TAPS / TILE_C;
    if (t >= all_taps || c >= C || k >= K) continue;
    Sum sum = 0;
    for (int w = 0; w < warps; w++) sum += parts[w][i];
    dw[(((INDEX)group * K + k) * C + c) * all_taps + (FLIP ? all_taps - 1 - t : t)] = narrow<ELEMENT>(sum);
  }
}
