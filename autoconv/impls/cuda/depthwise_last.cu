// Depthwise convolution of channels-last arrays, 1-D to 3-D: fprop, and dgrad as the gather that it is.
//
// Indices. As in depthwise.cu: axes D, H, W; a place of the lattice of results (of one phase of dgrad's); its taps.
//
// Block map. blockIdx.x = (phase * PLACE_BLOCKS + places) * CHANNEL_BLOCKS + channels. Threads: x along channels, PACK
// neighbours each, which one load of up to 16 bytes takes; y along places, each a strip of STRIP results of a row. Strips are
// counted over images, D, H and strips of a row, flattened. With m > 1 filters per channel PACK is 1, and threads are
// counted along the result's channels.
//
// Memory. Data is read from global memory, a warp 512 neighbouring bytes at a time where there are 128 channels; the taps'
// re-reading hits L1. Columns of a row are read as the first tap needs them and stay in registers for the others: a row
// of taps costs STRIP - 1 + S loads for STRIP * S * PACK multiply-adds. Filters are staged in shared memory, ROWS rows
// of taps at a time, by tap and then channel, so that neighbouring threads read neighbouring banks.
// 3x3 filters are held by the device's memory (8 bytes for 9 multiply-adds); from some 50 taps on arithmetic decides.
//
// Constants. Those of depthwise.cu, less its tiles; PACK, STRIP, ROWS, CHANNEL_THREADS, PLACE_THREADS.

typedef accumulator<ELEMENT> Sum;

struct Axes {
  int at[3];
};
constexpr Axes data_size = {{DATA_SIZES}}, result_size = {{RESULT_SIZES}}, taps = {{TAPS}}, stride = {{STRIDES}};
constexpr Axes dilation = {{DILATIONS}}, pad = {{PADS}};

template <int AXIS>
struct Reach {
  static constexpr int step = DGRAD ? 1 : stride.at[AXIS];
  static constexpr int places = DGRAD ? ceil_div(result_size.at[AXIS], stride.at[AXIS]) : result_size.at[AXIS];
  static constexpr int phases = DGRAD ? stride.at[AXIS] : 1;
  static __device__ __forceinline__ constexpr bool counts(int phase, int tap) {
    return !DGRAD || (phase + pad.at[AXIS] - tap * dilation.at[AXIS]) % stride.at[AXIS] == 0;
  }
  static __device__ __forceinline__ constexpr int offset(int phase, int tap) {
    return DGRAD ? (phase + pad.at[AXIS] - tap * dilation.at[AXIS]) / stride.at[AXIS]
                 : tap * dilation.at[AXIS] - pad.at[AXIS];
  }
};
typedef Reach<0> Deep;
typedef Reach<1> High;
typedef Reach<2> Wide;

constexpr int R = taps.at[1], S = taps.at[2], filter_taps = taps.at[0] * R * S;
constexpr int data_channels = DGRAD ? CHANNELS * MULTIPLIER : CHANNELS;
constexpr int result_channels = DGRAD ? CHANNELS : CHANNELS * MULTIPLIER;
constexpr int block_channels = CHANNEL_THREADS * PACK, threads = CHANNEL_THREADS * PLACE_THREADS;
constexpr int strips = ceil_div(Wide::places, STRIP);
constexpr int sum_pack = PACK % (16 / (int)sizeof(Sum)) ? 1 : 16 / (int)sizeof(Sum);

// Taps in the order in which they look further to the right, so that columns are read from left to right.
__device__ __forceinline__ constexpr int nth_tap(int n) { return DGRAD ? S - 1 - n : n; }

template <int PHASE>
__device__ __forceinline__ constexpr int lowest() {  // offset of the first tap that counts
  for (int n = 0; n < S; n++)
    if (Wide::counts(PHASE, nth_tap(n))) return Wide::offset(PHASE, nth_tap(n));
  return 0;
}
template <int PHASE>
__device__ __forceinline__ constexpr int highest() {
  int offset = lowest<PHASE>();
  for (int n = 0; n < S; n++)
    if (Wide::counts(PHASE, nth_tap(n))) offset = Wide::offset(PHASE, nth_tap(n));
  return offset;
}

// Adds what one row of taps gives to a strip: `row` is the data's at column 0, `left` the column under the first place.
template <int PHASE>
__device__ __forceinline__ void add_row(Sum (&sums)[STRIP][PACK], const ELEMENT* row, int left, const Sum* filter) {
  constexpr int low = lowest<PHASE>(), columns = (STRIP - 1) * Wide::step + highest<PHASE>() - low + 1;
  Pack<ELEMENT, PACK> window[columns];
  int read = 0;
#pragma unroll
  for (int n = 0; n < S; n++) {
    if (!Wide::counts(PHASE, nth_tap(n))) continue;
    const int from = Wide::offset(PHASE, nth_tap(n)) - low;
#pragma unroll
    for (int i = 0; i < columns; i++) {
      if (i < read || i > from + (STRIP - 1) * Wide::step) continue;
      window[i] = Pack<ELEMENT, PACK>{};
      if (within(left + low + i, data_size.at[2]))
        window[i] = load_pack<PACK>(row + (INDEX)(left + low + i) * data_channels);
    }
    read = from + (STRIP - 1) * Wide::step + 1;
    Sum weights[PACK];
#pragma unroll
    for (int lane = 0; lane < PACK; lane += sum_pack) {
      const Pack<Sum, sum_pack> some = load_pack<sum_pack>(filter + nth_tap(n) * block_channels + lane);
#pragma unroll
      for (int i = 0; i < sum_pack; i++) weights[lane + i] = some.lane[i];
    }
#pragma unroll
    for (int place = 0; place < STRIP; place++)
#pragma unroll
      for (int lane = 0; lane < PACK; lane++)
        sums[place][lane] += widen(window[place * Wide::step + from].lane[lane]) * weights[lane];
  }
}
template <int PHASE>
struct RowOf {
  static __device__ __forceinline__ void add(int phase, Sum (&sums)[STRIP][PACK], const ELEMENT* row, int left,
                                             const Sum* filter) {
    if (phase == PHASE)
      add_row<PHASE>(sums, row, left, filter);
    else
      RowOf<PHASE - 1>::add(phase, sums, row, left, filter);
  }
};
template <>
struct RowOf<-1> {
  static __device__ __forceinline__ void add(int, Sum (&)[STRIP][PACK], const ELEMENT*, int, const Sum*) {}
};

extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS * PLACE_THREADS)
    convolve(const ELEMENT* __restrict__ data, const ELEMENT* __restrict__ filters, ELEMENT* __restrict__ result) {
  DYNAMIC_SHARED(Sum, staged);  // ROWS x S x block_channels
  constexpr int channel_blocks = ceil_div(result_channels, block_channels);
  constexpr INDEX items = (INDEX)BATCH * Deep::places * High::places * strips;
  constexpr INDEX place_blocks = ceil_div(items, (INDEX)PLACE_THREADS);

  INDEX block = blockIdx.x;
  const int first_channel = (int)(block % channel_blocks) * block_channels, own = threadIdx.x * PACK;
  block /= channel_blocks;
  const INDEX item = block % place_blocks * PLACE_THREADS + threadIdx.y;
  block /= place_blocks;
  const int phase_w = (int)(block % Wide::phases), phase_h = (int)(block / Wide::phases % High::phases);
  const int phase_d = (int)(block / Wide::phases / High::phases);
  const int thread = threadIdx.y * CHANNEL_THREADS + threadIdx.x, channel = first_channel + own;
  const bool active = item < items && channel < result_channels;

  const int place_w = (int)(item % strips) * STRIP, place_h = (int)(item / strips % High::places);
  const int place_d = (int)(item / strips / High::places % Deep::places);
  const INDEX image = item / strips / High::places / Deep::places;

  Sum sums[STRIP][PACK];
#pragma unroll
  for (int i = 0; i < STRIP; i++)
#pragma unroll
    for (int lane = 0; lane < PACK; lane++) sums[i][lane] = 0;

  for (int j = 0; j < (DGRAD ? MULTIPLIER : 1); j++) {
    const int from_channel = DGRAD ? channel * MULTIPLIER + j : channel / MULTIPLIER;
    for (int t = 0; t < taps.at[0]; t++) {
      for (int first_row = 0; first_row < R; first_row += ROWS) {
        __syncthreads();
        for (int i = thread; i < ROWS * S * block_channels; i += threads) {
          const int tap = i % (ROWS * S), c = i / (ROWS * S), r = first_row + tap / S;
          Sum value = 0;
          if (r < R && first_channel + c < result_channels) {
            const int place = (t * R + first_row) * S + tap;
            const INDEX which = DGRAD ? (first_channel + c) * MULTIPLIER + j : first_channel + c;
            value = widen(filters[which * filter_taps + (FLIP ? filter_taps - 1 - place : place)]);
          }
          staged[tap * block_channels + c] = value;
        }
        __syncthreads();
        const int d = place_d * Deep::step + Deep::offset(phase_d, t);
        if (!active || !Deep::counts(phase_d, t) || !within(d, data_size.at[0])) continue;
        for (int r = 0; r < ROWS && first_row + r < R; r++) {
          const int h = place_h * High::step + High::offset(phase_h, first_row + r);
          if (!High::counts(phase_h, first_row + r) || !within(h, data_size.at[1])) continue;
          const INDEX line = (image * data_size.at[0] + d) * data_size.at[1] + h;
          RowOf<Wide::phases - 1>::add(phase_w, sums, data + line * data_size.at[2] * data_channels + from_channel,
                                       place_w * Wide::step, staged + r * S * block_channels + own);
        }
      }
    }
  }

  const int at_d = DGRAD ? place_d * stride.at[0] + phase_d : place_d;
  const int at_h = DGRAD ? place_h * stride.at[1] + phase_h : place_h;
  if (!active || at_d >= result_size.at[0] || at_h >= result_size.at[1]) return;
  const INDEX line = (image * result_size.at[0] + at_d) * result_size.at[1] + at_h;
#pragma unroll
  for (int i = 0; i < STRIP; i++) {
    const int at_w = DGRAD ? (place_w + i) * stride.at[2] + phase_w : place_w + i;
    if (at_w >= result_size.at[2]) continue;
    Pack<ELEMENT, PACK> values;
#pragma unroll
    for (int lane = 0; lane < PACK; lane++) values.lane[lane] = narrow<ELEMENT>(sums[i][lane]);
    store_pack<PACK>(result + (line * result_size.at[2] + at_w) * result_channels + channel, values);
  }
}
