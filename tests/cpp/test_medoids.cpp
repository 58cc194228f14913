// Class medoids against brute force, with 1, 2 and 3 threads, and without enough memory.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

#include "check.h"
#include "medoids_truth.h"

// The allocations up to the one that fails; of a negative number none does.
static std::atomic<std::int64_t> before_failure{-1};

static void* allocate(std::size_t size, std::size_t alignment) {
  if (before_failure >= 0 && before_failure-- == 0) throw std::bad_alloc();
  void* const memory = std::aligned_alloc(alignment, (size + alignment) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) { return allocate(size, std::size_t(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};
constexpr Metric kMetrics[] = {Metric::euclidean, Metric::sqeuclidean, Metric::cosine, Metric::cityblock,
                               Metric::jeffreys};

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

void test(DType dtype, Metric metric, int64_t rows, int64_t width, int64_t classes, Cloud cloud) {
  Random random(problems++);
  check::current_case = case_name(dtype, metric, rows, width);
  Data data = make_data(random, dtype, rows, width, cloud);
  if (random.once_in(2)) spoil(random, data);
  Pool pool = make_pool(random, data, classes);
  std::vector<int64_t> wanted;
  for (const auto& members : pool.classes) wanted.push_back(medoid(data.x, members, metric));
  for (int threads = 1; threads <= 3; ++threads) {
    Guarded<int64_t> medoids(classes);
    CHECK(toast::class_medoids_cpu({data.matrix, pool.labels, metric, medoids.data(), threads}) == -1);
    CHECK(medoids.intact() && data.elements.intact());
    for (int64_t k = 0; k < classes; ++k) CHECK(medoids[k] == wanted[k]);
  }
}

// All rows in one class.
void test_one_class(DType dtype, Metric metric, int64_t rows, int64_t width, Cloud cloud) {
  Random random(problems++);
  check::current_case = case_name(dtype, metric, rows, width);
  Data data = make_data(random, dtype, rows, width, cloud);
  Guarded<int64_t> labels(rows), medoids(1);
  std::vector<int64_t> everyone;
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = 0;
    everyone.push_back(i);
  }
  const int64_t wanted = medoid(data.x, everyone, metric);
  for (int threads = 1; threads <= 3; ++threads) {
    CHECK(toast::class_medoids_cpu(
              {data.matrix, {labels.data(), true, 1, nullptr, 0, -100, 1}, metric, medoids.data(), threads}) == -1);
    CHECK(medoids[0] == wanted && medoids.intact() && data.elements.intact());
  }
}

// One class of so many rows that euclidean costs come from products, on one thread or, where large, on all.
void test_products(DType dtype, int64_t width, bool large, Cloud cloud) {
  const int64_t pairs = int64_t(1) << (large ? 22 : 21), elements = large ? int64_t(1) << 18 : 0;
  int64_t rows = 1 + Random(problems).below(64);
  while (rows * rows * width <= pairs || rows * width < elements) rows += 64;
  test_one_class(dtype, Metric::euclidean, rows, width, cloud);
}

// The first two rows lie equally far from the mean, and not from the double next to it: the first wins in either order.
void test_rounded_mean() {
  check::current_case = "a rounded mean";
  for (int64_t first : {0, 1}) {
    const int64_t rows[][3] = {{first, first, -2 * first},
                               {1 - first, 1 - first, 2 * first - 2},
                               {9, -4, -6},
                               {-4, 9, -7},
                               {5, 0, 0},
                               {-5, 0, 0},
                               {0, 5, 0},
                               {0, -5, 0},
                               {0, 0, 5},
                               {0, 0, -5},
                               {5, 5, 5},
                               {-5, -5, -5},
                               {5, -5, 5},
                               {-5, 5, -5}};
    Guarded<double> x(14 * 3);
    Guarded<int64_t> labels(14), medoids(1);
    for (int64_t i = 0; i < 14; ++i) {
      labels[i] = 0;
      for (int64_t k = 0; k < 3; ++k) x[3 * i + k] = double(rows[i][k] + (1 << 20));
    }
    CHECK(toast::class_medoids_cpu({{DType::float64, x.data(), 14, 3, 3, 1},
                                    {labels.data(), true, 1, nullptr, 0, -100, 1},
                                    Metric::sqeuclidean,
                                    medoids.data(),
                                    1}) == -1);
    CHECK(medoids[0] == 0);
  }
}

// A label that is out of range matters only where its row is used.
void test_wrong_label() {
  Random random(problems++);
  check::current_case = "a label out of range";
  Data data = make_data(random, DType::float32, 6, 3, Cloud::normal);
  Guarded<int64_t> labels(6), medoids(2);
  Guarded<bool> mask(6);
  for (int64_t i = 0; i < 6; ++i) labels[i] = i % 2, mask[i] = true;
  labels[1] = 7;
  labels[3] = -1;
  labels[4] = 2;
  mask[1] = false;
  const toast::Labels all{labels.data(), true, 1, mask.data(), 1, -100, 2};
  for (int threads = 1; threads <= 3; ++threads)
    CHECK(toast::class_medoids_cpu({data.matrix, all, Metric::euclidean, medoids.data(), threads}) == 3);
  CHECK(medoids[0] == -1 && medoids[1] == -1);  // as they were
}

// Whichever allocation fails, of a thread's own too: std::bad_alloc, and the next call finds what it should.
void test_out_of_memory(Metric metric, int64_t rows, int64_t width, int64_t classes) {
  Random random(problems++);
  check::current_case = case_name(DType::float32, metric, rows, width) + ", out of memory";
  const Data data = make_data(random, DType::float32, rows, width, Cloud::far_grid);  // many ties for exact costs
  Guarded<int64_t> labels(rows), wanted(classes), medoids(classes);
  for (int64_t i = 0; i < rows; ++i) labels[i] = i % classes;
  const auto call = [&](int threads, Guarded<int64_t>& out) {
    toast::class_medoids_cpu(
        {data.matrix, {labels.data(), true, 1, nullptr, 0, -100, classes}, metric, out.data(), threads});
  };
  call(1, wanted);
  bool failed = true;
  for (int64_t before = 0; failed; ++before) {
    bool thrown = false;
    before_failure = before;
    try {
      call(3, medoids);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    failed = before_failure < 0;
    before_failure = -1;
    CHECK(thrown == failed && medoids.intact());
  }
  for (int64_t k = 0; k < classes; ++k) CHECK(medoids[k] == wanted[k]);
}

}  // namespace

int main() {
  check::start();
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
    for (int64_t width : {1, 3, 15, 16, 17, 33, 100})
      test_products(dtype, width, false, std::array{Cloud::normal, Cloud::grid, Cloud::outliers}[problems % 3]);
  }
  // Enough elements to be worth all threads; outliers leave cityblock's buckets no wiser and it sorts.
  test_products(DType::float32, 385, true, Cloud::normal);
  test_products(DType::bfloat16, 1021, true, Cloud::grid);
  test_one_class(DType::float32, Metric::cityblock, 170, 1601, Cloud::outliers);
  for (Metric metric : {Metric::sqeuclidean, Metric::cosine, Metric::jeffreys})
    test_one_class(DType::float32, metric, 90, 3001, Cloud::normal);
  // Ties that only exact costs can see: the mean of such rows is rounded.
  for (DType dtype : {DType::float64, DType::float32}) {
    for (Metric metric : {Metric::euclidean, Metric::sqeuclidean, Metric::cityblock}) {
      test(dtype, metric, 60, 5, 2, Cloud::far_grid);
      test(dtype, metric, 800, 3, 2, Cloud::far_grid);
    }
    for (int64_t width : {1, 3, 17, 100}) test_products(dtype, width, false, Cloud::far_grid);
  }
  test_rounded_mean();
  test_wrong_label();
  for (Metric metric : kMetrics) test_out_of_memory(metric, 700, 3, 3);  // classes side by side
  // A class that is worth all threads, for each way to nominate.
  test_out_of_memory(Metric::euclidean, 300, 900, 1);
  test_out_of_memory(Metric::sqeuclidean, 30000, 9, 1);
  test_out_of_memory(Metric::cityblock, 30000, 9, 1);
  return check::finish(problems);
}
