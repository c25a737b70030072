// Stands before a .cu text that is compiled for the host: what NVRTC has built in, for one thread at a time.
//
// A block's threads run one after another on one CPU thread (runtime.cpp); this file only gives the words of CUDA C
// their host meaning. It includes nothing, so that a kernel compiles in a fraction of a second. What is not here the
// kernels do not use yet; what a GPU cannot do must not be added.
#define AUTOCONV_HOST 1

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local  // blocks run one at a time; runtime.cpp poisons the module's thread-local block

typedef __SIZE_TYPE__ size_t;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};
struct int2 {
  int x, y;
};
struct __align__(16) int4 {
  int x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct timespec_on_host {
  long seconds, nanoseconds;
};
extern "C" int clock_gettime(int clock, timespec_on_host* now);
inline long long clock64() {  // cycles of a clock of 1 GHz
  timespec_on_host now;
  clock_gettime(1, &now);
  return now.seconds * 1000000000LL + now.nanoseconds;
}

namespace shim {

struct State {  // runtime.cpp knows the order of these
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned char* dynamic;
};
struct Runtime {
  void (*barrier)(int line);
  // Waits for the warp's lanes in `mask`; false when the source lane is none of them. Votes come back as two masks.
  bool (*exchange)(unsigned mask, int line, const void* value, void* received, int bytes, int source);
  unsigned (*ballot)(unsigned mask, int line, bool vote);
};

static State state;
static const Runtime* runtime;
static thread_local char marker;  // some address of the thread-local block that holds all __shared__ variables

inline unsigned lane() {
  const State& s = state;
  return (s.thread.x + s.block_size.x * (s.thread.y + s.block_size.y * s.thread.z)) & 31;
}
template <class T>
inline T shuffle(unsigned mask, int line, T value, int source) {
  T received;
  runtime->exchange(mask, line, &value, &received, sizeof(T), source);
  return received;
}
// Lane to read from in a warp cut into parts of `width`, or one's own where the source lies outside the part.
inline int within_part(int source, int width) {
  const int own = (int)lane(), first = own & ~(width - 1);
  return source < first || source >= first + width ? own : source;
}

// What a kernel takes, for the caller to check: one letter and the size of what is passed, then the same of what a
// pointer points to. f: float, i: signed, u: unsigned, h: f16, b: bf16, s: any other struct, p: pointer.
struct Parameter {
  char kind;
  int bytes;
  char pointee;
  int pointee_bytes;
};
template <class T, bool struct_ = __is_class(T)>
struct Kind {
  static const char letter = (T)-1 < (T)0 ? 'i' : 'u';
};
template <class T>
struct Kind<T, true> {
  static const char letter = 's';
};
template <>
struct Kind<float> {
  static const char letter = 'f';
};
template <>
struct Kind<double> {
  static const char letter = 'f';
};
template <class T>
struct Describe {
  static Parameter parameter() { return {Kind<T>::letter, sizeof(T), 0, 0}; }
};
template <class T>
struct Describe<T*> {
  static Parameter parameter() { return {'p', sizeof(T*), Kind<T>::letter, sizeof(T)}; }
};
template <class T>
struct Describe<const T*> : Describe<T*> {};

template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  typedef Indices<I...> type;
};
template <class... A, int... I>
inline void call(void (*kernel)(A...), void** arguments, Indices<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <class... A>
inline void call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, typename Count<sizeof...(A)>::type());
}
template <class... A>
inline int describe(void (*)(A...), Parameter* out) {
  const Parameter all[] = {Describe<A>::parameter()...};
  for (unsigned i = 0; i < sizeof...(A); i++) out[i] = all[i];
  return sizeof...(A);
}

}  // namespace shim

// After the text, one line per kernel: its parameters, and a call with their addresses.
#define SHIM_KERNEL(name)                                                                                      \
  extern "C" int shim_describe_##name(shim::Parameter* out) { return shim::describe(name, out); }              \
  extern "C" void shim_call_##name(void** arguments) { shim::call(name, arguments); }
#define SHIM_STORAGE(type, kind)         \
  template <>                            \
  struct shim::Kind<type> {              \
    static const char letter = kind;     \
  };
#define SHIM_MODULE                                                          \
  extern "C" void* shim_attach(const shim::Runtime* runtime) {               \
    shim::runtime = runtime;                                                 \
    return &shim::state;                                                     \
  }                                                                          \
  extern "C" void* shim_marker() { return &shim::marker; }

#define threadIdx shim::state.thread
#define blockIdx shim::state.block
#define blockDim shim::state.block_size
#define gridDim shim::state.grid_size
#define warpSize 32
inline unsigned char* dynamic_shared() { return shim::state.dynamic; }

#define __syncthreads() shim::runtime->barrier(__LINE__)
#define __syncwarp(...) ((void)shim::runtime->ballot(0xffffffffu __VA_OPT__(&(__VA_ARGS__)), __LINE__, true))
#define __ballot_sync(mask, vote) shim::runtime->ballot(mask, __LINE__, vote)
#define __any_sync(mask, vote) (shim::runtime->ballot(mask, __LINE__, vote) != 0)
#define __all_sync(mask, vote) (shim::runtime->ballot(mask, __LINE__, vote) == (mask))
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return shim::shuffle(mask, -1, value, ((int)shim::lane() & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return shim::shuffle(mask, -2, value, shim::within_part((int)shim::lane() ^ bits, width));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return shim::shuffle(mask, -3, value, shim::within_part((int)(shim::lane() + distance), width));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return shim::shuffle(mask, -4, value, shim::within_part((int)shim::lane() - (int)distance, width));
}

template <class T>
inline T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
inline T atomicMax(T* address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}
template <class T>
inline T atomicMin(T* address, T value) {
  const T old = *address;
  *address = value < old ? value : old;
  return old;
}
template <class T>
inline T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
inline T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

template <class T>
inline T __ldg(const T* address) { return *address; }
template <class T>
inline T __ldcg(const T* address) { return *address; }
template <class T>
inline T __ldcs(const T* address) { return *address; }
template <class T>
inline void __stcs(T* address, T value) { *address = value; }
template <class T>
inline void __stcg(T* address, T value) { *address = value; }

template <class T>
inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
inline T max(T a, T b) { return a < b ? b : a; }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
inline float fabsf(float a) { return __builtin_fabsf(a); }
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }

template <class To, class From>
inline To shim_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}
inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return shim_bits<float>(bits); }
inline int __float_as_int(float value) { return shim_bits<int>(value); }
inline float __int_as_float(int bits) { return shim_bits<float>(bits); }
inline long long __double_as_longlong(double value) { return shim_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return shim_bits<double>(bits); }

// What the PTX conversions cvt.f32.f16 and cvt.rn.f16.f32 do.
inline float half_to_float(unsigned short half) {
  const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = (float)fraction * 0x1p-24f;
  return sign ? -tiny : tiny;
}
inline unsigned short float_to_half(float value) {
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
  const unsigned short sign = (unsigned short)(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: steps of 2^-24; adding 0.5 leaves them in a float's last bits
    const float shifted = __uint_as_float(magnitude) + 0.5f;
    return (unsigned short)(sign | (__float_as_uint(shifted) - 0x3f000000u));
  }
  return (unsigned short)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}
