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
  void stream(T* p) const { store(p); }  // p on a 64-byte boundary

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
  void stream(float* p) const { _mm512_stream_ps(p, v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec fma_nonzero(Vec a, Vec b, Vec c) {
    const __mmask16 nonzero = _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, nonzero)};
  }
  friend Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  friend Vec scale_or_zero(Vec a, Vec n, Vec x, Vec threshold) {
    return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x.v, threshold.v, _CMP_NLT_UQ), a.v, n.v)};
  }
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
  void stream(float* p) const {
    _mm256_stream_ps(p, lo);
    _mm256_stream_ps(p + 8, hi);
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
  friend Vec fma_nonzero(Vec a, Vec b, Vec c) { return {fma_nonzero(a.lo, b.lo, c.lo), fma_nonzero(a.hi, b.hi, c.hi)}; }
  friend Vec round(Vec a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
  }
  friend Vec scale_or_zero(Vec a, Vec n, Vec x, Vec threshold) {
    return {scale_or_zero(a.lo, n.lo, x.lo, threshold.lo), scale_or_zero(a.hi, n.hi, x.hi, threshold.hi)};
  }

 private:
  static __m256 fma_nonzero(__m256 a, __m256 b, __m256 c) {
    const __m256 nonzero = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    return _mm256_blendv_ps(c, _mm256_fmadd_ps(a, b, c), nonzero);
  }
  static __m256 scale_or_zero(__m256 a, __m256 n, __m256 x, __m256 threshold) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const __m256 keep = _mm256_cmp_ps(x, threshold, _CMP_NLT_UQ);
    return _mm256_and_ps(keep, _mm256_mul_ps(a, _mm256_castsi256_ps(power)));
  }
};

#endif

#if defined(__AVX2__)
// scale_or_zero(a, n, x, threshold) is a * 2^n, n integral in [-126, 127], and 0 where x < threshold.

// exp for x <= 0 (and a little above): below -87.3 the result is 0, NaN stays NaN. exp(x) = 2^n exp(r) with
// n = round(x / ln 2), |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 P(r), P of degree 4 (Chebyshev fit, relative
// error 8e-9); 0.75 units in the last place over [-87, 0].
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  const V n = round(x * V::broadcast(1.44269504f));
  V r = fma(n, V::broadcast(-0.693359375f), x);
  r = fma(n, V::broadcast(2.12194440e-4f), r);
  V p = V::broadcast(1.39261761e-3f);
  p = fma(p, r, V::broadcast(8.36317307e-3f));
  p = fma(p, r, V::broadcast(4.16665547e-2f));
  p = fma(p, r, V::broadcast(1.66665770e-1f));
  p = fma(p, r, V::broadcast(0.5f));
  p = fma(p, r * r, r) + V::broadcast(1.0f);
  return scale_or_zero(p, n, x, V::broadcast(-87.3f));
}
#endif

// The lanes of v, added in double, halves first: the same order on every instruction set.
template <class T>
double lane_sum(Vec<T> v) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  double total[Vec<T>::lanes / 2];
  for (int i = 0; i < Vec<T>::lanes / 2; ++i) total[i] = double(lane[i]) + double(lane[i + Vec<T>::lanes / 2]);
  for (int half = Vec<T>::lanes / 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) total[i] += total[i + half];
  return total[0];
}

template <class T>
T lane_max(Vec<T> v) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  T best = lane[0];
  for (T x : lane) best = x > best ? x : best;
  return best;
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
