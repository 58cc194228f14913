// The medoid kernels against brute force, with 1, 2 and 3 threads.
#include "check.h"
#include "medoids_truth.h"

namespace {

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};
constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::cityblock,
                               Metric::jeffreys};

toast::MedoidKernels kernels;
unsigned problems = 0;

std::string case_name(DType dtype, Metric metric, int64_t rows, int64_t width) {
  return "problem " + std::to_string(problems) + ": dtype " + std::to_string(int(dtype)) + ", metric " +
         std::to_string(int(metric)) + ", " + std::to_string(rows) + " x " + std::to_string(width);
}

// Labels as the kernels take them, and the rows of each class.
struct Pool {
  toast::Labels labels;
  Guarded<int64_t> int64s;
  Guarded<std::int32_t> int32s;
  Guarded<bool> mask;
  std::vector<std::vector<int64_t>> classes;
};

Pool make_pool(Random& random, const Data& data, int64_t classes) {
  Pool pool;
  const int64_t rows = data.matrix.rows, stride = 1 + random.below(3), mask_stride = random.below(3);
  const bool wide = random.once_in(2), masks = random.once_in(2);
  const int64_t ignore_index = random.one_of<int64_t>({-100, 0, 2});
  pool.classes.resize(classes);
  // The last element of a strided tensor is the last that there is.
  const int64_t size = rows == 0 ? 0 : (rows - 1) * stride + 1;
  pool.int64s = Guarded<int64_t>(wide ? size : 0);
  pool.int32s = Guarded<std::int32_t>(wide ? 0 : size);
  pool.mask = Guarded<bool>(masks && rows > 0 ? (rows - 1) * mask_stride + 1 : 0);
  for (int64_t i = 0; masks && i < rows; ++i) pool.mask[i * mask_stride] = mask_stride == 0 || !random.once_in(5);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t y = random.once_in(10) ? ignore_index : random.below(classes);
    if (wide)
      pool.int64s[i * stride] = y;
    else
      pool.int32s[i * stride] = std::int32_t(y);
    bool used = y != ignore_index && (!masks || pool.mask[i * mask_stride]);
    for (Number v : data.x[i]) used = used && std::isfinite(double(v));
    if (used) pool.classes[y].push_back(i);
  }
  pool.labels = {wide ? static_cast<void*>(pool.int64s.data()) : pool.int32s.data(),
                 wide,
                 stride,
                 masks ? pool.mask.data() : nullptr,
                 mask_stride,
                 ignore_index,
                 classes};
  return pool;
}

// Makes some rows of x non-finite: they must not count, wherever the odd value stands.
void spoil(Random& random, Data& data) {
  toast::Matrix& m = data.matrix;
  const int64_t start = data.elements.index_of(m.data);
  for (int64_t i = 0; i < m.rows && m.width > 0; ++i) {
    if (!random.once_in(12)) continue;
    const int64_t k = random.below(m.width);
    data.x[i][k] = data.elements.set(start + i * m.row_stride + k * m.column_stride,
                                     random.one_of<double>({NAN, INFINITY, -INFINITY}));
  }
}

// The medoid of a class of which nothing is known beforehand.
int64_t by_exact_costs(const Data& data, const std::vector<int64_t>& rows, Metric metric, int threads) {
  const int64_t n = int64_t(rows.size());
  Guarded<int64_t> positions(n);
  Guarded<double> cost(n), bound(n);
  for (int64_t i = 0; i < n; ++i) {
    positions[i] = i;
    cost[i] = 0;
    bound[i] = INFINITY;
  }
  return kernels.decide({data.matrix, rows.data(), n}, metric, {positions.data(), cost.data(), bound.data(), n},
                        threads);
}

void test(DType dtype, Metric metric, int64_t rows, int64_t width, int64_t classes, Cloud cloud) {
  Random random(problems++);
  check::current_case = case_name(dtype, metric, rows, width);
  Data data = make_data(random, dtype, rows, width, cloud);
  if (random.once_in(2)) spoil(random, data);
  Pool pool = make_pool(random, data, classes);
  std::vector<int64_t> wanted;
  for (const auto& members : pool.classes) wanted.push_back(medoid(data.x, members, metric));
  for (int threads = 1; threads <= 3; ++threads) {
    Guarded<int64_t> offsets(classes + 1), order(rows), medoids(classes);
    CHECK(kernels.group_by_class(data.matrix, pool.labels, offsets.data(), order.data(), threads) == -1);
    kernels.all_classes(data.matrix, metric, offsets.data(), order.data(), classes, medoids.data(), threads);
    CHECK(offsets.intact() && order.intact() && medoids.intact() && data.elements.intact());
    for (int64_t k = 0, at = 0; k < classes; ++k) {
      CHECK(offsets[k] == at);
      for (int64_t i : pool.classes[k]) CHECK(order[at++] == i);
      CHECK(offsets[k + 1] == at);
      CHECK(medoids[k] == wanted[k]);
      if (offsets[k] < at) CHECK(by_exact_costs(data, pool.classes[k], metric, threads) == wanted[k]);
    }
  }
}

// One class of so many rows that euclidean costs come from products, and so few that exact costs decide whatever is
// left.
void test_small_products(DType dtype, int64_t width, Cloud cloud) {
  Random random(problems++);
  int64_t rows = 1 + random.below(64);
  while (rows * rows * width <= int64_t(1) << 21) rows += 64;
  check::current_case = case_name(dtype, Metric::euclidean, rows, width);
  Data data = make_data(random, dtype, rows, width, cloud);
  Guarded<int64_t> offsets(2), order(rows), medoids(1);
  std::vector<int64_t> everyone;
  for (int64_t i = 0; i < rows; ++i) everyone.push_back(order[i] = i);
  offsets[0] = 0;
  offsets[1] = rows;
  const int64_t wanted = medoid(data.x, everyone, Metric::euclidean);
  for (int threads = 1; threads <= 2; ++threads) {
    kernels.all_classes(data.matrix, Metric::euclidean, offsets.data(), order.data(), 1, medoids.data(), threads);
    CHECK(medoids[0] == wanted && medoids.intact() && data.elements.intact());
  }
}

// A label that is out of range matters only where its row is used.
void test_wrong_label() {
  Random random(problems++);
  check::current_case = "a label out of range";
  Data data = make_data(random, DType::float32, 6, 3, Cloud::normal);
  Guarded<int64_t> labels(6), offsets(3), order(6);
  Guarded<bool> mask(6);
  for (int64_t i = 0; i < 6; ++i) labels[i] = i % 2, mask[i] = true;
  labels[1] = 7;
  labels[3] = -1;
  labels[4] = 2;
  mask[1] = false;
  const toast::Labels all{labels.data(), true, 1, mask.data(), 1, -100, 2};
  for (int threads = 1; threads <= 3; ++threads)
    CHECK(kernels.group_by_class(data.matrix, all, offsets.data(), order.data(), threads) == 3);
}

// Euclidean costs from products of float32 or float64 panels, and the medoid that they lead to.
class ByProducts {
 public:
  ByProducts(const Data& data, const std::vector<int64_t>& rows, int threads)
      : class_{data.matrix, rows.data(), int64_t(rows.size())}, threads_(threads), mean_(data.matrix.width) {
    radius_ = kernels.centre(class_, mean_.data(), threads);
    CHECK(mean_.intact());
  }

  double radius() const { return radius_; }

  // cost and bound of the rows at these positions. A triangle has all rows of the class.
  void nominate(DType dtype, const std::vector<int64_t>& positions, Guarded<double>& cost, Guarded<double>& bound) {
    const bool triangle = int64_t(positions.size()) == class_.n;
    const int64_t block = 150, strip = 64, count = int64_t(positions.size());
    const double scale = std::ldexp(1.0, -std::ilogb(radius_) - 1);
    std::vector<double> errors(count);
    double total_error = 0;
    for (int64_t i = 0; i < count; ++i) cost[i] = bound[i] = 0;
    for (int64_t j = 0; j < class_.n; j += block) {
      std::vector<int64_t> everyone;
      for (int64_t k = j; k < std::min(j + block, class_.n); ++k) everyone.push_back(k);
      Panel columns = panel(dtype, everyone, scale);
      for (std::size_t k = 0; k < everyone.size(); ++k) total_error += columns.errors[int64_t(k)];
      for (int64_t i = 0; i < (triangle ? std::min(j + block, count) : count); i += strip) {
        const std::vector<int64_t> some(positions.begin() + i, positions.begin() + std::min(i + strip, count));
        Panel rows = panel(dtype, some, scale);
        for (std::size_t k = 0; k < some.size(); ++k) errors[i + int64_t(k)] = rows.errors[int64_t(k)];
        add_tile(rows, columns, some, j, triangle, i, cost, bound);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      cost[i] /= scale;
      bound[i] = (bound[i] + double(class_.n) * errors[i] + total_error) / scale;
    }
  }

  // The winner among candidates, of which the ones that cannot win are dropped first.
  int64_t winner(std::vector<int64_t> positions, Guarded<double>& cost, Guarded<double>& bound) {
    Guarded<int64_t> left(int64_t(positions.size()));
    std::copy(positions.begin(), positions.end(), left.data());
    toast::Candidates candidates{left.data(), cost.data(), bound.data(), left.size()};
    candidates.count = kernels.narrow(class_, Metric::euclidean, candidates, threads_);
    CHECK(candidates.count >= 1 && left.intact() && cost.intact() && bound.intact());
    return kernels.decide(class_, Metric::euclidean, candidates, threads_);
  }

 private:
  struct Panel {
    Elements rows, squares, lengths;
    Guarded<double> errors;
  };

  Panel panel(DType dtype, const std::vector<int64_t>& positions, double scale) {
    const int64_t count = int64_t(positions.size());
    Panel p{Elements(dtype, count * class_.x.width), Elements(dtype, count), Elements(dtype, count),
            Guarded<double>(count)};
    kernels.panel(class_, positions.data(), mean_.data(), scale,
                  {dtype, p.rows.data(), p.squares.data(), p.lengths.data(), p.errors.data(), count}, threads_);
    CHECK(p.rows.intact() && p.squares.intact() && p.lengths.intact() && p.errors.intact());
    return p;
  }

  static std::vector<double> values(Elements& elements) {
    std::vector<double> out(elements.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = elements.get(int64_t(i));
    return out;
  }

  void add_tile(Panel& rows, Panel& columns, const std::vector<int64_t>& positions, int64_t j, bool with_columns,
                int64_t i, Guarded<double>& cost, Guarded<double>& bound) {
    const int64_t r = int64_t(positions.size()), c = columns.errors.size(), width = class_.x.width;
    const DType dtype = rows.rows.dtype();
    Elements products(dtype, r * c);
    const std::vector<double> left = values(rows.rows), right = values(columns.rows);
    for (int64_t a = 0; a < r; ++a)
      for (int64_t b = 0; b < c; ++b) {
        double sum = 0;
        for (int64_t k = 0; k < width; ++k) {
          sum += left[a * width + k] * right[b * width + k];
          if (dtype == DType::float32) sum = float(sum);  // as a product in float32 would be rounded
        }
        products.set(a * c + b, sum);
      }
    kernels.distance_sums(
        {dtype, products.data(), r, c, width, positions.data(), j, rows.squares.data(), rows.lengths.data(),
         columns.squares.data(), columns.lengths.data(), cost.data() + i, bound.data() + i,
         with_columns ? cost.data() + j : nullptr, with_columns ? bound.data() + j : nullptr},
        threads_);
  }

  toast::ClassRows class_;
  int threads_;
  Guarded<double> mean_;
  double radius_;
};

bool same(Guarded<double>& a, Guarded<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// A bound holds where the cost is off by no more.
void check_bounds(const std::vector<int64_t>& positions, const Row& exact, Guarded<double>& cost,
                  Guarded<double>& bound) {
  for (std::size_t i = 0; i < positions.size(); ++i)
    CHECK_SAYING(std::fabs(Number(cost[int64_t(i)]) - exact[positions[i]]) <= Number(bound[int64_t(i)]) * (1 + 1e-9),
                 "row " + std::to_string(positions[i]) + ", cost " + std::to_string(cost[int64_t(i)]) + ", bound " +
                     std::to_string(bound[int64_t(i)]));
}

void test_products(DType dtype, int64_t rows, int64_t width, Cloud cloud) {
  Random random(problems++);
  check::current_case = case_name(dtype, Metric::euclidean, rows, width);
  Data data = make_data(random, dtype, rows, width, cloud);
  std::vector<int64_t> class_rows, everyone, some;
  for (int64_t i = 0; i < rows; ++i)
    if (!random.once_in(5)) class_rows.push_back(i);
  for (int64_t i = 0; i < int64_t(class_rows.size()); ++i) {
    everyone.push_back(i);
    if (random.once_in(3)) some.push_back(i);
  }
  const Row exact = costs(data.x, class_rows, Metric::euclidean);
  const int64_t wanted = medoid(data.x, class_rows, Metric::euclidean);
  const int64_t n = int64_t(class_rows.size());
  for (DType product : {DType::float32, DType::float64}) {
    Guarded<double> first_cost(n), first_bound(n);
    for (int threads = 1; threads <= 3; ++threads) {
      ByProducts by_products(data, class_rows, threads);
      if (!(by_products.radius() > 0x1p-400 && by_products.radius() < 0x1p400)) return;
      Guarded<double> cost(n), bound(n), some_cost(int64_t(some.size())), some_bound(int64_t(some.size()));
      by_products.nominate(product, everyone, cost, bound);
      check_bounds(everyone, exact, cost, bound);
      by_products.nominate(product, some, some_cost, some_bound);
      check_bounds(some, exact, some_cost, some_bound);
      if (threads == 1) {
        std::copy(cost.data(), cost.data() + n, first_cost.data());
        std::copy(bound.data(), bound.data() + n, first_bound.data());
      }
      CHECK(same(cost, first_cost) && same(bound, first_bound));
      CHECK(by_products.winner(everyone, cost, bound) == wanted);
    }
  }
}

}  // namespace

int main() {
  check::start();
  toast::get_medoid_kernels_cpu(kernels);
  for (DType dtype : kDTypes) {
    for (Metric metric : kMetrics) {
      for (Cloud cloud : {Cloud::normal, Cloud::grid}) {
        for (int64_t width : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33})
          for (int64_t rows : {1, 5, 40}) test(dtype, metric, rows, width, 1 + rows / 7, cloud);
        test(dtype, metric, 800, 3, 2, cloud);  // enough rows to go by columns and by means
      }
      for (int64_t width : {255, 256, 257, 300}) test(dtype, metric, 30, width, 3, Cloud::normal);
      test(dtype, metric, 0, 4, 2, Cloud::normal);
    }
    for (int64_t width : {1, 5, 8, 13})
      for (Cloud cloud : {Cloud::normal, Cloud::grid}) test_products(dtype, 250, width, cloud);
    for (int64_t width : {1, 3, 15, 16, 17, 33, 100})
      for (Cloud cloud : {Cloud::normal, Cloud::grid, Cloud::outliers}) test_small_products(dtype, width, cloud);
    // Enough elements to be worth all threads; outliers leave cityblock's buckets no wiser and it sorts.
    test(dtype, Metric::cityblock, 500, 1021, 1, Cloud::outliers);
  }
  // Ties that only exact costs can see: the mean of such rows is rounded.
  for (DType dtype : {DType::float64, DType::float32})
    for (Metric metric : {Metric::euclidean, Metric::sqeuclidean, Metric::cityblock}) {
      test(dtype, metric, 60, 5, 2, Cloud::far_grid);
      test(dtype, metric, 800, 3, 2, Cloud::far_grid);
    }
  for (DType dtype : {DType::float64, DType::float32})
    for (int64_t width : {1, 3, 17, 100}) test_small_products(dtype, width, Cloud::far_grid);
  for (Metric metric : {Metric::sqeuclidean, Metric::cosine, Metric::jeffreys})
    test(DType::float32, metric, 500, 1021, 1, Cloud::normal);
  test_wrong_label();
  return check::finish(problems);
}
