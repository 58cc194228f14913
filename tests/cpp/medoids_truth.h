// Class medoids by brute force in long double.
#pragma once

#include <vector>

#include "elements.h"
#include "medoids.h"
#include "random.h"

using std::int64_t;
using toast::DType;
using toast::Metric;

using Number = long double;
using Row = std::vector<Number>;

// What the metric compares: x itself, x / |x|, or log p and p, p = softmax(x).
inline Row features(Row x, Metric metric) {
  Number top = -INFINITY, sum = 0;
  if (metric == Metric::cosine) {
    for (Number v : x) sum += v * v;
    for (Number& v : x) v = sum == 0 ? 0 : v / std::sqrt(sum);
  } else if (metric == Metric::jeffreys) {
    for (Number v : x) top = std::max(top, v);
    for (Number v : x) sum += std::exp(v - top);
    const std::size_t width = x.size();
    for (Number& v : x) v -= top + std::log(sum);
    for (std::size_t k = 0; k < width; ++k) x.push_back(std::exp(x[k]));
  }
  return x;
}

__attribute__((no_sanitize("address", "undefined")))  // the truth is no code under test, and takes most of the time
inline Number distance(const Row& left, const Row& right, Metric metric) {
  const Number *a = left.data(), *b = right.data();
  const std::size_t width = metric == Metric::jeffreys ? left.size() / 2 : left.size();
  Number total = 0, a_size = 0, b_size = 0;
  if (metric == Metric::cosine)
    for (std::size_t k = 0; k < width; ++k) a_size += a[k] * a[k], b_size += b[k] * b[k];
  for (std::size_t k = 0; k < width; ++k) {
    const Number d = a[k] - b[k];
    total += metric == Metric::cityblock  ? std::fabs(d)
             : metric == Metric::jeffreys ? (a[width + k] - b[width + k]) * d
                                          : d * d;
  }
  if (metric == Metric::euclidean) return std::sqrt(total);
  if (metric == Metric::cosine) return a_size == 0 || b_size == 0 ? 1 : total / 2;
  return total;
}

// E of each of these rows among them.
inline Row costs(const std::vector<Row>& x, const std::vector<int64_t>& rows, Metric metric) {
  std::vector<Row> f;
  for (int64_t i : rows) f.push_back(features(x[i], metric));
  Row cost(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      const Number d = distance(f[i], f[j], metric);
      cost[i] += d;
      cost[j] += d;
    }
  return cost;
}

inline int64_t medoid(const std::vector<Row>& x, const std::vector<int64_t>& rows, Metric metric) {
  if (rows.empty()) return -1;
  const Row cost = costs(x, rows, metric);
  Number lowest = INFINITY;
  for (Number c : cost) lowest = std::min(lowest, c);
  const Number limit = lowest * (1 + Number(1e-12)) + (metric == Metric::cosine ? Number(1e-28) * rows.size() : 0);
  std::size_t i = 0;
  while (cost[i] > limit) ++i;
  return rows[i];
}

// A matrix in guarded memory, by rows or by columns, with gaps.
struct Data {
  Elements elements;
  toast::Matrix matrix;
  std::vector<Row> x;
};

// grid: small integers, which give ties, equal rows and zero rows; far_grid: the same far from 0; outliers: some rows
// lie a thousand times as far out; lone_outlier: one lies 10^12 times as far out; clusters: rows 10^4 times as near to
// some others as to the rest.
enum class Cloud { normal, grid, far_grid, outliers, lone_outlier, clusters };

inline Data make_data(Random& random, DType dtype, int64_t rows, int64_t width, Cloud cloud) {
  Data data;
  const bool by_rows = !random.once_in(4);
  const int64_t gap = random.one_of({0, 0, 1, 5}), offset = random.one_of({0, 0, 3});
  const int64_t row_stride = by_rows ? width + gap : 1 + gap % 2, column_stride = by_rows ? 1 : rows * row_stride + gap;
  data.elements = Elements(dtype, offset + (by_rows ? rows * row_stride : width * column_stride));
  data.elements.forbid(0, offset);
  const double shift = cloud == Cloud::normal ? random.one_of({0.0, 0.0, 1000.0}) : 0;
  const double scale = dtype == DType::float64 ? random.one_of({1.0, 1.0, 1e-3, 1e140, 1e-140}) : 1.0;
  auto draw = [&](bool outlier) {
    if (cloud == Cloud::far_grid) return double(random.below(3) + (1 << 20));
    if (cloud == Cloud::grid) return double(random.below(3) - 1);
    return (!outlier ? 1 : cloud == Cloud::outliers ? 1000 : 1e12) * scale * (shift + random.normal());
  };
  for (int64_t i = 0; i < rows; ++i) {
    Row row;
    const bool repeats = i > 0 && random.once_in(8), near = cloud == Cloud::clusters && i >= 5;
    const bool outlier = cloud == Cloud::outliers ? i % 40 == 7 : cloud == Cloud::lone_outlier && i == 7;
    for (int64_t k = 0; k < width; ++k) {
      const double value = repeats ? double(data.x.back()[k])
                           : near  ? double(data.x[i % 5][k]) + 1e-4 * scale * random.normal()
                                   : draw(outlier);
      row.push_back(data.elements.set(offset + i * row_stride + k * column_stride, value));
    }
    data.x.push_back(row);
    if (by_rows) data.elements.forbid(offset + i * row_stride + width, gap);
  }
  data.matrix = {dtype, data.elements.at(offset), rows, width, row_stride, column_stride};
  return data;
}
