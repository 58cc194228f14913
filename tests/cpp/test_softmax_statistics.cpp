// softmax_statistics against plain long double loops, in guarded memory, with 1 and 3 threads.
#include "check.h"
#include "elements.h"
#include "random.h"
#include "softmax_statistics.h"

using std::int64_t;
using toast::DType;

namespace {

void test(unsigned seed, DType dtype, int64_t rows, int64_t classes) {
  Random random(seed);
  check::current_case = "seed " + std::to_string(seed) + ": dtype " + std::to_string(int(dtype)) + ", " +
                        std::to_string(rows) + " x " + std::to_string(classes);
  const DType real = dtype == DType::float64 ? DType::float64 : DType::float32;
  const int64_t stride = classes + random.one_of({0, 0, 1, 7});
  const double temperature = random.one_of({0.5, 1.0, 3.0}), scale = random.one_of({0.1, 3.0, 20.0});
  const double shift = real == DType::float64 ? 0 : random.one_of({0.0, 1000.0});
  Elements logits(dtype, rows * stride);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < classes; ++j) {
      const bool masked = j > 0 && random.once_in(8);
      logits.set(i * stride + j, masked ? -INFINITY : shift + scale * random.normal());
    }
    logits.forbid(i * stride + classes, stride - classes);
  }
  for (int threads : {1, 3}) {
    Guarded<double> logsumexp(rows);
    Elements entropy(real, rows);
    toast::softmax_statistics_cpu(
        {dtype, logits.data(), rows, classes, stride, temperature, logsumexp.data(), entropy.data(), threads});
    CHECK(logsumexp.intact() && entropy.intact());
    for (int64_t i = 0; i < rows; ++i) {
      long double top = -INFINITY, sum = 0, products = 0;
      for (int64_t j = 0; j < classes; ++j) top = std::max<long double>(top, logits.get(i * stride + j));
      for (int64_t j = 0; j < classes; ++j) {
        const long double d = (logits.get(i * stride + j) - top) / temperature;
        sum += std::exp(d);
        if (std::exp(d) > 0) products += d * std::exp(d);
      }
      const double wanted = double(std::log(sum) - products / sum), top_at_t = double(top / temperature);
      const double unit = 32 * (real == DType::float64 ? 0x1p-53 : 0x1p-24);
      CHECK(std::fabs(logsumexp[i] - (top_at_t + double(std::log(sum)))) <= unit + 0x1p-50 * std::fabs(top_at_t));
      CHECK(std::fabs(entropy.get(i) - wanted) <= unit * (1 + wanted));
    }
  }
}

}  // namespace

int main() {
  check::start();
  unsigned cases = 0;
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16})
    for (int64_t classes : {1, 2, 7, 15, 16, 17, 33, 1000, 2047, 2048, 2049, 4097, 20000})
      for (int64_t rows : {0, 1, 5}) test(cases++, dtype, rows, classes);
  return check::finish(cases);
}
