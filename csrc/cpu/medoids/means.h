// sqeuclidean, cosine and jeffreys from the class mean, in two passes over the class. Each is, up to a factor,
//   d(i, j) = (f_i - f_j) . (g_i - g_j)      f = g = x | f = g = x / |x| | f = p, g = log p
// so E(i) = n (f_i - mean f) . (g_i - mean g) + sum over j of the same.
#pragma once

#include "cpu/medoids/costs.h"

namespace toast {
namespace TOAST_ISA {

// Rows are added in at most 16 runs, whose borders depend on n alone, and the runs in order: the same bits for any
// number of threads.
inline int64_t run_count(int64_t n) { return std::max<int64_t>(1, std::min<int64_t>(16, n / 64)); }

// mean [feature_width] of the features, and norms [n]; a zero row (cosine) does not count. Returns how many rows do.
template <Metric metric, class Exp = double>
int64_t mean_features(const ClassRows& c, double* mean, Norm* norms, int threads) {
  const int64_t w = padded(c.x.width), stride = feature_width(metric, c.x.width), runs = run_count(c.n);
  LaneVector sums(runs * stride, 0.0);
  std::vector<int64_t> counts(runs);
  parallel_for(runs, threads, [&](int64_t run) {
    LaneVector scratch(stride);
    FeatureRow<metric, Exp> row(c.x, scratch.data());
    double* sum = sums.data() + run * stride;
    for (int64_t i = c.n * run / runs; i < c.n * (run + 1) / runs; ++i) {
      prefetch_row(c.x, c.rows[std::min(i + 2, c.n - 1)]);
      norms[i] = row.load_first(c.rows[i]);
      if (norms[i].zero) continue;
      for (int64_t k = 0; k < w; k += 8) {
        store(load(sum + k) + row.f(k), sum + k);
        if constexpr (metric == Metric::jeffreys) store(load(sum + w + k) + row.g(k), sum + w + k);
      }
      ++counts[run];
    }
  });
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

template <Metric metric, class Exp = double>
void deviations(const ClassRows& c, const double* mean, const Norm* norms, Deviation* out, int threads) {
  const int64_t w = padded(c.x.width), runs = run_count(c.n);
  parallel_for(runs, threads, [&](int64_t run) {
    LaneVector scratch(feature_width(metric, c.x.width));
    FeatureRow<metric, Exp> row(c.x, scratch.data());
    for (int64_t i = c.n * run / runs; i < c.n * (run + 1) / runs; ++i) {
      if (norms[i].zero) {
        out[i] = {0, -1, -1};
        continue;
      }
      row.load_again(c.rows[i], norms[i]);
      if constexpr (metric == Metric::jeffreys) {
        Lanes dot, ff, gg;
        for (int64_t k = 0; k < w; k += 8) {
          const Lanes f = row.f(k) - load(mean + k), g = row.g(k) - load(mean + w + k);
          dot += f * g;
          ff += f * f;
          gg += g * g;
        }
        out[i] = {add_lanes(dot), std::sqrt(add_lanes(ff)), std::sqrt(add_lanes(gg))};
      } else {
        out[i].dot = sum_columns(w, [&](int64_t k) {
          const Lanes f = row.f(k) - load(mean + k);
          return f * f;
        });
        out[i].f = out[i].g = std::sqrt(out[i].dot);
      }
    }
  });
}

// cost [n] and bound [n] on its error. The bound's terms: rounding of the dots and of their sum, and
// of the means, which the identity takes as exact (their entries are sums of numbers that are at most |mean| + |F|),
// and of exponentials in float.
template <Metric metric, class Exp = double>
void costs_from_means(const ClassRows& c, double* cost, double* bound, int threads) {
  const int64_t w = padded(c.x.width);
  LaneVector mean(feature_width(metric, c.x.width));
  std::vector<Norm> norms(c.n);
  std::vector<Deviation> rows(c.n);
  const double count = mean_features<metric, Exp>(c, mean.data(), norms.data(), threads), zeros = c.n - count;
  deviations<metric, Exp>(c, mean.data(), norms.data(), rows.data(), threads);

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
  // The length by which f = p may be off where its exponentials are float's. With d = x - top and u = 2^-24 an
  // exponential errs by a relative (10 + 2 |d|) u, their sum by (10 + 2 log w) u, since sum p |d| <= log w, and |p d| <
  // 0.74. (What is off in log_sum is common to a row and vanishes: each p sums to 1.) |p| <= |F| + |mean p|.
  constexpr double unit = std::is_same_v<Exp, float> ? 0x1p-24 : 0;
  const auto off = [&](const Deviation& r) { return unit * ((24 + 2 * std::log(w + 1.0)) * (r.f + mean_f) + 2); };
  double mean_off = 0, off_products = 0;
  for (const Deviation& r : rows) {
    mean_off += off(r) / c.n;
    off_products += off(r) * r.g;
  }
  for (int64_t i = 0; i < c.n; ++i) {
    const Deviation& r = rows[i];
    const bool zero = r.f < 0;
    cost[i] = zero ? c.n - 1.0 : half * (count * r.dot + dots) + zeros;
    bound[i] = zero ? error * c.n
                    : error * (half * (count * (r.f * r.g + r.f * mean_g + r.g * mean_f) + products) + zeros) +
                          underflow + count * (off(r) + mean_off) * r.g + off_products;
  }
}

}  // namespace TOAST_ISA
}  // namespace toast
