// softmax_statistics on the CPU: with d = (z - max z) / T <= 0 and s = sum exp(d), the logsumexp is max z / T + log s
// and the entropy log s - sum d exp(d) / s, two terms that are never negative, so that nothing cancels.
#include "softmax_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/chunk.h"
#include "cpu/convert.h"
#include "cpu/parallel.h"

namespace toast {
namespace TOAST_ISA {
namespace {

// Logits worth a thread of their own.
constexpr std::int64_t kGrain = 16384;

struct Sums {
  double exponentials = 0;  // exp(d)
  double products = 0;      // exp(d) d, with 0 * -inf = 0
};

template <class Real>
Sums chunk_sums(const Real* z, std::int64_t n, Real base, Real inverse_t) {
  using V = Vec<Real>;
  const V shift = V::broadcast(base), inverse = V::broadcast(inverse_t), zero = V::broadcast(0);
  // In double: beside the maximum's exp(0) = 1 a float would lose the small exponentials, which are all that the
  // entropy of a peaked row is made of.
  WideSum<Real> exponentials, products;
  const auto step = [&](V logits) {
    const V d = (logits - shift) * inverse, e = exp(d);
    exponentials.add(e);
    products.add(fma_nonzero(e, d, zero));
  };
  std::int64_t j = 0;
  for (; j + V::lanes <= n; j += V::lanes) step(V::load(z + j));
  if (const int rest = int(n - j)) step(load_first(z + j, rest, -std::numeric_limits<Real>::infinity()));
  return {exponentials.total(), products.total()};
}

template <class Real>
void run(const SoftmaxStatistics& p) {
  const std::int64_t chunks = (p.classes + kChunk - 1) / kChunk;
  const int threads = threads_for(p.rows * p.classes / kGrain, p.threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < p.rows; ++i) {
    Real buffer[kChunk];
    const auto each_chunk = [&](auto&& f) {
      for (std::int64_t k = 0; k < chunks; ++k) {
        const std::int64_t n = std::min(kChunk, p.classes - k * kChunk);
        f(as_real(p.dtype, p.logits, i * p.stride + k * kChunk, n, buffer), n);
      }
    };
    Real max = -std::numeric_limits<Real>::infinity();
    each_chunk([&](const Real* z, std::int64_t n) { max = std::max(max, chunk_max(in_buffer(z), n)); });
    const Real base = max == -std::numeric_limits<Real>::infinity() ? Real(0) : max;  // exp(-inf - 0) is 0, not NaN
    Sums sums;
    each_chunk([&](const Real* z, std::int64_t n) {
      const Sums next = chunk_sums(z, n, base, Real(1 / p.temperature));
      sums.exponentials += next.exponentials;
      sums.products += next.products;
    });
    const double log_sum = std::log(sums.exponentials);
    p.logsumexp[i] = double(max) / p.temperature + log_sum;
    static_cast<Real*>(p.entropy)[i] = Real(log_sum - sums.products / sums.exponentials);
  }
}

}  // namespace

void softmax_statistics(const SoftmaxStatistics& problem) {
  if (problem.dtype == DType::float64)
    run<double>(problem);
  else
    run<float>(problem);
}

}  // namespace TOAST_ISA
}  // namespace toast
