// Vec<T>: one cache line of T (16 floats, 8 doubles) with the few operations the kernels need.
//
// The width is the same on every instruction set, and so is each lane's arithmetic (a fused multiply-add is
// one instruction on AVX2 and AVX-512), so both give the same bits. The portable version is plain loops over the lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace toast {
namespace TOAST_ISA {

template <class T>
struct Vec {
  static constexpr int lanes = 64 / sizeof(T);
  T lane[lanes];

  static Vec broadcast(T x) {
    Vec v;
    for (int i = 0; i < lanes; ++i) v.lane[i] = x;
    return v;
  }
  static Vec load(const T* p) {
    Vec v;
    std::memcpy(v.lane, p, sizeof v.lane);
    return v;
  }
  void store(T* p) const { std::memcpy(p, lane, sizeof lane); }
  void store_non_temporal(T* p) const { store(p); }  // p on a 64-byte boundary

  template <class F>
  static Vec map(F&& f) {
    Vec v;
    for (int i = 0; i < lanes; ++i) v.lane[i] = f(i);
    return v;
  }
  friend Vec operator+(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  friend Vec max(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // a * b + c
  friend Vec fma(Vec a, Vec b, Vec c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  // a * b + c where a is not 0, else c: 0 * -inf is 0 here.
  friend Vec fma_nonzero(Vec a, Vec b, Vec c) {
    return map([&](int i) { return a.lane[i] != T(0) ? a.lane[i] * b.lane[i] + c.lane[i] : c.lane[i]; });
  }
  friend Vec exp(Vec x) {
    return map([&](int i) { return std::exp(x.lane[i]); });
  }
};

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int lanes = 16;
  __m512 v;

  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_non_temporal(float* p) const { _mm512_stream_ps(p, v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec fma_nonzero(Vec a, Vec b, Vec c) {
    const __mmask16 nonzero = _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, nonzero)};
  }
  friend Vec times_power_or_zero(Vec a, Vec exponent, Vec x, Vec least) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(exponent.v), 23);
    const __mmask16 keep = _mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ);
    return {_mm512_maskz_mul_ps(keep, a.v, _mm512_castsi512_ps(power))};
  }
  friend float lane_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
};

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  static constexpr int lanes = 16;
  __m256 lo, hi;

  static Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store_non_temporal(float* p) const {
    _mm256_stream_ps(p, lo);
    _mm256_stream_ps(p + 8, hi);
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
  friend Vec fma_nonzero(Vec a, Vec b, Vec c) { return {fma_nonzero(a.lo, b.lo, c.lo), fma_nonzero(a.hi, b.hi, c.hi)}; }
  friend Vec times_power_or_zero(Vec a, Vec exponent, Vec x, Vec least) {
    return {times_power_or_zero(a.lo, exponent.lo, x.lo, least.lo),
            times_power_or_zero(a.hi, exponent.hi, x.hi, least.hi)};
  }

 private:
  static __m256 fma_nonzero(__m256 a, __m256 b, __m256 c) {
    const __m256 nonzero = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    return _mm256_blendv_ps(c, _mm256_fmadd_ps(a, b, c), nonzero);
  }
  static __m256 times_power_or_zero(__m256 a, __m256 exponent, __m256 x, __m256 least) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(exponent), 23);
    const __m256 keep = _mm256_cmp_ps(x, least, _CMP_NLT_UQ);
    return _mm256_and_ps(keep, _mm256_mul_ps(a, _mm256_castsi256_ps(power)));
  }
};

#endif

#if defined(__AVX2__)
// exp for x <= 0 (and a little above): below -87.3 the result is 0, NaN stays NaN. exp(x) = 2^n exp(r) with n = x / ln
// 2 rounded to an integer, |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 P(r), P of degree 4 (Chebyshev fit, relative error
// 8e-9). Adding 1.5 * 2^23 rounds: n + 127, the biased exponent of 2^n, is left in the last bits of the sum. ln 2 in
// one float adds a relative error of 2.7e-9 |x|, a tenth of what rounding x to a float does: 1.0 units in the last
// place down to -10, 4 at -87.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  const V rounding = V::broadcast(12582912.0f + 127.0f), one = V::broadcast(1.0f);
  const V exponent = fma(x, V::broadcast(1.44269504f), rounding);
  const V r = fma(exponent - rounding, V::broadcast(-0.693147181f), x);
  V p = V::broadcast(1.39261761e-3f);
  p = fma(p, r, V::broadcast(8.36317307e-3f));
  p = fma(p, r, V::broadcast(4.16665547e-2f));
  p = fma(p, r, V::broadcast(1.66665770e-1f));
  p = fma(p, r, V::broadcast(0.5f));
  p = fma(fma(p, r, one), r, one);
  return times_power_or_zero(p, exponent, x, V::broadcast(-87.3f));  // p * 2^n, or 0 where x < -87.3
}
#endif

// The sum of lanes in double, halves first: the same order on every instruction set.
inline double sum_of_lanes(double* lane, int count) {
  for (int half = count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// A sum of vectors, each lane in double.
template <class T>
struct WideSum {
  double lane[Vec<T>::lanes] = {};

  void add(Vec<T> v) {
    T x[Vec<T>::lanes];
    v.store(x);
    for (int i = 0; i < Vec<T>::lanes; ++i) lane[i] += double(x[i]);
  }
  double total() { return sum_of_lanes(lane, Vec<T>::lanes); }
};

#if defined(__AVX2__)

inline double sum_of_lanes(__m256d v) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

#endif

#if defined(__AVX512F__)

template <>
struct WideSum<float> {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

  void add(Vec<float> v) {
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v.v)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v.v, 1)));
  }
  double total() const {
    const __m512d half = _mm512_add_pd(low, high);
    return sum_of_lanes(_mm256_add_pd(_mm512_castpd512_pd256(half), _mm512_extractf64x4_pd(half, 1)));
  }
};

#elif defined(__AVX2__)

template <>
struct WideSum<float> {
  __m256d quarter[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};

  void add(Vec<float> v) {
    const __m128 lanes[4] = {_mm256_castps256_ps128(v.lo), _mm256_extractf128_ps(v.lo, 1), _mm256_castps256_ps128(v.hi),
                             _mm256_extractf128_ps(v.hi, 1)};
    for (int i = 0; i < 4; ++i) quarter[i] = _mm256_add_pd(quarter[i], _mm256_cvtps_pd(lanes[i]));
  }
  double total() const {
    return sum_of_lanes(_mm256_add_pd(_mm256_add_pd(quarter[0], quarter[2]), _mm256_add_pd(quarter[1], quarter[3])));
  }
};

#endif

template <class T>
double lane_sum(Vec<T> v) {
  WideSum<T> sum;
  sum.add(v);
  return sum.total();
}

template <class T>
T lane_max(Vec<T> v) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  for (int half = Vec<T>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

// The first n < lanes elements at p, the other lanes set to fill; nothing beyond p + n is read.
template <class T>
Vec<T> load_first(const T* p, int n, T fill) {
  T lane[Vec<T>::lanes];
  for (T& x : lane) x = fill;
  std::memcpy(lane, p, n * sizeof(T));
  return Vec<T>::load(lane);
}

template <class T>
void store_first(Vec<T> v, T* p, int n) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  std::memcpy(p, lane, n * sizeof(T));
}

}  // namespace TOAST_ISA
}  // namespace toast
