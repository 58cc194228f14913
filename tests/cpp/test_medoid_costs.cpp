// What medoids are made of against brute force: products, euclidean costs and the bounds on their errors.
#include "check.h"
#include "cpu/medoids/decide.h"
#include "cpu/medoids/euclidean.h"
#include "medoids_truth.h"

namespace {

using namespace toast::TOAST_ISA;

unsigned cases = 0;

struct Class {
  Data data;
  std::vector<int64_t> rows;
  ClassRows c{data.matrix, rows.data(), int64_t(rows.size())};

  // Some of the rows of a matrix.
  Class(Random& random, DType dtype, int64_t all_rows, int64_t width, Cloud cloud)
      : data(make_data(random, dtype, all_rows, width, cloud)) {
    check::current_case = "case " + std::to_string(cases++) + ": dtype " + std::to_string(int(dtype)) + ", " +
                          std::to_string(all_rows) + " x " + std::to_string(width);
    for (int64_t i = 0; i < all_rows; ++i)
      if (!random.once_in(5)) rows.push_back(i);
    c.rows = rows.data();
    c.n = int64_t(rows.size());
  }
  Class(const Class&) = delete;
};

// Candidates, by position in the class, with costs and bounds.
struct Some {
  Guarded<int64_t> positions;
  Guarded<double> cost, bound;

  explicit Some(const std::vector<int64_t>& all)
      : positions(int64_t(all.size())), cost(positions.size()), bound(positions.size()) {
    std::copy(all.begin(), all.end(), positions.data());
  }
  Candidates candidates() { return {positions.data(), cost.data(), bound.data(), positions.size()}; }
  bool intact() { return positions.intact() && cost.intact() && bound.intact(); }
};

std::vector<int64_t> every(int64_t n, int64_t step) {
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < n; i += step) positions.push_back(i);
  return positions;
}

// Packed rows and columns of small integers, whose products are exact in any order.
template <class Real>
void test_multiply(int64_t rows, int64_t columns, int64_t width, int64_t diagonal) {
  Random random(cases++);
  check::current_case = std::to_string(rows) + " x " + std::to_string(columns) + " products of " +
                        std::to_string(width) + ", diagonal " + std::to_string(diagonal);
  const auto pack = [&](int64_t count, Guarded<Real>& out, std::vector<std::vector<Real>>& plain) {
    out = Guarded<Real>(whole_blocks(count) * width);
    plain.assign(count, std::vector<Real>(width));
    for (int64_t i = 0; i < whole_blocks(count); ++i)
      for (int64_t k = 0; k < width; ++k) {
        const Real value = i < count ? Real(random.below(19) - 9) : Real(0);
        out[i / block * block * width + k * block + i % block] = value;
        if (i < count) plain[i][k] = value;
      }
  };
  Guarded<Real> a, b;
  std::vector<std::vector<Real>> left, right;
  pack(rows, a, left);
  pack(columns, b, right);
  const int64_t stride = whole_blocks(columns) + 48;
  Guarded<Real> out(whole_blocks(rows) * stride);
  multiply(a.data(), rows, b.data(), columns, width, diagonal, out.data(), stride);
  CHECK(a.intact() && b.intact() && out.intact());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < stride; ++j) {
      if (j >= whole_blocks(columns)) CHECK(std::isnan(out[i * stride + j]));
      if (j >= columns || j <= i + diagonal) continue;
      Real sum = 0;
      for (int64_t k = 0; k < width; ++k) sum += left[i][k] * right[j][k];
      CHECK(out[i * stride + j] == sum);
    }
}

// A panel is (x - mean) * scale but for what it says that rounding took off, and 0 beyond the last row.
template <class Real>
void test_panel(int64_t all_rows, int64_t width) {
  Random random(cases);
  Class one(random, DType::float64, all_rows, width, Cloud::normal);
  const std::vector<int64_t> positions = every(one.c.n, 2);
  const int64_t count = int64_t(positions.size());
  Guarded<double> mean(width);
  Number largest = 0;
  for (const Row& row : one.data.x)
    for (Number v : row) largest = std::max(largest, std::fabs(v));
  for (int64_t k = 0; k < width; ++k) mean[k] = 0.3 * double(one.data.x[0][k]);
  const double scale = largest > 0 ? std::ldexp(0.5, -std::ilogb(double(largest))) : 1;
  Panel<Real> panel;
  for (int threads = 1; threads <= 3; ++threads) {
    panel.pack(one.c, positions.data(), count, mean.data(), scale, threads);
    CHECK(panel.count == count && int64_t(panel.squares.size()) == whole_blocks(count));
    for (int64_t i = 0; i < whole_blocks(count); ++i) {
      Number off = 0, square = 0;
      for (int64_t k = 0; k < width; ++k) {
        const Number y = panel.rows[i / block * block * width + k * block + i % block];
        const Number exact =
            i < count ? (one.data.x[one.rows[positions[i]]][k] - Number(mean[k])) * Number(scale) : Number(0);
        off += (y - exact) * (y - exact);
        square += y * y;
      }
      off = std::sqrt(off);
      const Number length = std::sqrt(square);
      CHECK(off <= panel.errors[i] && panel.errors[i] <= off * Number(1.001) + panel.lengths[i] * 2 * DBL_EPSILON);
      CHECK(std::fabs(panel.squares[i] - square) <= square * Number(2 * unit<Real> + width * DBL_EPSILON));
      CHECK(i < count ? panel.lengths[i] > length && panel.lengths[i] <= length * Number(1.00001) + 1e-14
                      : panel.squares[i] == 0 && panel.lengths[i] == 0 && panel.errors[i] == 0);
    }
  }
}

// |cost - exact| <= bound, the same bits for any number of threads, for all rows of a class and for some.
template <class Real>
void test_bounds(Class& one, const Row& exact, double largest_relative_bound) {
  for (int64_t step : {1, 3}) {
    const std::vector<int64_t> positions = every(one.c.n, step);
    Some first(positions);
    for (int threads = 1; threads <= 3; ++threads) {
      const Products products(one.c, threads);
      if (!products.in_range()) continue;
      Some some(positions);
      products.nominate<Real>(some.candidates());
      CHECK(some.intact());
      if (threads == 1) products.nominate<Real>(first.candidates());
      for (int64_t i = 0; i < some.cost.size(); ++i) {
        CHECK(some.cost[i] == first.cost[i] && some.bound[i] == first.bound[i]);
        const Number e = exact[positions[i]];
        CHECK_SAYING(std::fabs(some.cost[i] - e) <= Number(some.bound[i]) * (1 + 1e-9L),
                     "row " + std::to_string(positions[i]) + ", cost " + std::to_string(some.cost[i]) + ", bound " +
                         std::to_string(some.bound[i]));
        CHECK(Number(some.bound[i]) <= largest_relative_bound * e);
      }
    }
  }
}

void test_nomination(DType dtype, int64_t all_rows, int64_t width, Cloud cloud) {
  Random random(cases);
  Class one(random, dtype, all_rows, width, cloud);
  const Row exact = costs(one.data.x, one.rows, Metric::euclidean);
  // That bounds say something, where few rows are nearly equal.
  const bool plain = cloud == Cloud::normal && width >= 8 && toast::size_of(dtype) >= 4;
  test_bounds<float>(one, exact, plain ? 1e-4 : INFINITY);
  test_bounds<double>(one, exact, plain ? 1e-8 : INFINITY);
}

void test_whatever_may_win_is_kept() {
  Random random(cases);
  Class one(random, DType::float64, 20, 4, Cloud::normal);
  one.c.n = 5;
  for (int64_t i = 0; i < 5; ++i) one.rows[i] = one.rows[2 * i];  // no two of them equal
  Some some(every(5, 1));
  const double cost[] = {10.2, 10.0, 10.5, 12.0, 40.0}, bound[] = {0.3, 0.1, 1.0, 0.1, INFINITY};
  std::copy(cost, cost + 5, some.cost.data());
  std::copy(bound, bound + 5, some.bound.data());
  CHECK(drop_losers(one.c, Metric::euclidean, some.candidates(), 1) == 4);
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t kept = i < 3 ? i : 4;
    CHECK(some.positions[i] == kept && some.cost[i] == cost[kept] && some.bound[i] == bound[kept]);
  }
}

template <class Real>
void test_all_of() {
  for (int64_t rows : {1, 47, 48, 49, 96})
    for (int64_t columns : {1, 48, 100})
      for (int64_t diagonal : {-rows, int64_t(0), int64_t(3), int64_t(-20), columns})
        for (int64_t width : {0, 1, 2, 17}) test_multiply<Real>(rows, columns, width, diagonal);
  for (int64_t width : {383, 384, 385, 800})
    for (int64_t diagonal : {-49, 0}) test_multiply<Real>(49, 100, width, diagonal);
  for (int64_t width : {0, 1, 127, 128, 129, 300})
    for (int64_t rows : {1, 40, 240}) test_panel<Real>(rows, width);
}

}  // namespace

int main() {
  check::start();
  test_all_of<float>();
  test_all_of<double>();
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16})
    for (Cloud cloud : {Cloud::normal, Cloud::grid, Cloud::clusters})
      for (int64_t width : {1, 5, 8, 13, 60}) test_nomination(dtype, 250, width, cloud);
  for (DType dtype : {DType::float64, DType::float32})
    for (Cloud cloud : {Cloud::normal, Cloud::outliers, Cloud::lone_outlier, Cloud::far_grid})
      for (int64_t width : {2, 20, 130}) test_nomination(dtype, 620, width, cloud);
  test_nomination(DType::float32, 5400, 2, Cloud::normal);  // more than a panel
  test_whatever_may_win_is_kept();
  return check::finish(cases);
}
