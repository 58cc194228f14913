// Rows as what the metrics compare, in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/convert.h"
#include "cpu/medoids/lanes.h"
#include "medoids.h"

namespace toast {
namespace TOAST_ISA {

// One class: its rows' numbers in x, ascending.
struct ClassRows {
  const Matrix& x;
  const int64_t* rows;  // [n]
  int64_t n;
};

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

inline void load_columns(const Matrix& x, int64_t row, int64_t first, int64_t count, double* out) {
  const int64_t begin = row * x.row_stride + first * x.column_stride;
  with_dtype(x.dtype, [&](auto zero) {
    load_elements(static_cast<const decltype(zero)*>(x.data) + begin, x.column_stride, count, out);
  });
}

inline void load_row(const Matrix& x, int64_t row, double* out) {
  load_columns(x, row, 0, x.width, out);
  std::fill(out + x.width, out + padded(x.width), 0.0);
}

// The begin of a row into the level 1 cache (the processor reads on by itself), some rows before it is read: a class's
// rows lie anywhere in x. Inlined: GCC takes a call that does nothing else for one that may be left out.
TOAST_INLINE void prefetch_row(const Matrix& x, int64_t row) {
  const int64_t size = size_of(x.dtype), bytes = x.column_stride == 1 ? std::min<int64_t>(x.width * size, 1024) : 1;
  const char* p = static_cast<const char*>(x.data) + row * x.row_stride * size;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// The sum of term(k), the lanes from column k on, over a row. Two sums, so that additions need not wait for each other.
template <class F>
double sum_columns(int64_t padded_width, F&& term) {
  Lanes even, odd;
  int64_t k = 0;
  for (; k + 16 <= padded_width; k += 16) {
    even += term(k);
    odd += term(k + 8);
  }
  if (k < padded_width) even += term(k);
  return add_lanes(even + odd);
}

inline double squared_length(const double* x, int64_t padded_width) {
  return sum_columns(padded_width, [&](int64_t k) { return load(x + k) * load(x + k); });
}

inline double largest_of(const double* x, int64_t padded_width) {
  Lanes largest = -INFINITY;
  for (int64_t k = 0; k < padded_width; k += 8) largest = max(largest, load(x + k));
  return largest_lane(largest);
}

// What a row's features need of the whole row; kept, so that a second pass over the class need not compute it again.
struct Norm {
  bool zero = false;            // cosine: a zero row
  int exponent = 0;             // cosine: x is divided by 2^exponent first, where squares would under- or overflow
  double inverse = 1;           // cosine: 1 / |x|; jeffreys: 1 / sum exp(x - top)
  double top = 0, log_sum = 0;  // jeffreys
};

// A row's features f and g, 8 columns at a time: x; cosine: x / |x|, a zero row stays one; jeffreys: f = p =
// softmax(x), g = log p. Beyond the width f is 0. Exponentials are computed in Exp and have errors of Exp's size
// relative to p.
template <Metric metric, class Exp = double>
class FeatureRow {
 public:
  FeatureRow(const Matrix& matrix, double* scratch /* [feature_width] */)
      : matrix_(matrix), w_(padded(matrix.width)), exp_(scratch), x_(jeffreys ? scratch + w_ : scratch) {}

  Lanes f(int64_t k) const {
    if constexpr (jeffreys) return load(exp_ + k) * norm_.inverse;
    if constexpr (metric == Metric::cosine) return load(x_ + k) * norm_.inverse;
    return load(x_ + k);
  }
  Lanes g(int64_t k) const { return jeffreys ? (load(x_ + k) - norm_.top) - norm_.log_sum : f(k); }

  const Norm& load_first(int64_t row) {
    load_row(matrix_, row, x_);
    norm_ = {};
    if constexpr (metric == Metric::cosine) {
      double square = squared_length(x_, w_);
      if (!(square > 1e-280 && square < 1e280)) {
        double largest = 0;
        for (int64_t k = 0; k < w_; ++k) largest = std::max(largest, std::fabs(x_[k]));
        norm_.zero = largest == 0;
        if (norm_.zero) return norm_;
        norm_.exponent = std::ilogb(largest);
        divide_by_power();
        square = squared_length(x_, w_);
      }
      norm_.inverse = 1 / std::sqrt(square);
    }
    if constexpr (jeffreys) {
      for (int64_t k = matrix_.width; k < w_; ++k) x_[k] = x_[0];  // which changes no maximum
      norm_.top = largest_of(x_, w_);
      exponentials();
      const double sum = sum_columns(w_, [&](int64_t k) { return load(exp_ + k); });
      norm_.log_sum = std::log(sum);
      norm_.inverse = 1 / sum;
    }
    return norm_;
  }

  void load_again(int64_t row, const Norm& norm) {
    load_row(matrix_, row, x_);
    norm_ = norm;
    if (metric == Metric::cosine && norm.exponent != 0) divide_by_power();
    if constexpr (jeffreys) exponentials();
  }

 private:
  static constexpr bool jeffreys = metric == Metric::jeffreys;

  void divide_by_power() {
    for (int64_t k = 0; k < w_; ++k) x_[k] = std::scalbn(x_[k], -norm_.exponent);
  }
  void exponentials() {
    const Lanes top = norm_.top;
    if constexpr (std::is_same_v<Exp, double>) {
      for (int64_t k = 0; k < w_; k += 8) store(exp(load(x_ + k) - top), exp_ + k);
    } else {
      float chunk[256];
      for (int64_t k = 0; k < w_; k += 256) {
        const int64_t count = std::min<int64_t>(256, w_ - k);
        for (int64_t i = 0; i < count; ++i) chunk[i] = float(x_[k + i] - norm_.top);
        std::fill(chunk + count, chunk + (count + 8) / 16 * 16, 0.0f);
        for (int64_t i = 0; i < count; i += Vec<float>::lanes) exp(Vec<float>::load(chunk + i)).store(chunk + i);
        widen(chunk, count, exp_ + k);
      }
    }
    std::fill(exp_ + matrix_.width, exp_ + w_, 0.0);
  }

  const Matrix& matrix_;
  int64_t w_;
  double *exp_, *x_;
  Norm norm_;
};

// The features of row number `row` of x, feature_width of them.
template <Metric metric>
void load_features(const Matrix& x, int64_t row, double* out) {
  const int64_t w = padded(x.width);
  FeatureRow<metric> features(x, out);
  const bool zero = features.load_first(row).zero;
  for (int64_t k = 0; k < w; k += 8) {
    const Lanes f = features.f(k), g = features.g(k);
    store(f, out + k);
    if (metric == Metric::jeffreys) store(g, out + w + k);
  }
  if (metric == Metric::cosine) out[w] = zero;
}

}  // namespace TOAST_ISA
}  // namespace toast
