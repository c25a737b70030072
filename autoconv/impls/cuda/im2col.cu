// The Toeplitz matrix of some images, and the sum of such a matrix back into images, any rank. See im2col.py.
//
// Indices. n image, c channel (over all groups), p place of the result and t tap of the filter, both flattened.
// matrix[n][c][t][p] = x[n][c] where tap t of place p looks: place * STRIDES - PADS + tap * DILATIONS along each axis,
// zero outside the image. With CHANNELS_LAST the matrix is [n][p][group][t][c of the group].
//
// Block map. One thread per (n, c, p) (im2col) or element of the image (col2im), THREADS to a block, neighbours in
// memory side by side: in p where channels come first, in c where they come last. A thread goes through all taps.
//
// Memory. im2col copies bits, every element of the matrix once; the taps of one place are row_step apart. col2im
// gathers: each element of the image sums what it gave, in the order of taps, so nothing is added across threads and
// the bits repeat. No shared memory.
//
// Constants. ELEMENT of the images, MATRIX the matrix's in col2im (float32 where ELEMENT is a half type); INDEX: int, or
// i64 where 2^31 elements are exceeded; RANK; lists by axis: X_SIZES, Y_SIZES, TAPS, STRIDES, DILATIONS, PADS (before);
// GROUPS, C (per group); distances in elements: X_N, X_C, X_AXES; CHANNELS_LAST; TURNED: tap t is stored last to first.

typedef long long Offset;

constexpr int channels = GROUPS * C;

template <class Number>
__device__ constexpr Number product(const int (&sizes)[RANK]) {
  Number all = 1;
  for (int axis = 0; axis < RANK; axis++) all *= sizes[axis];
  return all;
}
__device__ constexpr int tap_count() {
  constexpr int taps[RANK] = {TAPS};
  return product<int>(taps);
}
__device__ constexpr INDEX place_count() {
  constexpr int sizes[RANK] = {Y_SIZES};
  return product<INDEX>(sizes);
}
__device__ constexpr INDEX pixel_count() {
  constexpr int sizes[RANK] = {X_SIZES};
  return product<INDEX>(sizes);
}
constexpr int all_taps = tap_count();
constexpr INDEX places = place_count(), pixels = pixel_count();

// Which tap, axis by axis: counts through all of them, the last axis fastest.
struct Tap {
  int at[RANK];
  __device__ __forceinline__ void next() {
    constexpr int taps[RANK] = {TAPS};
#pragma unroll
    for (int axis = RANK - 1; axis >= 0; axis--) {
      if (++at[axis] < taps[axis]) return;
      at[axis] = 0;
    }
  }
};
__device__ __forceinline__ int stored(int tap) { return TURNED ? all_taps - 1 - tap : tap; }

extern "C" __global__ void im2col(const ELEMENT* __restrict__ x, ELEMENT* __restrict__ matrix, Offset count,
                                  Offset image_step, Offset row_step) {
  constexpr int sizes[RANK] = {X_SIZES}, results[RANK] = {Y_SIZES}, step[RANK] = {STRIDES}, spread[RANK] = {DILATIONS};
  constexpr int before[RANK] = {PADS};
  constexpr INDEX axes[RANK] = {X_AXES};
  const Offset item = blockIdx.x * (Offset)blockDim.x + threadIdx.x;
  if (item >= count) return;
  const INDEX number = (INDEX)item;
  INDEX place = CHANNELS_LAST ? number / channels % places : number % places;
  const INDEX channel = CHANNELS_LAST ? number % channels : number / places % channels;
  const INDEX image = number / channels / places;
  ELEMENT* to;
  Offset next;
  if (CHANNELS_LAST) {
    to = matrix + item / C * (all_taps * C) + channel % C;
    next = C;
  } else {
    to = matrix + image * image_step + channel * (Offset)all_taps * row_step + place;
    next = row_step;
  }
  int origin[RANK];
#pragma unroll
  for (int axis = RANK - 1; axis >= 0; axis--) {
    origin[axis] = (int)(place % results[axis]) * step[axis] - before[axis];
    place /= results[axis];
  }
  const ELEMENT* const from = x + image * (Offset)(X_N) + channel * (Offset)(X_C);
  Tap tap = {};
  for (int t = 0; t < all_taps; t++) {
    bool inside = true;
    Offset offset = 0;
#pragma unroll
    for (int axis = 0; axis < RANK; axis++) {
      const int pixel = origin[axis] + tap.at[axis] * spread[axis];
      inside = inside && within(pixel, sizes[axis]);
      offset += pixel * (Offset)axes[axis];
    }
    to[stored(t) * next] = inside ? from[offset] : ELEMENT{};
    tap.next();
  }
}

extern "C" __global__ void col2im(const MATRIX* __restrict__ matrix, ELEMENT* __restrict__ x, Offset count) {
  constexpr int sizes[RANK] = {X_SIZES}, results[RANK] = {Y_SIZES}, step[RANK] = {STRIDES}, spread[RANK] = {DILATIONS};
  constexpr int before[RANK] = {PADS};
  const Offset item = blockIdx.x * (Offset)blockDim.x + threadIdx.x;
  if (item >= count) return;
  const INDEX number = (INDEX)item;
  INDEX pixel = CHANNELS_LAST ? number / channels % pixels : number % pixels;
  const INDEX channel = CHANNELS_LAST ? number % channels : number / pixels % channels;
  const INDEX image = number / channels / pixels;
  const MATRIX* from;
  Offset next, place_step;
  if (CHANNELS_LAST) {
    from = matrix + (image * (Offset)places * GROUPS + channel / C) * (all_taps * C) + channel % C;
    next = C;
    place_step = (Offset)channels * all_taps;
  } else {
    from = matrix + (image * (Offset)channels + channel) * all_taps * places;
    next = places;
    place_step = 1;
  }
  int origin[RANK];
#pragma unroll
  for (int axis = RANK - 1; axis >= 0; axis--) {
    origin[axis] = (int)(pixel % sizes[axis]) + before[axis];
    pixel /= sizes[axis];
  }
  accumulator<ELEMENT> sum = 0;
  Tap tap = {};
  for (int t = 0; t < all_taps; t++) {
    bool gave = true;
    Offset place = 0;
#pragma unroll
    for (int axis = 0; axis < RANK; axis++) {
      const int ahead = origin[axis] - tap.at[axis] * spread[axis];
      gave = gave && ahead >= 0 && ahead % step[axis] == 0 && ahead / step[axis] < results[axis];
      place = place * results[axis] + ahead / step[axis];
    }
    if (gave) sum += widen(from[stored(t) * next + place * place_step]);
    tap.next();
  }
  x[item] = narrow<ELEMENT>(sum);
}
