// What every kernel here shares: element types, their conversion, index helpers, dynamic shared memory.
//
// `_kernels.py` puts this text before a kernel's own, and the constants before both. Nothing is included, so NVRTC
// needs no header files; tests compile the same text for the host (AUTOCONV_HOST, with tests/cuda_shim before it).
//
// Element types: f32, f64, f16, bf16. The half types are storage only: `widen` gives the float32 to compute with,
// `narrow<T>` rounds a sum to nearest even. `accumulator<T>` is double for f64 and float for the rest.
//
// CuPy compiles with -ftz=true: float32 numbers below 2^-126 count as zero in arithmetic. Conversions keep them.

typedef float f32;
typedef double f64;
typedef long long i64;
struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

template <class T>
struct accumulator_of {
  typedef float type;
};
template <>
struct accumulator_of<double> {
  typedef double type;
};
template <class T>
using accumulator = typename accumulator_of<T>::type;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float((unsigned)value.bits << 16); }

#ifdef AUTOCONV_HOST
__device__ __forceinline__ float widen(f16 value) { return half_to_float(value.bits); }
__device__ __forceinline__ unsigned short half_bits(float value) { return float_to_half(value); }
#define DYNAMIC_SHARED(type, name) type* const name = (type*)dynamic_shared()
#else
__device__ __forceinline__ float widen(f16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ __forceinline__ unsigned short half_bits(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
extern __shared__ __align__(16) unsigned char autoconv_dynamic_shared[];
#define DYNAMIC_SHARED(type, name) type* const name = (type*)autoconv_dynamic_shared
#endif

template <class T>
struct rounding {
  static __device__ __forceinline__ T narrow(accumulator<T> value) { return value; }
};
template <>
struct rounding<f16> {
  static __device__ __forceinline__ f16 narrow(float value) { return f16{half_bits(value)}; }
};
template <>
struct rounding<bf16> {
  static __device__ __forceinline__ bf16 narrow(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{(unsigned short)(bits >> 16 | 0x40u)};  // NaN stays one
    return bf16{(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  }
};
template <class T>
__device__ __forceinline__ T narrow(accumulator<T> value) {
  return rounding<T>::narrow(value);
}

// N neighbours in memory, read and written by one instruction: N * sizeof(T) is 2, 4, 8 or 16, the address a multiple.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T lane[N];
};
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// The same, widened to compute with.
template <int N, class T>
__device__ __forceinline__ Pack<accumulator<T>, N> load_wide(const T* from) {
  const Pack<T, N> stored = load_pack<N>(from);
  Pack<accumulator<T>, N> wide;
#pragma unroll
  for (int i = 0; i < N; ++i) wide.lane[i] = widen(stored.lane[i]);
  return wide;
}

__host__ __device__ constexpr int ceil_div(int count, int size) { return (count + size - 1) / size; }
__host__ __device__ constexpr i64 ceil_div(i64 count, i64 size) { return (count + size - 1) / size; }

// Whether 0 <= index < size, in one comparison.
__device__ __forceinline__ bool within(int index, int size) { return (unsigned)index < (unsigned)size; }
__device__ __forceinline__ bool within(i64 index, i64 size) { return (unsigned long long)index < (unsigned long long)size; }

// Sum of `value` over the 32 threads of a warp, in a fixed order; every thread gets it.
template <class R>
__device__ __forceinline__ R warp_sum(R value) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
