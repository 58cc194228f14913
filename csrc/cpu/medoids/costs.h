// The cost that decides: E summed in double from differences, over the class's rows in their order.
#pragma once

#include <cfloat>

#include "cpu/medoids/rows.h"
#include "cpu/parallel.h"

namespace toast {
namespace TOAST_ISA {

// Relative rounding error of adding up n distances over width columns, generously.
inline double rounding(int64_t n, int64_t width) { return 2.0 * (n + width + 32) * DBL_EPSILON; }

#pragma GCC diagnostic error "-Wswitch"  // a metric without its case would have no costs

// Calls f with a std::integral_constant of the metric, so that the inner loops are compiled for one each.
template <class F>
void with_metric(Metric metric, F&& f) {
  switch (metric) {
    case Metric::euclidean:
      return f(std::integral_constant<Metric, Metric::euclidean>{});
    case Metric::sqeuclidean:
      return f(std::integral_constant<Metric, Metric::sqeuclidean>{});
    case Metric::cosine:
      return f(std::integral_constant<Metric, Metric::cosine>{});
    case Metric::cityblock:
      return f(std::integral_constant<Metric, Metric::cityblock>{});
    case Metric::jeffreys:
      return f(std::integral_constant<Metric, Metric::jeffreys>{});
  }
}

// Adds the terms of the distance at features k to k + 7. Beyond the width both rows hold zeros.
template <Metric metric>
TOAST_INLINE void add_terms(Lanes& sum, const double* a, const double* b, int64_t k, int64_t w) {
  const Lanes difference = load(a + k) - load(b + k);
  if constexpr (metric == Metric::cityblock) {
    sum += absolute(difference);
  } else if constexpr (metric == Metric::jeffreys) {
    sum += difference * (load(a + w + k) - load(b + w + k));
  } else {
    static_assert(metric == Metric::euclidean || metric == Metric::sqeuclidean || metric == Metric::cosine);
    sum += difference * difference;
  }
}

template <Metric metric>
TOAST_INLINE double finish(const Lanes& sum, const double* a, const double* b, int64_t w) {
  const double total = add_lanes(sum);
  if constexpr (metric == Metric::euclidean) return std::sqrt(total);
  if constexpr (metric == Metric::cosine) return a[w] + b[w] > 0 ? 1.0 : 0.5 * total;
  return total;
}

// out[i] = d(a, b_i) for the features b_i at b + i * stride; four at a time, each added up as it would be alone.
template <Metric metric>
void distances(const double* a, const double* b, int64_t stride, int64_t count, int64_t w, double* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const double *b0 = b + i * stride, *b1 = b0 + stride, *b2 = b1 + stride, *b3 = b2 + stride;
    Lanes s0, s1, s2, s3;
    for (int64_t k = 0; k < w; k += 8) {
      add_terms<metric>(s0, a, b0, k, w);
      add_terms<metric>(s1, a, b1, k, w);
      add_terms<metric>(s2, a, b2, k, w);
      add_terms<metric>(s3, a, b3, k, w);
    }
    out[i] = finish<metric>(s0, a, b0, w);
    out[i + 1] = finish<metric>(s1, a, b1, w);
    out[i + 2] = finish<metric>(s2, a, b2, w);
    out[i + 3] = finish<metric>(s3, a, b3, w);
  }
  for (; i < count; ++i) {
    Lanes sum;
    for (int64_t k = 0; k < w; k += 8) add_terms<metric>(sum, a, b + i * stride, k, w);
    out[i] = finish<metric>(sum, a, b + i * stride, w);
  }
}

// A cost that overflowed is infinite, whatever the order of the sum made of it.
inline double no_nan(double cost) { return cost != cost ? INFINITY : cost; }

// The largest cost that ties with the cost `lowest`. Cosine distances of 1e-28 are angles under double's resolution.
inline double tie(double lowest, Metric metric, int64_t n) {
  return lowest * (1 + 1e-12) + (metric == Metric::cosine ? n * 1e-28 : 0.0);
}

inline int64_t first_at_most(const double* cost, int64_t n, double limit) {
  return std::find_if(cost, cost + n, [&](double c) { return c <= limit; }) - cost;
}

// E of some rows of a class, given by position; each thread takes some of them through the whole class.
inline void exact_costs(const ClassRows& c, Metric metric, const int64_t* positions, int64_t count, double* cost,
                        int threads) {
  const int64_t w = padded(c.x.width), stride = feature_width(metric, c.x.width);
  const int64_t groups = std::min<int64_t>(threads, count);
  parallel_for(groups, threads, [&](int64_t group) {
    const int64_t begin = count * group / groups, m = count * (group + 1) / groups - begin;
    LaneVector mine(m * stride), row(stride);
    std::vector<double> d(m);
    std::fill(cost + begin, cost + begin + m, 0.0);
    with_metric(metric, [&](auto known) {
      for (int64_t i = 0; i < m; ++i)
        load_features<known.value>(c.x, c.rows[positions[begin + i]], mine.data() + i * stride);
      for (int64_t j = 0; j < c.n; ++j) {
        load_features<known.value>(c.x, c.rows[j], row.data());
        distances<known.value>(row.data(), mine.data(), stride, m, w, d.data());
        for (int64_t i = 0; i < m; ++i)
          if (positions[begin + i] != j) cost[begin + i] += d[i];
      }
    });
    for (int64_t i = begin; i < begin + m; ++i) cost[i] = no_nan(cost[i]);
  });
}

// The medoid's position by all pairs at once, each pair once: the same bits as exact_costs, since every cost is added
// up in the order of the rows. For classes whose features fit in the cache.
inline int64_t small_class_medoid(const ClassRows& c, Metric metric) {
  const int64_t w = padded(c.x.width), stride = feature_width(metric, c.x.width);
  LaneVector features(c.n * stride);
  std::vector<double> d(c.n), cost(c.n);
  with_metric(metric, [&](auto known) {
    for (int64_t i = 0; i < c.n; ++i) load_features<known.value>(c.x, c.rows[i], features.data() + i * stride);
    for (int64_t i = 0; i < c.n; ++i) {
      const double* row = features.data() + i * stride;
      distances<known.value>(row, row + stride, stride, c.n - i - 1, w, d.data());
      for (int64_t j = i + 1; j < c.n; ++j) {
        cost[i] += d[j - i - 1];
        cost[j] += d[j - i - 1];
      }
    }
  });
  for (double& value : cost) value = no_nan(value);
  return first_at_most(cost.data(), c.n, tie(*std::min_element(cost.begin(), cost.end()), metric, c.n));
}

}  // namespace TOAST_ISA
}  // namespace toast
