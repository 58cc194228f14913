// class_medoids on the CPU: rows are grouped by class; a fast formula (means.h, euclidean.h, cityblock.h) nominates,
// with a bound on each cost's error; those that cannot win are dropped and exact costs decide (decide.h, costs.h). In a
// small class all pairs do (costs.h).
#include "medoids.h"

#include "cpu/medoids/cityblock.h"
#include "cpu/medoids/decide.h"
#include "cpu/medoids/euclidean.h"
#include "cpu/medoids/means.h"

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

// Rows that are used (mask, ignore_index, all values finite) by class, then by number: class c has order[offsets[c]] to
// order[offsets[c + 1] - 1]. Returns -1, or the first used row whose label is out of range.
int64_t group_by_class(const Matrix& x, const Labels& labels, int64_t* offsets /* [K + 1] */, int64_t* order /* [N] */,
                       int threads) {
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

// Elements of pair differences that are added up exactly in less time than a finer formula takes.
constexpr int64_t few_pairs = int64_t(1) << 24;

// Whether a class is worth all threads; others are done side by side.
bool is_large(const ClassRows& c, Metric metric) {
  const int64_t elements = c.n * c.x.width;
  const bool many_pairs = formula_of(metric) == Formula::products && c.n * elements > int64_t(1) << 27;
  return (elements >= int64_t(1) << 18 || many_pairs) && !pairs_are_quickest(c, metric);
}

// Wider rows' products in float have no bound.
constexpr int64_t float_products_width = int64_t(1) << 20;

// Whether there is a finer formula than the first: sorted columns, not buckets; double, not float.
bool has_finer(const ClassRows& c, Metric metric) {
  return metric == Metric::jeffreys || formula_of(metric) == Formula::columns ||
         (formula_of(metric) == Formula::products && c.x.width < float_products_width);
}

// Costs of all rows by a formula that needs no products.
template <Metric metric>
void nominate_all(const ClassRows& c, bool finely, double* cost, double* bound, int threads) {
  if constexpr (formula_of(metric) == Formula::columns) return costs_by_columns(c, finely, cost, bound, threads);
  if (metric == Metric::jeffreys && !finely) return costs_from_means<metric, float>(c, cost, bound, threads);
  costs_from_means<metric, double>(c, cost, bound, threads);
}

// Fills in the candidates' costs and bounds.
void nominate(const ClassRows& c, Metric metric, bool finely, const Candidates& some, int threads) {
  with_metric(metric, [&](auto known) {
    constexpr Metric m = known.value;
    if constexpr (formula_of(m) == Formula::none) {
      std::fill(some.bound, some.bound + some.count, INFINITY);  // which says nothing
    } else if constexpr (formula_of(m) == Formula::products) {
      const Products products(c, threads);
      if (finely || !has_finer(c, m))
        products.nominate<double>(some);
      else
        products.nominate<float>(some);
    } else if (some.count == c.n) {  // all rows, in order
      nominate_all<m>(c, finely, some.cost, some.bound, threads);
    } else {
      std::vector<double> cost(c.n), bound(c.n);
      nominate_all<m>(c, finely, cost.data(), bound.data(), threads);
      for (int64_t i = 0; i < some.count; ++i) {
        some.cost[i] = cost[some.positions[i]];
        some.bound[i] = bound[some.positions[i]];
      }
    }
  });
}

int64_t class_medoid(const ClassRows& c, Metric metric, int threads) {
  if (c.n == 0) return -1;
  if (c.n <= 2) return c.rows[0];  // two rows have the same cost
  if (pairs_are_quickest(c, metric)) return c.rows[small_class_medoid(c, metric)];
  std::vector<int64_t> positions(c.n);
  std::iota(positions.begin(), positions.end(), int64_t(0));
  std::vector<double> cost(c.n), bound(c.n);
  Candidates left{positions.data(), cost.data(), bound.data(), c.n};
  nominate(c, metric, false, left, threads);
  left.count = drop_losers(c, metric, left, threads);
  if (left.count * c.n * c.x.width > few_pairs && has_finer(c, metric)) {
    nominate(c, metric, true, left, threads);
    left.count = drop_losers(c, metric, left, threads);
  }
  return c.rows[decide(c, metric, left, threads)];
}

}  // namespace

int64_t class_medoids(const ClassMedoids& p) {
  const int64_t classes = p.labels.classes;
  std::vector<int64_t> offsets(classes + 1), order(p.x.rows);
  const int64_t wrong = group_by_class(p.x, p.labels, offsets.data(), order.data(), p.threads);
  if (wrong >= 0) return wrong;
  const auto rows_of = [&](int64_t k) {
    return ClassRows{p.x, order.data() + offsets[k], offsets[k + 1] - offsets[k]};
  };
  parallel_for(classes, p.threads, [&](int64_t k) {
    if (!is_large(rows_of(k), p.metric)) p.medoids[k] = class_medoid(rows_of(k), p.metric, 1);
  });
  for (int64_t k = 0; k < classes; ++k)
    if (is_large(rows_of(k), p.metric)) p.medoids[k] = class_medoid(rows_of(k), p.metric, p.threads);
  return -1;
}

}  // namespace TOAST_ISA
}  // namespace toast
