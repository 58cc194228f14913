// Euclidean costs of larger classes, from matrix products: what goes into the products and what is made of them.
#pragma once

#include <numeric>

#include "cpu/medoids/decide.h"
#include "cpu/medoids/means.h"
#include "cpu/medoids/products.h"

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

// A tile of products: what one thread multiplies and adds up at a time. 147 KB, on its stack. Sums in Real have at most
// 128 terms: a column's 96, a lane's 384 / 4 of a row.
constexpr int64_t tile_rows = 2 * block;
template <class Real>
constexpr int64_t tile_columns = 1536 / sizeof(Real);

// Some rows of a class as they enter the products: y~ = (x - mean) * scale rounded to Real, packed, with what the error
// bounds need: the squared norms, the lengths, padded, and the length of what rounding took off. Of what pads the last
// block all is 0.
template <class Real>
struct Panel {
  int64_t count = 0;
  LineVector<Real> rows, squares, lengths;
  std::vector<double> errors;

  void pack(const ClassRows& c, const int64_t* positions, int64_t positions_count, const double* mean, double scale,
            int threads) {
    const int64_t padded_count = whole_blocks(positions_count);
    count = positions_count;
    rows.resize(padded_count * c.x.width);
    squares.resize(padded_count);
    lengths.resize(padded_count);
    errors.resize(padded_count);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t first = 0; first < padded_count; first += group) pack_group(c, positions, first, mean, scale);
  }

 private:
  static constexpr int64_t group = 16;  // rows that are laid side by side at a time: one cache line of floats

  void pack_group(const ClassRows& c, const int64_t* positions, int64_t first, const double* mean, double scale) {
    constexpr int64_t chunk = 128;  // columns that are in the level 1 cache meanwhile
    Real y[group][chunk] = {};
    double row[chunk], square[group] = {}, error[group] = {};
    const int64_t width = c.x.width, here = std::max<int64_t>(0, std::min(group, count - first));
    Real* out = rows.data() + (first - first % block) * width + first % block;
    for (int64_t begin = 0; begin < width; begin += chunk, out += chunk * block) {
      const int64_t columns = std::min(chunk, width - begin);
      for (int64_t i = 0; i < here; ++i) {
        load_columns(c.x, c.rows[positions[first + i]], begin, columns, row);
        double squares_sum = 0, errors_sum = 0;
#pragma omp simd reduction(+ : squares_sum, errors_sum)
        for (int64_t k = 0; k < columns; ++k) {
          const double exact = (row[k] - mean[begin + k]) * scale;
          y[i][k] = Real(exact);
          const double r = y[i][k], e = exact - r;
          squares_sum += r * r;
          errors_sum += e * e;
        }
        square[i] += squares_sum;
        error[i] += errors_sum;
      }
      for (int64_t k = 0; k < columns; ++k)
        for (int64_t i = 0; i < group; ++i) out[k * block + i] = y[i][k];
    }
    for (int64_t i = 0; i < group; ++i) {
      const double length = i < here ? std::sqrt(square[i]) * (1 + 1e-6) + padding<Real> : 0.0;
      squares[first + i] = Real(square[i]);
      lengths[first + i] = Real(length);
      errors[first + i] = std::sqrt(error[i]) * (1 + 1e-6) + length * DBL_EPSILON;
    }
  }
};

// 1 / sqrt(x), to 8 units in the last place.
template <class Real>
TOAST_INLINE Register<Real> inverse_root(Register<Real> x) {
#if defined(__AVX2__)
  if constexpr (std::is_same_v<Real, float>) {
#if defined(__AVX512F__)
    const Register<float> y = _mm512_rsqrt14_ps(x);
#else
    const Register<float> y = _mm256_rsqrt_ps(x);
#endif
    return y * fma(-0.5f * x * y, y, 1.5f - Register<float>{});
  }
#endif
  Real lane[register_lanes<Real>];
  store_register(x, lane);
  for (Real& value : lane) value = 1 / std::sqrt(value);
  return load_register(lane);
}

template <class Real>
TOAST_INLINE Real sum_register(Register<Real> v) {
  typedef Real Part __attribute__((vector_size(16)));
  Part part[register_bytes / 16], sum{};
  std::memcpy(part, &v, sizeof v);
  for (const Part& p : part) sum += p;
  Real total = sum[0];
  for (unsigned i = 1; i < 16 / sizeof(Real); ++i) total += sum[i];
  return total;
}

// 1 in the lanes that hold columns [begin, end), 0 in others, where lane 0 holds column j.
template <class Real>
Register<Real> lanes_inside(int64_t j, int64_t begin, int64_t end) {
  Real lane[register_lanes<Real>];
  for (int64_t i = 0; i < register_lanes<Real>; ++i) lane[i] = Real(j + i >= begin && j + i < end);
  return load_register(lane);
}

// Distances and the bounds on their errors, added up.
template <class Real>
struct Sums {
  Real *cost, *bound;
};

// One row of a tile of products, columns [begin, end), added to its sums and to the columns'. With a~, b~ the panels'
// rows, t = |a~| + |b~| and u the unit roundoff, the square from a product of width terms, added in any order, errs by
// at most kappa t^2 (README.md), so the distance d by min(sqrt(kappa) t, kappa t^2 / d).
template <class Real>
void add_row(const Real* products, Real square, Real length, const Real* squares, const Real* lengths, double kappa,
             int64_t begin, int64_t end, Real& row_cost, Real& row_bound, const Sums<Real>& columns) {
  using R = Register<Real>;
  constexpr int64_t lanes = register_lanes<Real>;
  const R least = std::numeric_limits<Real>::min() - R{}, slope = Real(kappa) - R{},
          most = Real(std::sqrt(kappa)) - R{}, minus_two = Real(-2) - R{};
  R cost{}, bound{};
  for (int64_t j = begin - begin % lanes; j < end; j += lanes) {
    R s = fma(minus_two, load_register(products + j), square + load_register(squares + j));
    s = s > least ? s : least;
    const R inverse = inverse_root<Real>(s), t = length + load_register(lengths + j), far = t * (slope * inverse);
    R d = s * inverse, b = t * (far < most ? far : most);
    if (j < begin || j + lanes > end) {
      const R inside = lanes_inside<Real>(j, begin, end);
      d *= inside;
      b *= inside;
    }
    cost += d;
    bound += b;
    store_register(load_register(columns.cost + j) + d, columns.cost + j);
    store_register(load_register(columns.bound + j) + b, columns.bound + j);
  }
  row_cost += sum_register<Real>(cost);
  row_bound += sum_register<Real>(bound);
}

// The bound on a sum of up to 128 distances in Real: bounds were themselves computed in Real, and the distances rounded
// and added.
template <class Real>
double full_bound(Real cost, Real bound) {
  return 1.001 * bound + 160 * unit<Real> * cost;
}

// Euclidean costs of some rows of a class, and bounds on their errors, from products with all of its rows.
class Products {
 public:
  Products(const ClassRows& c, int threads) : c_(c), threads_(threads), mean_(c.x.width), everyone_(c.n) {
    std::iota(everyone_.begin(), everyone_.end(), int64_t(0));
    radius_ = centre(c, mean_.data(), threads);
    if (in_range()) scale_ = std::ldexp(0.5, -std::ilogb(radius_));
  }

  // Out of this range squares over- or underflow in double: bounds are infinite, exact costs alone decide.
  bool in_range() const { return radius_ > 0x1p-400 && radius_ < 0x1p400; }

  // Fills in cost and bound. While every row is a candidate only the upper triangle of the pairs is computed, and added
  // up by columns too.
  template <class Real>
  void nominate(const Candidates& some) const {
    if (!in_range()) return std::fill(some.bound, some.bound + some.count, INFINITY);
    const bool triangle = some.count == c_.n;
    const int64_t most = panel_rows<Real>(c_.x.width);
    Panel<Real> rows, columns;
    std::vector<double> errors(some.count);
    double total_error = 0;
    std::fill(some.cost, some.cost + some.count, 0.0);
    std::fill(some.bound, some.bound + some.count, 0.0);
    for (int64_t j = 0; j < c_.n; j += most) {
      columns.pack(c_, everyone_.data() + j, std::min(most, c_.n - j), mean_.data(), scale_, threads_);
      for (double error : columns.errors) total_error += error;
      for (int64_t i = 0; i < (triangle ? j + 1 : some.count); i += most) {
        const bool diagonal = triangle && i == j;
        const int64_t* positions = some.positions + i;
        if (!diagonal) rows.pack(c_, positions, std::min(most, some.count - i), mean_.data(), scale_, threads_);
        const Panel<Real>& left = diagonal ? columns : rows;
        std::copy(left.errors.begin(), left.errors.begin() + left.count, errors.begin() + i);
        add_pairs(left, positions, columns, j, triangle, some.cost + i, some.bound + i, some.cost + j, some.bound + j);
      }
    }
    for (int64_t i = 0; i < some.count; ++i) {
      some.cost[i] /= scale_;
      some.bound[i] = (some.bound[i] + double(c_.n) * errors[i] + total_error) / scale_;
    }
  }

 private:
  // 32 MB of rows at most, or a tile's.
  template <class Real>
  static int64_t panel_rows(int64_t width) {
    const int64_t fit = (int64_t(1) << 25) / int64_t(sizeof(Real)) / std::max<int64_t>(1, width);
    return std::max(tile_rows, std::min<int64_t>(4096, fit) / tile_rows * tile_rows);
  }

  // All pairs of two panels (of a triangle: those above the diagonal), a tile a thread at a time. Each tile has sums of
  // its own, which are added in double in one order.
  template <class Real>
  void add_pairs(const Panel<Real>& a, const int64_t* positions, const Panel<Real>& b, int64_t first_column,
                 bool triangle, double* row_cost, double* row_bound, double* column_cost, double* column_bound) const {
    constexpr int64_t stride = tile_columns<Real>;
    const int64_t width = c_.x.width, padded_columns = whole_blocks(b.count);
    const int64_t row_tiles = (a.count + tile_rows - 1) / tile_rows, column_tiles = (b.count + stride - 1) / stride;
    const double kappa = (std::is_same_v<Real, float> ? 0.6 : 1.3) * (width + 8) * unit<Real>;  // see README.md
    std::vector<Real> by_rows(2 * column_tiles * a.count), by_columns(2 * row_tiles * padded_columns);
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
    {
      alignas(64) Real products[tile_rows * stride];
#pragma omp for schedule(dynamic, 1)
      for (int64_t tile = 0; tile < row_tiles * column_tiles; ++tile) {
        const int64_t r = tile % row_tiles, row = r * tile_rows, c = tile / row_tiles, column = c * stride;
        const int64_t rows = std::min(tile_rows, a.count - row), columns = std::min(stride, b.count - column);
        // In a triangle positions are consecutive.
        const int64_t diagonal = triangle ? positions[row] - first_column - column : -rows;
        if (diagonal >= columns) continue;
        multiply(a.rows.data() + row * width, rows, b.rows.data() + column * width, columns, width, diagonal, products,
                 stride);
        Real *cost = by_rows.data() + 2 * c * a.count + row, *bound = cost + a.count;
        Real* sums = by_columns.data() + 2 * r * padded_columns + column;
        for (int64_t i = 0; i < rows; ++i) {
          const auto add = [&](int64_t begin, int64_t end) {
            if (begin >= end) return;
            add_row<Real>(products + i * stride, a.squares[row + i], a.lengths[row + i], b.squares.data() + column,
                          b.lengths.data() + column, kappa, begin, end, cost[i], bound[i],
                          {sums, sums + padded_columns});
          };
          const int64_t self = positions[row + i] - first_column - column;
          if (!triangle) add(0, std::min(self, columns));
          add(std::max<int64_t>(0, self + 1), columns);
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < a.count; ++i) add_sums(by_rows, column_tiles, a.count, i, row_cost[i], row_bound[i]);
#pragma omp for schedule(static)
      for (int64_t j = 0; j < (triangle ? b.count : 0); ++j)
        add_sums(by_columns, row_tiles, padded_columns, j, column_cost[j], column_bound[j]);
    }
  }

  template <class Real>
  static void add_sums(const std::vector<Real>& sums, int64_t tiles, int64_t stride, int64_t i, double& cost,
                       double& bound) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Real tile_cost = sums[2 * tile * stride + i], tile_bound = sums[(2 * tile + 1) * stride + i];
      cost += tile_cost;
      bound += full_bound<Real>(tile_cost, tile_bound);
    }
  }

  const ClassRows& c_;
  int threads_;
  std::vector<double> mean_;
  std::vector<int64_t> everyone_;
  double radius_, scale_ = 1;  // a power of two, that brings the longest row to about 1
};

}  // namespace TOAST_ISA
}  // namespace toast
