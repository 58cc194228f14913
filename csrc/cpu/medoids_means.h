// sqeuclidean, cosine and jeffreys from the class mean, in two passes over the class. Each is, up to a factor,
//   d(i, j) = (f_i - f_j) . (g_i - g_j)      f = g = x | f = g = x / |x| | f = p, g = log p
// so E(i) = n (f_i - mean f) . (g_i - mean g) + sum over j of the same.
#pragma once

#include "cpu/medoids_costs.h"

namespace toast {
namespace TOAST_ISA {

// Rows are added in at most 16 runs, whose borders depend on n alone, and the runs in order: the same bits for any
// number of threads.
inline int64_t run_count(int64_t n) { return std::max<int64_t>(1, std::min<int64_t>(16, n / 64)); }

// mean [feature_width] of the features; a zero row (cosine) does not count. Returns how many rows do.
inline int64_t mean_features(const ClassRows& c, Metric metric, double* mean, int threads) {
  const int64_t stride = feature_width(metric, c.x.width), runs = run_count(c.n);
  std::vector<double> sums(runs * stride);
  std::vector<int64_t> counts(runs);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t run = 0; run < runs; ++run) {
    std::vector<double> row(stride);
    double* sum = sums.data() + run * stride;
    for (int64_t i = c.n * run / runs; i < c.n * (run + 1) / runs; ++i) {
      if (load_features(c.x, metric, c.rows[i], row.data())) continue;
      for (int64_t k = 0; k < stride; k += 8) store(load(sum + k) + load(row.data() + k), sum + k);
      ++counts[run];
    }
  }
  int64_t count = 0;
  std::fill(mean, mean + stride, 0.0);
  for (int64_t run = 0; run < runs; ++run) {
    count += counts[run];
    for (int64_t k = 0; k < stride; ++k) mean[k] += sums[run * stride + k];
  }
  for (int64_t k = 0; k < stride; ++k) mean[k] /= std::max<int64_t>(1, count);
  return count;
}

// A row's features less the mean: F, G.
struct Deviation {
  double dot, f, g;  // F . G, |F|, |G|; |F| < 0 for a zero row
};

inline void deviations(const ClassRows& c, Metric metric, const double* mean, Deviation* out, int threads) {
  const int64_t w = padded(c.x.width), runs = run_count(c.n);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t run = 0; run < runs; ++run) {
    std::vector<double> row(feature_width(metric, c.x.width));
    for (int64_t i = c.n * run / runs; i < c.n * (run + 1) / runs; ++i) {
      if (load_features(c.x, metric, c.rows[i], row.data())) {
        out[i] = {0, -1, -1};
        continue;
      }
      Lanes dot{}, ff{}, gg{};
      if (metric == Metric::jeffreys) {
        for (int64_t k = 0; k < w; k += 8) {
          const Lanes f = load(row.data() + k) - load(mean + k), g = load(row.data() + w + k) - load(mean + w + k);
          dot += f * g;
          ff += f * f;
          gg += g * g;
        }
        out[i] = {add_lanes(dot), std::sqrt(add_lanes(ff)), std::sqrt(add_lanes(gg))};
      } else {
        for (int64_t k = 0; k < w; k += 8) {
          const Lanes f = load(row.data() + k) - load(mean + k);
          ff += f * f;
        }
        out[i].dot = add_lanes(ff);
        out[i].f = out[i].g = std::sqrt(out[i].dot);
      }
    }
  }
}

// cost [n] and bound [n] on its error. The bound's terms: rounding of the dots and of their sum, and
// of the means, which the identity takes as exact (their entries are sums of numbers that are at most |mean| + |F|).
inline void costs_from_means(const ClassRows& c, Metric metric, double* cost, double* bound, int threads) {
  const int64_t w = padded(c.x.width);
  std::vector<double> mean(feature_width(metric, c.x.width));
  std::vector<Deviation> rows(c.n);
  const double count = mean_features(c, metric, mean.data(), threads), zeros = c.n - count;
  deviations(c, metric, mean.data(), rows.data(), threads);

  double dots = 0, products = 0, ff = 0, gg = 0;
  for (const Deviation& r : rows) {
    if (r.f < 0) continue;
    dots += r.dot;
    products += r.f * r.g;
    ff += r.f * r.f;
    gg += r.g * r.g;
  }
  const double mean_f = std::sqrt(squared_length(mean.data(), w)) + std::sqrt(ff / std::max(count, 1.0));
  const double mean_g = metric != Metric::jeffreys
                            ? mean_f
                            : std::sqrt(squared_length(mean.data() + w, w)) + std::sqrt(gg / std::max(count, 1.0));
  const double error = rounding(c.n, c.x.width), half = metric == Metric::cosine ? 0.5 : 1.0;
  const double underflow = double(c.n) * w * DBL_MIN;
  for (int64_t i = 0; i < c.n; ++i) {
    const Deviation& r = rows[i];
    const bool zero = r.f < 0;
    cost[i] = zero ? c.n - 1.0 : half * (count * r.dot + dots) + zeros;
    bound[i] =
        zero ? error * c.n
             : error * (half * (count * (r.f * r.g + r.f * mean_g + r.g * mean_f) + products) + zeros) + underflow;
  }
}

}  // namespace TOAST_ISA
}  // namespace toast
