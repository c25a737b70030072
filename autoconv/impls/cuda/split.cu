// float32 numbers as a high and a low part with TF32's 10 bits of mantissa each (8 of the 24 bits are lost at most in
// the last place of the low part: the sum is within 2^-22 of the number).
//
// from: (outer, inner), to: (outer, 3, inner). Of the three parts of each row, number `low` is the low one.
// One thread per number, in strides of the grid. No constants, no shared memory.

__device__ __forceinline__ float high_part(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;  // infinity, or a NaN that must stay one
  const unsigned rounded = (bits + 0x1000u) & 0xffffe000u;
  // the largest numbers would round to infinity: those are cut off instead
  return __uint_as_float((rounded & 0x7f800000u) == 0x7f800000u ? bits & 0xffffe000u : rounded);
}

extern "C" __global__ void split_tf32(const float* __restrict__ from, float* __restrict__ to, long long outer,
                                      long long inner, int low) {
  const long long count = outer * inner;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count;
       i += (long long)gridDim.x * blockDim.x) {
    const float value = from[i], high = high_part(value);
    const bool finite = (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
    const float rest = finite ? value - high : 0.0f;
    float* const row = to + i / inner * 3 * inner + i % inner;
    for (int part = 0; part < 3; ++part) row[part * inner] = part == low ? rest : high;
  }
}
