#include "medoids.h"

#include "cpu/medoids/cityblock.h"
#include "cpu/medoids/decide.h"
#include "cpu/medoids/means.h"
#include "cpu/medoids/small_products.h"

namespace toast {
namespace TOAST_ISA {
namespace {

template <class T>
bool all_finite(const T* row, int64_t stride, int64_t width) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
  constexpr Bits exponent = std::is_same_v<T, double>    ? Bits(0x7ff0000000000000u)
                            : std::is_same_v<T, float>   ? Bits(0x7f800000u)
                            : std::is_same_v<T, float16> ? Bits(0x7c00u)
                                                         : Bits(0x7f80u);
  Bits found = 0;
  for (int64_t k = 0; k < width; ++k) {
    Bits bits;
    std::memcpy(&bits, row + k * stride, sizeof bits);
    found |= Bits((bits & exponent) == exponent);
  }
  return found == 0;
}

bool all_finite(const Matrix& x, int64_t row) {
  bool finite = true;
  with_dtype(x.dtype, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(x.data) + row * x.row_stride;
    finite = x.column_stride == 1 ? all_finite(data, 1, x.width) : all_finite(data, x.column_stride, x.width);
  });
  return finite;
}

int64_t group_by_class(const Matrix& x, const Labels& labels, int64_t* offsets, int64_t* order, int threads) {
  std::vector<int64_t> class_of(x.rows);
  int64_t first_wrong = x.rows;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : first_wrong) if (threads > 1)
  for (int64_t i = 0; i < x.rows; ++i) {
    const int64_t at = i * labels.stride;
    const int64_t label = labels.wide ? static_cast<const int64_t*>(labels.data)[at]
                                      : int64_t(static_cast<const std::int32_t*>(labels.data)[at]);
    const bool used = label != labels.ignore_index && (labels.mask == nullptr || labels.mask[i * labels.mask_stride]) &&
                      all_finite(x, i);
    class_of[i] = used ? label : -1;
    if (used && (label < 0 || label >= labels.classes)) first_wrong = std::min(first_wrong, i);
  }
  if (first_wrong < x.rows) return first_wrong;

  std::fill(offsets, offsets + labels.classes + 1, 0);
  for (int64_t c : class_of)
    if (c >= 0) ++offsets[c + 1];
  for (int64_t c = 0; c < labels.classes; ++c) offsets[c + 1] += offsets[c];
  std::vector<int64_t> next(offsets, offsets + labels.classes);
  for (int64_t i = 0; i < x.rows; ++i)
    if (class_of[i] >= 0) order[next[class_of[i]]++] = i;
  return -1;
}

// The fast formula that nominates. A metric that is not named here has none: exact costs alone decide.
enum class Formula { none, products, means, columns };
constexpr Formula formula_of(Metric metric) {
  switch (metric) {
    case Metric::euclidean:
      return Formula::products;
    case Metric::sqeuclidean:
    case Metric::cosine:
    case Metric::jeffreys:
      return Formula::means;
    case Metric::cityblock:
      return Formula::columns;
    default:
      return Formula::none;
  }
}

// Whether all pairs at once are the quickest. On one core with AVX-512 a pair costs 0.07 to 0.12 ns an element, a
// column 0.5 us and 3 ns a row, a product's calls 50 us. (No class of 2^24 elements is copied to float64 for it.)
bool pairs_are_quickest(const ClassRows& c, Metric metric) {
  const int64_t elements = c.n * std::max<int64_t>(1, c.x.width);
  switch (formula_of(metric)) {
    case Formula::means:
      return false;
    case Formula::columns:
      return c.n < 160 && elements <= int64_t(1) << 24;
    default:
      return c.n * elements <= int64_t(1) << 21;
  }
}

// Elements of pair differences that are added up exactly in less time than a finer pass takes.
constexpr int64_t few_pairs = int64_t(1) << 24;
// Elements from which a class is worth all threads; smaller ones are done side by side.
constexpr int64_t large_class = int64_t(1) << 18;

// Euclidean classes whose products are quickest here, side by side on one thread each (1.5 ms at most on a core with
// AVX-512); for more pairs and wider rows torch's products over all threads are as quick, and quicker for a lone class.
bool products_are_small(const ClassRows& c) {
  return c.n * c.x.width < large_class && c.n * c.n * c.x.width <= int64_t(1) << 27;
}

// By a formula that needs no products. The coarse ones: cityblock's buckets, jeffreys' exponentials in float.
void nominate(const ClassRows& c, Metric metric, bool finely, double* cost, double* bound, int threads) {
  with_metric(metric, [&](auto known) {
    constexpr Metric m = known.value;
    if constexpr (formula_of(m) == Formula::columns) costs_by_columns(c, finely, cost, bound, threads);
    if constexpr (formula_of(m) == Formula::means) {
      if constexpr (m == Metric::jeffreys)
        if (!finely) return costs_from_means<m, float>(c, cost, bound, threads);
      costs_from_means<m, double>(c, cost, bound, threads);
    }
  });
}

int64_t class_medoid(const ClassRows& c, Metric metric, int threads) {
  if (c.n == 0) return -1;
  if (c.n <= 2) return c.rows[0];  // two rows have the same cost
  if (pairs_are_quickest(c, metric)) return c.rows[small_class_medoid(c, metric)];
  const Formula formula = formula_of(metric);
  if (formula == Formula::products && !products_are_small(c)) return needs_products;

  std::vector<int64_t> positions(c.n);
  for (int64_t i = 0; i < c.n; ++i) positions[i] = i;
  std::vector<double> cost(c.n), bound(c.n);
  Candidates left{positions.data(), cost.data(), bound.data(), c.n};
  bool nominated = formula != Formula::none;
  const bool has_finer = formula == Formula::columns || metric == Metric::jeffreys;
  if (formula == Formula::products) {
    std::vector<double> mean(c.x.width);
    const double radius = centre(c, mean.data(), threads);
    // Out of this range squares over- or underflow: nothing is nominated, exact costs alone decide.
    nominated = radius > 0x1p-400 && radius < 0x1p400;
    if (nominated) costs_from_products(c, positions.data(), mean.data(), radius, cost.data(), bound.data());
  } else if (nominated) {
    nominate(c, metric, !has_finer, cost.data(), bound.data(), threads);
  }
  if (!nominated) std::fill(bound.begin(), bound.end(), INFINITY);  // which says nothing
  left.count = narrow(c, metric, left, threads);
  const bool few = left.count * c.n * c.x.width <= few_pairs;
  if (formula == Formula::products && !few) return needs_products;  // in float64
  if (has_finer && !few) {
    std::vector<double> finer_cost(c.n), finer_bound(c.n);
    nominate(c, metric, true, finer_cost.data(), finer_bound.data(), threads);
    for (int64_t i = 0; i < left.count; ++i) {
      cost[i] = finer_cost[positions[i]];
      bound[i] = finer_bound[positions[i]];
    }
    left.count = narrow(c, metric, left, threads);
  }
  return c.rows[decide(c, metric, left, threads)];
}

void all_classes(const Matrix& x, Metric metric, const int64_t* offsets, const int64_t* order, int64_t classes,
                 int64_t* medoids, int threads) {
  auto rows_of = [&](int64_t k) { return ClassRows{x, order + offsets[k], offsets[k + 1] - offsets[k]}; };
  auto large = [&](int64_t k) {
    const ClassRows c = rows_of(k);
    return c.n * x.width >= large_class && !pairs_are_quickest(c, metric);
  };
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t k = 0; k < classes; ++k)
    if (!large(k)) medoids[k] = class_medoid(rows_of(k), metric, 1);
  for (int64_t k = 0; k < classes; ++k)
    if (large(k)) medoids[k] = class_medoid(rows_of(k), metric, threads);
}

void panel(const ClassRows& c, const int64_t* positions, const double* mean, double scale, const Panel& out,
           int threads) {
  if (out.dtype == DType::float64)
    fill_panel<double>(c, positions, mean, scale, out, threads);
  else
    fill_panel<float>(c, positions, mean, scale, out, threads);
}

void distance_sums(const Tile& tile, int threads) {
  if (tile.dtype == DType::float64)
    add_tile<double>(tile, threads);
  else
    add_tile<float>(tile, threads);
}

int64_t decide_row(const ClassRows& c, Metric metric, const Candidates& candidates, int threads) {
  return c.rows[decide(c, metric, candidates, threads)];
}

}  // namespace

void get_medoid_kernels(MedoidKernels& kernels) {
  kernels = {group_by_class, all_classes, centre, panel, distance_sums, narrow, decide_row};
}

}  // namespace TOAST_ISA
}  // namespace toast
