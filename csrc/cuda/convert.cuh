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

template <class T>
__device__ void widen(const uint4& bytes, float (&x)[kWidth<T>]) {
  T elements[kWidth<T>];
  std::memcpy(elements, &bytes, 16);
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) x[k] = widen(elements[k]);
}

template <class T>
__device__ uint4 round_to(const float (&x)[kWidth<T>]) {
  T elements[kWidth<T>];
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) round_to(x[k], elements[k]);
  uint4 bytes;
  std::memcpy(&bytes, elements, 16);
  return bytes;
}

// Stores 16 bytes where they begin at a multiple of 16 bytes, and where they do not.
template <class T>
__device__ void store(uint4 bytes, T* to, bool aligned) {
  if (aligned) return store_global_16(reinterpret_cast<uint4*>(to), bytes);
  T elements[kWidth<T>];
  std::memcpy(elements, &bytes, 16);
#pragma unroll
  for (int k = 0; k < kWidth<T>; ++k) to[k] = elements[k];
}

// 16 bytes of the same element.
template <class T>
__device__ uint4 all_of(float x) {
  T element;
  round_to(x, element);
  unsigned word = 0;
  std::memcpy(&word, &element, sizeof element);
  if (sizeof element == 2) word |= word << 16;
  return {word, word, word, word};
}

// The larger of each two elements in 32 bits; of a NaN and a number, the number.
__device__ inline float larger(float x, float y) { return fmaxf(x, y); }
__device__ inline __half2 larger(__half2 x, __half2 y) { return __hmax2(x, y); }
__device__ inline __nv_bfloat162 larger(__nv_bfloat162 x, __nv_bfloat162 y) { return __hmax2(x, y); }
template <class T>
__device__ unsigned larger(unsigned a, unsigned b) {
  using Halves = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  std::conditional_t<sizeof(T) == 4, float, Halves> x, y;
  std::memcpy(&x, &a, 4);
  std::memcpy(&y, &b, 4);
  x = larger(x, y);
  std::memcpy(&a, &x, 4);
  return a;
}
template <class T>
__device__ uint4 larger(const uint4& a, const uint4& b) {
  return {larger<T>(a.x, b.x), larger<T>(a.y, b.y), larger<T>(a.z, b.z), larger<T>(a.w, b.w)};
}
template <class T>
__device__ float largest(const uint4& a) {
  const unsigned all = larger<T>(larger<T>(a.x, a.y), larger<T>(a.z, a.w));
  T x[4 / sizeof(T)];
  std::memcpy(x, &all, 4);
  return sizeof(T) == 4 ? widen(x[0]) : fmaxf(widen(x[0]), widen(x[4 / sizeof(T) - 1]));
}

// with_dtype of dtype.h, on a GPU and with its types.
template <class F>
__device__ void with_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float32:
      return f(float{});
    case DType::bfloat16:
      return f(__nv_bfloat16{});
    case DType::float16:
      return f(__half{});
  }
}

}  // namespace toast
