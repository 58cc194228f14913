// Stored element types to and from the type that is computed in: one by one, a Vec in registers, or a run of them. A
// half type costs two instructions a Vec to widen and, as bfloat16, seven to round to (AVX-512).
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

#if defined(__AVX512F__)
inline Vec<float> widen(__m256i bits, bfloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec<float> widen(__m256i bits, float16) { return {_mm512_cvtph_ps(bits)}; }
// A NaN has all bits set afterwards.
inline __m256i rounded(Vec<float> v, bfloat16) {
  const __m512i bits = _mm512_castps_si512(v.v), nan = _mm512_set1_epi32(-1);
  const __mmask16 number = _mm512_cmp_ps_mask(v.v, v.v, _CMP_ORD_Q);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __m512i sum = _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
  return _mm512_cvtepi32_epi16(_mm512_mask_srli_epi32(nan, number, sum, 16));
}
inline __m256i rounded(Vec<float> v, float16) {
  return _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256i load_first(const void* p, int n) { return _mm256_maskz_loadu_epi16(first_lanes(n), p); }
inline void store_first(__m256i bits, void* p, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), bits); }
#elif defined(__AVX2__)
inline Vec<float> widen(__m256i bits, bfloat16) {
  const auto half = [](__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); };
  return {half(_mm256_castsi256_si128(bits)), half(_mm256_extracti128_si256(bits, 1))};
}
inline Vec<float> widen(__m256i bits, float16) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
inline __m256i rounded(Vec<float> v, bfloat16) {
  const auto half = [](__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_srli_epi32(_mm256_or_si256(sum, nan), 16);
  };
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(half(v.lo), half(v.hi)), 0xd8);
}
inline __m256i rounded(Vec<float> v, float16) {
  const auto half = [](__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); };
  return _mm256_set_m128i(half(v.hi), half(v.lo));
}
inline __m256i load_first(const void* p, int n) {
  __m256i bits = _mm256_setzero_si256();
  std::memcpy(&bits, p, 2 * n);
  return bits;
}
inline void store_first(__m256i bits, void* p, int n) { std::memcpy(p, &bits, 2 * n); }
#endif

// A Vec of stored elements, of which there are n: lanes beyond them are `fill`, and their memory is not touched.
template <class Real, class T>
TOAST_INLINE Vec<Real> load_as(const T* p, int n, Real fill) {
  constexpr int lanes = Vec<Real>::lanes;
  if constexpr (std::is_same_v<T, Real>) return n >= lanes ? Vec<Real>::load(p) : load_first(p, n, fill);
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 2 && std::is_same_v<Real, float>) {
    if (n >= lanes) return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T{});
    return keep_first(widen(load_first(p, n), T{}), n, fill);
  }
#endif
  Real wide[lanes];
  for (int i = n; i < lanes; ++i) wide[i] = fill;
  for (int i = 0; i < n; ++i) wide[i] = Real(widen(p[i]));
  return Vec<Real>::load(wide);
}
template <class Real, class T>
TOAST_INLINE void store_as(Vec<Real> v, T* p, int n) {
  constexpr int lanes = Vec<Real>::lanes;
  if constexpr (std::is_same_v<T, Real>) return n >= lanes ? v.store(p) : store_first(v, p, n);
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 2 && std::is_same_v<Real, float>) {
    if (n >= lanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v, T{}));
    return store_first(rounded(v, T{}), p, n);
  }
#endif
  Real wide[lanes];
  v.store(wide);
  for (int i = 0; i < n; ++i) round_to(wide[i], p[i]);
}

template <class T, class Real>
void widen(const T* in, std::int64_t n, Real* out) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 2 && std::is_same_v<Real, float>)
    for (; i + Vec<Real>::lanes <= n; i += Vec<Real>::lanes)
      load_as<Real>(in + i, Vec<Real>::lanes, Real(0)).store(out + i);
  for (; i < n; ++i) out[i] = Real(widen(in[i]));
}
template <class Real, class T>
void round_to(const Real* in, std::int64_t n, T* out) {
  each_vec<Vec<Real>::lanes>(
      0, n, [=](std::int64_t j, int m) TOAST_INLINED { store_as(load_as<Real>(in + j, m, Real(0)), out + j, m); });
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

// (A macro, since the compiler may drop calls of a function that does nothing else.)
#define TOAST_PREFETCH(p) __builtin_prefetch(p, 0, 2)

// A run of Real (or of a half type, where Real is float) that is read or written a Vec at a time, while `prefetch_at`,
// as many of the same type, is prefetched: the hardware's prefetch stops at the end of a page. Which type it is is
// asked each time: a branch that is always foreseen costs nothing beside an exponential, and there is one loop and not
// one for each combination of types.
template <class Real, class Pointer>
struct Stream {
  DType dtype;
  Pointer* at;
  const void* prefetch_at;

  static bool takes(DType dtype) { return std::is_same_v<Real, double> == (dtype == DType::float64); }

  // n elements from element j on, or a whole Vec of them.
  TOAST_INLINE Vec<Real> load(std::int64_t j, int n = Vec<Real>::lanes, Real fill = 0) const {
    return typed([&](auto* p, auto*) TOAST_INLINED { return load_as<Real>(p + j, n, fill); });
  }
  TOAST_INLINE Vec<Real> load_and_prefetch(std::int64_t j, int n, Real fill = 0) const {
    return typed([&](auto* p, auto* next) TOAST_INLINED {
      TOAST_PREFETCH(next + j);
      return load_as<Real>(p + j, n, fill);
    });
  }
  TOAST_INLINE void store_and_prefetch(Vec<Real> v, std::int64_t j, int n) const {
    typed([&](auto* p, auto* next) TOAST_INLINED {
      TOAST_PREFETCH(next + j);
      store_as(v, p + j, n);
    });
  }
  Real load_one(std::int64_t j) const {
    return typed([&](auto* p, auto*) { return Real(widen(p[j])); });
  }
  void store_one(Real x, std::int64_t j) const {
    typed([&](auto* p, auto*) { round_to(x, p[j]); });
  }
  // The cache line of element j, which a Vec that begins before it may reach into.
  TOAST_INLINE void prefetch(std::int64_t j) const {
    typed([&](auto*, auto* next) TOAST_INLINED { TOAST_PREFETCH(next + j); });
  }

 private:
  template <class F>
  TOAST_INLINE auto typed(F&& f) const {
    const auto as = [&](auto zero) TOAST_INLINED {
      using T = decltype(zero);
      return f(static_cast<std::conditional_t<std::is_const_v<Pointer>, const T, T>*>(at),
               static_cast<const T*>(prefetch_at));
    };
    if constexpr (std::is_same_v<Real, float>) {
      if (dtype == DType::bfloat16) return as(bfloat16{});
      if (dtype == DType::float16) return as(float16{});
    }
    return as(Real{});
  }
};
template <class Real>
using Input = Stream<Real, const void>;
template <class Real>
using Output = Stream<Real, void>;

template <class Real>
Input<Real> in_buffer(const Real* buffer) {
  return {std::is_same_v<Real, double> ? DType::float64 : DType::float32, buffer, buffer};
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
