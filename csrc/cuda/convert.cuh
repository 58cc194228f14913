// Elements to float and back, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "cuda/ptx.cuh"
#include "dtype.h"

namespace toast {

// Elements of T in 16 bytes, which is what one thread loads and stores at once.
template <class T>
constexpr int kWidth = 16 / sizeof(T);

__device__ inline float widen(double x) { return float(x); }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

// Rounds to nearest, ties to even.
__device__ inline void round_to(float x, float& out) { out = x; }
__device__ inline void round_to(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
__device__ inline void round_to(float x, __half& out) { out = __float2half_rn(x); }

template <class To, class From>
__device__ To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
struct Elements {
  T at[kWidth<T>];
};

template <class T>
__device__ void widen(const uint4& bytes, float (&x)[kWidth<T>]) {
  const auto elements = same_bits<Elements<T>>(bytes);
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) x[k] = widen(elements.at[k]);
}

template <class T>
__device__ uint4 round_to(const float (&x)[kWidth<T>]) {
  Elements<T> elements;
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) round_to(x[k], elements.at[k]);
  return same_bits<uint4>(elements);
}

// Stores 16 bytes where they begin at a multiple of 16 bytes, and where they do not.
template <class T>
__device__ void store(uint4 bytes, T* to, bool aligned) {
  if (aligned) return store_global_16(reinterpret_cast<uint4*>(to), bytes);
  const auto elements = same_bits<Elements<T>>(bytes);
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) to[k] = elements.at[k];
}

template <class T>
__device__ uint4 minus_infinities() {
  constexpr unsigned word = sizeof(T) == 4 ? 0xff800000 : std::is_same_v<T, __half> ? 0xfc00fc00 : 0xff80ff80;
  return {word, word, word, word};
}

// The larger of each two elements in 32 bits; of a NaN and a number, the number.
template <class T>
__device__ unsigned larger(unsigned a, unsigned b) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
  } else {
    using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    return same_bits<unsigned>(__hmax2(same_bits<Two>(a), same_bits<Two>(b)));
  }
}
template <class T>
__device__ uint4 larger(const uint4& a, const uint4& b) {
  return {larger<T>(a.x, b.x), larger<T>(a.y, b.y), larger<T>(a.z, b.z), larger<T>(a.w, b.w)};
}
template <class T>
__device__ float largest(const uint4& a) {
  const unsigned all = larger<T>(larger<T>(a.x, a.y), larger<T>(a.z, a.w));
  float x[kWidth<T>];
  widen<T>({all, all, all, all}, x);
  return fmaxf(x[0], x[1]);
}

// Element i of values of any type.
__device__ inline float element(DType dtype, const void* values, std::int64_t i) {
  const auto of = [&](auto zero) { return widen(__ldg(static_cast<const decltype(zero)*>(values) + i)); };
  switch (dtype) {
    case DType::float64:
      return of(double{});
    case DType::float32:
      return of(float{});
    case DType::bfloat16:
      return of(__nv_bfloat16{});
    default:
      return of(__half{});
  }
}

}  // namespace toast
