// Rows as what the metrics compare, in double: 8 lanes at a time with the same arithmetic on every instruction set, so
// that every build adds in the same order and gives the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/convert.h"
#include "medoids.h"

namespace toast {
namespace TOAST_ISA {

using std::int64_t;

#pragma GCC diagnostic ignored "-Wpsabi"  // these vectors pass between inlined functions only
typedef double Lanes __attribute__((vector_size(64)));
typedef int64_t LaneBits __attribute__((vector_size(64)));

[[gnu::always_inline]] inline Lanes load(const double* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
[[gnu::always_inline]] inline void store(const Lanes& v, double* p) { std::memcpy(p, &v, sizeof v); }
[[gnu::always_inline]] inline Lanes absolute(const Lanes& v) { return Lanes(LaneBits(v) & 0x7fffffffffffffff); }
[[gnu::always_inline]] inline double add_lanes(const Lanes& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline int64_t padded(int64_t width) { return (width + 7) / 8 * 8; }

// Doubles that a row's features take: the row padded with zeros; cosine: and a mark for a zero row; jeffreys: p, log p.
inline int64_t feature_width(Metric metric, int64_t width) {
  const int64_t w = padded(width);
  return metric == Metric::cosine ? w + 8 : metric == Metric::jeffreys ? 2 * w : w;
}

template <class T>
void load_elements(const T* in, int64_t stride, int64_t n, double* out) {
  if (stride != 1) {
    for (int64_t k = 0; k < n; ++k) out[k] = widen(in[k * stride]);
  } else if constexpr (sizeof(T) == 2) {
    float chunk[256];
    for (int64_t k = 0; k < n; k += 256) {
      const int64_t count = std::min<int64_t>(256, n - k);
      widen(in + k, count, chunk);
      for (int64_t i = 0; i < count; ++i) out[k + i] = chunk[i];
    }
  } else {
    widen(in, n, out);
  }
}

inline void load_row(const Matrix& x, int64_t row, double* out) {
  with_dtype(x.dtype, [&](auto zero) {
    load_elements(static_cast<const decltype(zero)*>(x.data) + row * x.row_stride, x.column_stride, x.width, out);
  });
  std::fill(out + x.width, out + padded(x.width), 0.0);
}

// exp for x <= 0; 0 below -708. 2^n from the bits of n + 1.5 * 2^52, then Taylor's series of degree 13 on
// |r| <= ln 2 / 2, whose next term is below 5e-18.
[[gnu::always_inline]] inline Lanes exp_lanes(const Lanes& x) {
  const LaneBits tiny = x < -708.0;
  const Lanes shifted = x * 1.4426950408889634 + 0x1.8p52;
  const Lanes n = shifted - 0x1.8p52;
  const Lanes r = (x - n * 0x1.62e42fefap-1) - n * 0x1.cf79abc9e3b3ap-40;
  constexpr double inverse_factorials[] = {
      1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
      1. / 720,        1. / 120,       1. / 24,       1. / 6,       0.5,         1.0,        1.0};
  Lanes p = r * 0.0;
  for (double c : inverse_factorials) p = p * r + c;
  const Lanes power = Lanes((LaneBits(shifted) + 1023) << 52);
  return Lanes(LaneBits(p * power) & ~tiny);
}

inline double squared_length(const double* x, int64_t padded_width) {
  Lanes sum{};
  for (int64_t k = 0; k < padded_width; k += 8) sum += load(x + k) * load(x + k);
  return add_lanes(sum);
}

// In place: x / |x|. Returns whether x is a zero row, which stays one.
inline bool normalise(double* x, int64_t padded_width) {
  double square = squared_length(x, padded_width);
  if (!(square > 1e-280 && square < 1e280)) {  // squares under- or overflowed: scale by a power of two first
    double largest = 0;
    for (int64_t k = 0; k < padded_width; ++k) largest = std::max(largest, std::fabs(x[k]));
    if (largest == 0) return true;
    const int exponent = std::ilogb(largest);
    for (int64_t k = 0; k < padded_width; ++k) x[k] = std::scalbn(x[k], -exponent);
    square = squared_length(x, padded_width);
  }
  const double inverse = 1 / std::sqrt(square);
  for (int64_t k = 0; k < padded_width; k += 8) store(load(x + k) * inverse, x + k);
  return false;
}

// In place: x becomes log softmax(x), p softmax(x). The lanes beyond width become 0.
inline void log_softmax(double* x, double* p, int64_t width) {
  const int64_t w = padded(width);
  if (width == 0) return;
  Lanes highest = Lanes{} + x[0];
  for (int64_t k = width; k < w; ++k) x[k] = -INFINITY;
  for (int64_t k = 0; k < w; k += 8) highest = load(x + k) > highest ? load(x + k) : highest;
  double top = highest[0];
  for (int i = 1; i < 8; ++i) top = std::max(top, highest[i]);

  Lanes sum{};
  for (int64_t k = 0; k < w; k += 8) {
    const Lanes e = exp_lanes(load(x + k) - top);
    store(e, p + k);
    sum += e;
  }
  const double total = add_lanes(sum), log_total = std::log(total), inverse = 1 / total;
  for (int64_t k = 0; k < w; k += 8) {
    store((load(x + k) - top) - log_total, x + k);
    store(load(p + k) * inverse, p + k);
  }
  for (int64_t k = width; k < w; ++k) x[k] = p[k] = 0;
}

// The features of row number `row` of x, feature_width of them. Returns whether it is a zero row (cosine only).
inline bool load_features(const Matrix& x, Metric metric, int64_t row, double* out) {
  const int64_t w = padded(x.width);
  if (metric == Metric::jeffreys) {
    load_row(x, row, out + w);
    log_softmax(out + w, out, x.width);
    return false;
  }
  load_row(x, row, out);
  if (metric != Metric::cosine) return false;
  const bool zero = normalise(out, w);
  out[w] = zero;
  return zero;
}

}  // namespace TOAST_ISA
}  // namespace toast
