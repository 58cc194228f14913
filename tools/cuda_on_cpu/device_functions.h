// What a kernel may call without including anything: mathematics, bits, loads and stores, atomics, barriers, shuffles.
#pragma once

#include <math.h>

#include <cstring>

#include "emulator.h"

constexpr int warpSize = 32;

namespace cuda_on_cpu {
template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_on_cpu

// --- Bits
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::same_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::same_bits<int>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::same_bits<long long>(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// --- Mathematics. The approximate functions are exact here; the toolkit's guide bounds their errors.
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN becomes 0
// By a divisor above 2^126 the GPU divides to 0, or NaN from an infinity.
inline float __fdividef(float x, float y) { return fabsf(y) > 0x1p126f && !isinf(y) ? x * 0.0f : x / y; }

#define CUDA_ON_CPU_MIN_MAX(T)                     \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
#undef CUDA_ON_CPU_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// --- Loads and stores with a hint for the caches
#define CUDA_ON_CPU_LOAD(name) \
  template <class T>           \
  T name(const T* address) {   \
    return *address;           \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
#undef CUDA_ON_CPU_LOAD
#define CUDA_ON_CPU_STORE(name)    \
  template <class T>               \
  void name(T* address, T value) { \
    *address = value;              \
  }
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_STORE

// --- Atomics: they return what was there before
int atomicAdd(int* address, int value);
unsigned atomicAdd(unsigned* address, unsigned value);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value);
float atomicAdd(float* address, float value);
double atomicAdd(double* address, double value);
int atomicMax(int* address, int value);
unsigned atomicMax(unsigned* address, unsigned value);
unsigned long long atomicMax(unsigned long long* address, unsigned long long value);

// Memory is written in the order of the program here.
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- Barriers, shuffles, votes
inline void __syncthreads(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) { cuda_on_cpu::sync_block(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::sync_warp(mask, site);
}

namespace cuda_on_cpu {

template <class T>
T shuffle(const char* operation, unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic<T>::value, "what the toolkit shuffles");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(operation, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A warp is shuffled in segments of `width` lanes, a power of 2; a lane whose source lies outside its own gets its own.
inline unsigned segment(int width) { return lane() & ~unsigned(width - 1); }

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned from = cuda_on_cpu::segment(width) + (unsigned(source) & unsigned(width - 1));
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, from, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane(), rank = lane - cuda_on_cpu::segment(width);
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, delta <= rank ? lane - delta : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane(), rank = lane - cuda_on_cpu::segment(width);
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, delta < unsigned(width) - rank ? lane + delta : lane,
                              site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane(), from = lane ^ unsigned(lane_mask);
  // A later segment is out of reach, an earlier one is not.
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value,
                              from < cuda_on_cpu::segment(width) + unsigned(width) ? from : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::vote("__all_sync", mask, predicate != 0, site) == mask;
}
