// Elements to float and back, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

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

// n consecutive floats of shared memory, 16 bytes at a time where n is a multiple of 4; then they are aligned.
template <int n>
__device__ void load(const float* from, float (&x)[n]) {
#pragma unroll
  for (int k = 0; k < n; k += n % 4 == 0 ? 4 : 1) {
    if constexpr (n % 4 == 0) {
      const uint4 bytes = load_shared_16(from + k);
      std::memcpy(x + k, &bytes, 16);
    } else {
      x[k] = from[k];
    }
  }
}
template <int n>
__device__ void store(const float (&x)[n], float* to) {
#pragma unroll
  for (int k = 0; k < n; k += n % 4 == 0 ? 4 : 1) {
    if constexpr (n % 4 == 0) {
      uint4 bytes;
      std::memcpy(&bytes, x + k, 16);
      store_shared_16(to + k, bytes);
    } else {
      to[k] = x[k];
    }
  }
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
