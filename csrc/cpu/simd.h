// Vec<T>: one cache line of T (16 floats, 8 doubles) with the few operations the kernels need.
//
// The width is the same on every instruction set, and so is each lane's arithmetic (a fused multiply-add is
// one instruction on AVX2 and AVX-512), so both give the same bits. exp takes 13 instructions (AVX-512). The portable
// version is plain loops over the lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// For what is called in a loop, a lambda too: the compiler, left alone, makes calls of them that spill every register.
#define TOAST_INLINED __attribute__((always_inline))
#define TOAST_INLINE TOAST_INLINED inline

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

#if defined(__AVX2__)
// The bits of 2^(i / 8), less i << 20.
alignas(32) inline constexpr std::uint32_t kEighths[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                                          0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#endif

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
  // 2^(k / 8) of the integer k in the last bits
  friend Vec power_of_eighths(Vec k) {
    const __m512i table = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kEighths)));
    const __m512i bits = _mm512_castps_si512(k.v);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_permutexvar_epi32(bits, table), _mm512_slli_epi32(bits, 20)))};
  }
  // v, or 0 where x < least
  friend Vec zero_below(Vec x, Vec least, Vec v) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), v.v)};
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
  friend Vec power_of_eighths(Vec k) { return {power_of_eighths(k.lo), power_of_eighths(k.hi)}; }
  friend Vec zero_below(Vec x, Vec least, Vec v) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.lo, least.lo, _CMP_NLT_UQ), v.lo),
            _mm256_and_ps(_mm256_cmp_ps(x.hi, least.hi, _CMP_NLT_UQ), v.hi)};
  }

 private:
  static __m256 fma_nonzero(__m256 a, __m256 b, __m256 c) {
    const __m256 nonzero = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    return _mm256_blendv_ps(c, _mm256_fmadd_ps(a, b, c), nonzero);
  }
  static __m256 power_of_eighths(__m256 k) {
    const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(kEighths));
    const __m256i bits = _mm256_castps_si256(k);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_permutevar8x32_epi32(table, bits), _mm256_slli_epi32(bits, 20)));
  }
};

#endif

// exp(d / t) for t = 1, 2, 3, 4
template <class T>
Vec<T> exp_over(Vec<T> d, T t) {
  return exp(d * Vec<T>::broadcast(1 / t));
}
#if defined(__AVX2__)
// For d <= 0 (and a little above): below -87.3 t the result is 0, never a denormal; NaN stays NaN. With k = 8 d / (t ln
// 2) rounded to an integer, exp(d / t) = 2^(k / 8) exp(r / t), |r| <= t ln 2 / 16, exp(x) = 1 + x + x^2 (c2 + c3 x) to
// a relative 2.6e-8 (Chebyshev fit). Adding 1.5 * 2^23 rounds: k is left in the last bits of the sum, so that shifted
// left by 20 it is a float's exponent and, in the next three bits, k % 8, which the table has taken off beforehand.
// With ln 2 t / 8 in one float the result is right to 1.5 units in the last place down to -10 and to 5 at -87. (Another
// t, whose multiple of ln 2 is not as near to a float, could add 3e-8 |d| / t, and a very small one overflows.)
inline Vec<float> exp_over(Vec<float> d, float t) {
  using V = Vec<float>;
  const double inverse = 1 / double(t);
  const V rounding = V::broadcast(12582912.0f);
  const V k = fma(d, V::broadcast(float(11.541560327111707 * inverse)), rounding);
  const V r = fma(k - rounding, V::broadcast(float(-0.086643397569993164 * t)), d);
  V x = fma(V::broadcast(float(0.166668580 * inverse * inverse * inverse)), r,
            V::broadcast(float(0.500064470 * inverse * inverse)));
  x = fma(x, r, V::broadcast(float(inverse))) * r;
  const V power = power_of_eighths(k);
  return zero_below(d, V::broadcast(-87.3f * t), fma(x, power, power));
}
inline Vec<float> exp(Vec<float> x) { return exp_over(x, 1.0f); }
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

// v in the first n lanes, fill in the others
template <class T>
Vec<T> keep_first(Vec<T> v, int n, T fill) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  return load_first(lane, n, fill);
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }
inline Vec<float> load_first(const float* p, int n, float fill) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p)};
}
inline void store_first(Vec<float> v, float* p, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v.v); }
inline Vec<float> keep_first(Vec<float> v, int n, float fill) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first_lanes(n), v.v)};
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec<float> keep_first(Vec<float> v, int n, float fill) {
  const __m256 other = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(other, v.lo, _mm256_castsi256_ps(first_lanes(n))),
          _mm256_blendv_ps(other, v.hi, _mm256_castsi256_ps(first_lanes(n - 8)))};
}
inline Vec<float> load_first(const float* p, int n, float fill) {
  return keep_first({_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))}, n, fill);
}
#endif

// While it lives, float results of this thread that would be denormals are 0: an x86 processor takes a hundred cycles
// for each vector of them. (Others do not, and nothing is done there.)
template <class Real>
class FlushDenormals {
 public:
  FlushDenormals() {}
};
#if defined(__SSE2__)
template <>
class FlushDenormals<float> {
 public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8000); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  const unsigned before_ = _mm_getcsr();
};
#endif

// Calls f(j, n) for the first element j of each Vec of [begin, end) and how many it has: all lanes, as a constant, but
// for the last.
template <int lanes, class F>
TOAST_INLINE void each_vec(std::int64_t begin, std::int64_t end, F&& f) {
  std::int64_t j = begin;
  for (; j + lanes <= end; j += lanes) f(j, std::integral_constant<int, lanes>{});
  if (j < end) f(j, int(end - j));
}

}  // namespace TOAST_ISA
}  // namespace toast
