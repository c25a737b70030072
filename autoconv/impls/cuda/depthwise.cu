// Depthwise convolution of channels-first arrays, 1-D to 3-D: fprop, and dgrad as the gather that it is.
//
// Indices. A "plane" is one channel of one image; m filters belong to each channel (MULTIPLIER). The axes are D, H, W,
// those missing have size 1. A "place" is a point of the lattice of results: all of them for fprop; for dgrad those of
// one phase, place * STRIDES + phase. Along each axis a place looks, for tap t, at
//     fprop:  place * STRIDES + t * DILATIONS - PADS
//     dgrad:  place + (phase + PADS - t * DILATIONS) / STRIDES, where the division is exact.
//
// Block map. blockIdx.x = (((phase * PLANE_BLOCKS + planes) * PLACES_D + d) * TILES_H + tile_h) * TILES_W + tile_w.
// A block does TILE_H x TILE_W places of PLANES planes. Its threads: TILE_H rows, fastest; then PLANES; then TILE_W / STRIP
// strips. A thread sums STRIP neighbouring results of a row in registers.
//
// Memory. The window that the block's places look at is read once, row by row (coalesced), widened, padded with zeros,
// into shared memory; for volumes one frame of it after another. Lanes lie along the rows of the tile, and rows are an
// odd number of words apart, so a warp reads 32 different banks (two-way conflicts at stride 2, where memory decides).
// A row of taps costs a thread STRIP - 1 + S reads, and S / 4 broadcasts of 16 bytes for the filter, for STRIP * S
// multiply-adds: with STRIP = 8 the arithmetic decides from some 9 taps a row on, below that the device's memory does.
// Results go through shared memory as well, so that they are written along rows.
// One image row of a signal is no tile: there PLANES takes the place of rows. Images smaller than a tile share a block.
//
// Constants. ELEMENT; INDEX: int, or i64 where 2^31 elements are exceeded; DGRAD, FLIP: 0 or 1; CHANNELS, MULTIPLIER,
// BATCH; lists by axis D, H, W: DATA_SIZES, RESULT_SIZES, TAPS, STRIDES, DILATIONS, PADS (before);
// TILE_H, TILE_W, STRIP, PLANES.

typedef accumulator<ELEMENT> Sum;

struct Axes {
  int at[3];
};
constexpr Axes data_size = {{DATA_SIZES}}, result_size = {{RESULT_SIZES}}, taps = {{TAPS}}, stride = {{STRIDES}};
constexpr Axes dilation = {{DILATIONS}}, pad = {{PADS}};

__host__ __device__ constexpr int floor_div(int count, int size) {
  return count >= 0 ? count / size : -((size - 1 - count) / size);
}
// The step of places in the data, and the first and last that any tap of any phase looks at from place 0.
template <int AXIS>
struct Reach {
  static constexpr int step = DGRAD ? 1 : stride.at[AXIS];
  static constexpr int far = (taps.at[AXIS] - 1) * dilation.at[AXIS];
  static constexpr int low = DGRAD ? floor_div(pad.at[AXIS] - far, stride.at[AXIS]) : -pad.at[AXIS];
  static constexpr int high =
      DGRAD ? floor_div(stride.at[AXIS] - 1 + pad.at[AXIS], stride.at[AXIS]) : far - pad.at[AXIS];
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
constexpr int strips = TILE_W / STRIP, threads = TILE_H * PLANES * strips;
constexpr int window_h = (TILE_H - 1) * High::step + High::high - High::low + 1;
constexpr int window_w = (TILE_W - 1) * Wide::step + Wide::high - Wide::low + 1;
constexpr int pitch = window_w | 1, result_pitch = TILE_W | 1;
constexpr int filter_pack = 16 / (int)sizeof(Sum), filter_pitch = ceil_div(S, filter_pack) * filter_pack;
constexpr int columns = (STRIP - 1) * Wide::step + Wide::high - Wide::low + 1;  // that one strip looks at
constexpr INDEX planes = (INDEX)BATCH * CHANNELS;
constexpr INDEX data_plane = (INDEX)data_size.at[0] * data_size.at[1] * data_size.at[2];
constexpr INDEX result_plane = (INDEX)result_size.at[0] * result_size.at[1] * result_size.at[2];

// Adds what one row of taps gives to a strip; `phase` is known when this is compiled, so that only taps that count cost.
template <int PHASE>
__device__ __forceinline__ void add_row(Sum (&sums)[STRIP], const Sum* row, const Sum* filter) {
  Sum window[columns];
#pragma unroll
  for (int i = 0; i < columns; i++) window[i] = row[i];  // those that no tap looks at are never read
#pragma unroll
  for (int first = 0; first < S; first += filter_pack) {
    const Pack<Sum, filter_pack> weights = load_pack<filter_pack>(filter + first);
#pragma unroll
    for (int i = 0; i < filter_pack; i++) {
      if (first + i >= S || !Wide::counts(PHASE, first + i)) continue;
      const int from = Wide::offset(PHASE, first + i) - Wide::low;
#pragma unroll
      for (int place = 0; place < STRIP; place++) sums[place] += window[place * Wide::step + from] * weights.lane[i];
    }
  }
}
template <int PHASE>
struct RowOf {
  static __device__ __forceinline__ void add(int phase, Sum (&sums)[STRIP], const Sum* row, const Sum* filter) {
    if (phase == PHASE)
      add_row<PHASE>(sums, row, filter);
    else
      RowOf<PHASE - 1>::add(phase, sums, row, filter);
  }
};
template <>
struct RowOf<-1> {
  static __device__ __forceinline__ void add(int, Sum (&)[STRIP], const Sum*, const Sum*) {}
};

extern "C" __global__ void __launch_bounds__(TILE_H * PLANES * (TILE_W / STRIP))
    convolve(const ELEMENT* __restrict__ data, const ELEMENT* __restrict__ filters, ELEMENT* __restrict__ result) {
  DYNAMIC_SHARED(Sum, shared);
  Sum* const filter = shared;  // PLANES x R x filter_pitch, first: it is read 16 bytes at a time
  Sum* const tile = filter + PLANES * R * filter_pitch;
  Sum* const results = tile + PLANES * window_h * pitch;

  constexpr int tiles_h = ceil_div(High::places, TILE_H), tiles_w = ceil_div(Wide::places, TILE_W);
  constexpr INDEX plane_blocks = ceil_div(planes, (INDEX)PLANES);
  INDEX block = blockIdx.x;
  const int first_w = (int)(block % tiles_w) * TILE_W;
  block /= tiles_w;
  const int first_h = (int)(block % tiles_h) * TILE_H;
  block /= tiles_h;
  const int place_d = (int)(block % Deep::places);
  block /= Deep::places;
  const INDEX first_plane = block % plane_blocks * PLANES;
  block /= plane_blocks;
  const int phase_w = (int)(block % Wide::phases), phase_h = (int)(block / Wide::phases % High::phases);
  const int phase_d = (int)(block / Wide::phases / High::phases);

  const int thread = threadIdx.x, row = thread % TILE_H, plane = thread / TILE_H % PLANES;
  const int strip = thread / TILE_H / PLANES * STRIP;
  Sum sums[STRIP];

  for (int j = 0; j < MULTIPLIER; j++) {
    if (j == 0 || !DGRAD) {
#pragma unroll
      for (int i = 0; i < STRIP; i++) sums[i] = 0;
    }
    for (int t = 0; t < taps.at[0]; t++) {
      const int frame = place_d * Deep::step + Deep::offset(phase_d, t);
      if (!Deep::counts(phase_d, t) || !within(frame, data_size.at[0])) continue;  // alike for the whole block
      __syncthreads();
      for (int i = thread; i < PLANES * R * S; i += threads) {
        const int which = i / (R * S), tap = i % (R * S);
        const INDEX number = first_plane + which;
        Sum value = 0;
        if (number < planes) {
          const int place = FLIP ? filter_taps - 1 - t * R * S - tap : t * R * S + tap;
          value = widen(filters[(number % CHANNELS * MULTIPLIER + j) * (INDEX)filter_taps + place]);
        }
        filter[(which * R + tap / S) * filter_pitch + tap % S] = value;
      }
      if (DGRAD || j == 0 || taps.at[0] > 1) {
        const int top = first_h * High::step + High::low, left = first_w * Wide::step + Wide::low;
        for (int i = thread; i < PLANES * window_h * window_w; i += threads) {
          const int w = i % window_w, h = i / window_w % window_h, which = i / window_w / window_h;
          const INDEX number = first_plane + which;
          Sum value = 0;
          if (number < planes && within(top + h, data_size.at[1]) && within(left + w, data_size.at[2])) {
            const INDEX from = (DGRAD ? number * MULTIPLIER + j : number) * data_plane;
            value = widen(data[from + ((INDEX)frame * data_size.at[1] + top + h) * data_size.at[2] + left + w]);
          }
          tile[(which * window_h + h) * pitch + w] = value;
        }
      }
      __syncthreads();
      for (int r = 0; r < R; r++) {
        if (!High::counts(phase_h, r)) continue;
        const int h = row * High::step + High::offset(phase_h, r) - High::low;
        RowOf<Wide::phases - 1>::add(phase_w, sums, tile + (plane * window_h + h) * pitch + strip * Wide::step,
                                     filter + (plane * R + r) * filter_pitch);
      }
    }
    if (DGRAD && j + 1 < MULTIPLIER) continue;

    __syncthreads();
#pragma unroll
    for (int i = 0; i < STRIP; i++) results[(plane * TILE_H + row) * result_pitch + strip + i] = sums[i];
    __syncthreads();
    for (int i = thread; i < PLANES * TILE_H * TILE_W; i += threads) {
      const int w = i % TILE_W, h = i / TILE_W % TILE_H, which = i / TILE_W / TILE_H;
      const INDEX number = first_plane + which;
      const int at_d = DGRAD ? place_d * stride.at[0] + phase_d : place_d;
      const int at_h = DGRAD ? (first_h + h) * stride.at[1] + phase_h : first_h + h;
      const int at_w = DGRAD ? (first_w + w) * stride.at[2] + phase_w : first_w + w;
      if (number >= planes || at_d >= result_size.at[0] || at_h >= result_size.at[1] || at_w >= result_size.at[2])
        continue;
      const INDEX to = (DGRAD ? number : number * MULTIPLIER + j) * result_plane;
      result[to + ((INDEX)at_d * result_size.at[1] + at_h) * result_size.at[2] + at_w] =
          narrow<ELEMENT>(results[(which * TILE_H + h) * result_pitch + w]);
    }
  }
}
