// Stored element types to and from the type that is computed in, a run of elements at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "dtype.h"

namespace toast {
namespace TOAST_ISA {

inline float bits_to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline std::uint32_t float_to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return bits_to_float(std::uint32_t(x.bits) << 16); }
inline float widen(float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  return std::copysign(bits_to_float(magnitude << 13) * 0x1p112f, bits_to_float(sign | 0x3f800000));
}

// Round to nearest, ties to even; NaN stays NaN.
inline void round_to(double x, double& out) { out = x; }
inline void round_to(float x, float& out) { out = x; }
inline void round_to(float x, bfloat16& out) {
  const std::uint32_t bits = float_to_bits(x);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out.bits = std::uint16_t(x != x ? 0x7fc0 : rounded);
}
inline void round_to(float x, float16& out) {
  const std::uint32_t sign = float_to_bits(x) >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  std::uint32_t bits;
  if (!(magnitude < 65520.0f)) {
    bits = x != x ? 0x7e00 : 0x7c00;
  } else if (magnitude < 0x1p-14f) {
    bits = float_to_bits(magnitude + 0.5f) - float_to_bits(0.5f);  // the sum rounds at the subnormals' last bit, 2^-24
  } else {
    const std::uint32_t wide = float_to_bits(magnitude) - (112u << 23);
    bits = (wide + 0xfff + (wide >> 13 & 1)) >> 13;
  }
  out.bits = std::uint16_t(sign | bits);
}

template <class T, class Real>
void widen(const T* in, std::int64_t n, Real* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, float16> && std::is_same_v<Real, float>)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#endif
  for (; i < n; ++i) out[i] = Real(widen(in[i]));
}

template <class Real, class T>
void round_to(const Real* in, std::int64_t n, T* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, float16> && std::is_same_v<Real, float>)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; i < n; ++i) {
    if constexpr (std::is_same_v<T, double>)
      out[i] = in[i];
    else
      round_to(float(in[i]), out[i]);
  }
}

// n elements of `base` from element `begin` on, as Real: in place if they are Real already, else widened into buffer.
template <class Real>
const Real* as_real(DType dtype, const void* base, std::int64_t begin, std::int64_t n, Real* buffer) {
  const Real* result = buffer;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* in = static_cast<const T*>(base) + begin;
    if constexpr (std::is_same_v<T, Real>)
      result = in;
    else
      widen(in, n, buffer);
  });
  return result;
}

// Copies with non-temporal stores: no read for ownership. The ends, in cache lines that hold other data too, are copied
// with plain stores.
inline void copy_non_temporal(const void* from, std::int64_t bytes, void* to) {
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  const std::int64_t head = std::min<std::int64_t>(bytes, -reinterpret_cast<std::uintptr_t>(out) & 63);
  std::memcpy(out, in, head);
  std::int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    float line[16];
    std::memcpy(line, in + i, 64);
    Vec<float>::load(line).store_non_temporal(reinterpret_cast<float*>(out + i));
  }
  std::memcpy(out + i, in + i, bytes - i);
}

// Orders the non-temporal stores before it with the stores after it.
inline void non_temporal_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace TOAST_ISA
}  // namespace toast
