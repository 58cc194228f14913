// The euclidean distances of larger classes from matrix products: what goes into the product and what is made of it.
#pragma once

#include "cpu/medoids/means.h"

namespace toast {
namespace TOAST_ISA {

// The class mean [D]; returns the largest distance of a row from it.
inline double centre(const ClassRows& c, double* mean, int threads) {
  LaneVector features(padded(c.x.width));
  std::vector<Norm> norms(c.n);
  std::vector<Deviation> rows(c.n);
  mean_features<Metric::sqeuclidean>(c, features.data(), norms.data(), threads);
  deviations<Metric::sqeuclidean>(c, features.data(), norms.data(), rows.data(), threads);
  std::copy(features.begin(), features.begin() + c.x.width, mean);
  double radius = 0;
  for (const Deviation& r : rows) radius = r.f <= radius ? radius : r.f;  // NaN, from an overflow, comes through
  return radius;
}

// Unit roundoff, and a padding of the lengths so small that it changes nothing and so large that the errors relative to
// it cover products that underflow.
template <class Real>
constexpr double unit = std::is_same_v<Real, float> ? 0x1p-24 : 0x1p-53;
template <class Real>
constexpr double padding = std::is_same_v<Real, float> ? 0x1p-50 : 0x1p-400;

template <class Real>
void fill_panel(const ClassRows& c, const int64_t* positions, const double* mean, double scale, const Panel& out,
                int threads) {
  const int64_t width = c.x.width;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<double> row(padded(width));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < out.count; ++i) {
      load_row(c.x, c.rows[positions[i]], row.data());
      Real* rounded = static_cast<Real*>(out.rows) + i * width;
      for (int64_t k = 0; k < width; ++k) {
        row[k] = (row[k] - mean[k]) * scale;
        rounded[k] = Real(row[k]);
      }
      double square = 0, error = 0;
#pragma omp simd reduction(+ : square, error)
      for (int64_t k = 0; k < width; ++k) {
        const double r = rounded[k], e = row[k] - r;
        square += r * r;
        error += e * e;
      }
      const double length = std::sqrt(square) * (1 + 1e-6) + padding<Real>;
      static_cast<Real*>(out.squares)[i] = Real(square);
      static_cast<Real*>(out.lengths)[i] = Real(length);
      out.errors[i] = std::sqrt(error) * (1 + 1e-6) + length * DBL_EPSILON;
    }
  }
}

// The bound on a sum of up to 128 distances: bounds were themselves computed in Real, and the distances rounded and
// added.
template <class Real>
double full_bound(Real cost, Real bound) {
  return 1.001 * bound + 160 * unit<Real> * cost;
}

// One row of a tile, columns [begin, end). With a~, b~ the panels' rows, t = |a~| + |b~| and u the unit roundoff, the
// square from a product of width terms, added in any order, errs by at most kappa t^2 (README.md), so the distance d by
// min(sqrt(kappa) t, kappa t^2 / d). 128 at a time are added in Real, then in double.
template <bool with_columns, class Real>
void add_row(const Tile& tile, int64_t i, int64_t begin, int64_t end, double kappa, Real* column_cost,
             Real* column_bound) {
  const Real* products = static_cast<const Real*>(tile.products) + i * tile.columns;
  const Real *squares = static_cast<const Real*>(tile.column_squares),
             *lengths = static_cast<const Real*>(tile.column_lengths);
  const Real square = static_cast<const Real*>(tile.row_squares)[i],
             length = static_cast<const Real*>(tile.row_lengths)[i];
  const Real slope = Real(kappa), most = Real(std::sqrt(kappa));
  for (int64_t first = begin; first < end; first += 128) {
    const int64_t last = std::min(first + 128, end);
    Real cost = 0, bound = 0;
#pragma omp simd reduction(+ : cost, bound)
    for (int64_t j = first; j < last; ++j) {
      const Real s = square + squares[j] - 2 * products[j];
      const Real d = std::sqrt(s > 0 ? s : Real(0));
      const Real t = length + lengths[j];
      const Real far = slope * t * t / d, near = most * t;
      const Real b = far < near ? far : near;
      cost += d;
      bound += b;
      if constexpr (with_columns) {
        column_cost[j] += d;
        column_bound[j] += b;
      }
    }
    tile.row_cost[i] += cost;
    tile.row_bound[i] += full_bound<Real>(cost, bound);
  }
}

// Columns are added over 32 rows in Real, each such run in its own slot, and the slots in double, in order.
template <class Real>
void add_tile(const Tile& tile, int threads) {
  constexpr int64_t run = 32;
  const bool with_columns = tile.column_cost != nullptr;
  const int64_t runs = (tile.rows + run - 1) / run, slot = with_columns ? tile.columns : 0;
  const double kappa = 0.6 * (tile.width + 8) * unit<Real>;
  std::vector<Real> slots(2 * runs * slot);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t r = 0; r < runs; ++r) {
    Real *cost = slots.data() + 2 * r * slot, *bound = cost + slot;
    for (int64_t i = r * run; i < std::min(tile.rows, (r + 1) * run); ++i) {
      const int64_t self = tile.row_positions[i] - tile.first_column;
      const int64_t after = std::min(tile.columns, std::max<int64_t>(0, self + 1));
      if (with_columns) {
        add_row<true>(tile, i, after, tile.columns, kappa, cost, bound);
      } else {
        add_row<false, Real>(tile, i, 0, std::min(tile.columns, std::max<int64_t>(0, self)), kappa, nullptr, nullptr);
        add_row<false, Real>(tile, i, after, tile.columns, kappa, nullptr, nullptr);
      }
    }
  }
  for (int64_t r = 0; r < runs; ++r)
    for (int64_t j = 0; j < slot; ++j) {
      const Real cost = slots[2 * r * slot + j], bound = slots[(2 * r + 1) * slot + j];
      tile.column_cost[j] += cost;
      tile.column_bound[j] += full_bound<Real>(cost, bound);
    }
}

}  // namespace TOAST_ISA
}  // namespace toast
