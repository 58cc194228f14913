// blended_kl on the CPU. A row is worked on in chunks of kChunk classes: one sweep for the statistics of each chunk,
// which are merged in order, and one for the gradient, from what the first kept. Rows go to the threads, or the chunks
// of a row where rows are few.
#include "blended_kl.h"

#include <limits>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/blended_kl_chunk.h"
#include "cpu/blended_kl_rows.h"
#include "cpu/convert.h"

namespace toast {
namespace TOAST_ISA {
namespace {

// Half of the last-level cache, or 4 MiB where its size is not known.
std::int64_t half_of_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const std::int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE) / 2;
#else
  static const std::int64_t bytes = 0;
#endif
  return std::max(bytes, std::int64_t(4) << 20);
}

// Logits worth a thread of their own.
constexpr std::int64_t kGrain = 16384;

int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <class Real>
class Kernel {
 public:
  explicit Kernel(const BlendedKL& problem)
      : p_(problem),
        rows_(problem),
        upstream_(static_cast<const Real*>(p_.upstream)),
        stats_(static_cast<Real*>(p_.stats)),
        chunks_((p_.classes + kChunk - 1) / kChunk),
        inverse_t_(Real(1 / p_.temperature)),
        power_(p_.temperature <= 4 && p_.temperature == std::floor(p_.temperature) ? int(p_.temperature) : 0),
        non_temporal_(p_.rows * p_.classes * size_of(p_.dtype) >=
                      (p_.non_temporal_from < 0 ? half_of_cache() : p_.non_temporal_from)) {}

  void run() {
    std::vector<double> losses(p_.rows);
    const std::int64_t worth = p_.rows * p_.classes / kGrain;
    const int threads = int(std::max<std::int64_t>(1, std::min<std::int64_t>(p_.threads, worth)));
    std::vector<Scratch<Real>> scratch;  // made here, where running out of memory can still be thrown
    for (int i = 0; i < threads; ++i)
      scratch.emplace_back(p_.classes, chunks_, p_.gradient != nullptr, p_.past.values != nullptr);
    if (p_.rows >= 4 * threads || chunks_ == 1)
      rows_to_threads(scratch, losses.data());
    else
      chunks_to_threads(scratch, losses.data());

    auto* loss = static_cast<Real*>(p_.loss);
    if (p_.reduction == Reduction::none) {
      for (std::int64_t i = 0; i < p_.rows; ++i) loss[i] = Real(losses[i]);
      return;
    }
    double total = 0;
    for (double x : losses) total += x;
    const bool nothing_to_average = p_.reduction == Reduction::mean && !rows_.any();
    *loss = nothing_to_average ? std::numeric_limits<Real>::quiet_NaN() : Real(total);
  }

 private:
  // Calls f(has_soft, has_past, power) with the row's values as compile-time constants.
  template <class F>
  void with_shape(const Row<Real>& r, F&& f) const {
    auto with_power = [&](auto soft) {
      if (!r.has_past) return f(soft, std::false_type{}, std::integral_constant<int, 1>{});
      switch (power_) {
        case 1:
          return f(soft, std::true_type{}, std::integral_constant<int, 1>{});
        case 2:
          return f(soft, std::true_type{}, std::integral_constant<int, 2>{});
        case 3:
          return f(soft, std::true_type{}, std::integral_constant<int, 3>{});
        case 4:
          return f(soft, std::true_type{}, std::integral_constant<int, 4>{});
        default:
          return f(soft, std::true_type{}, std::integral_constant<int, 0>{});
      }
    };
    r.has_soft ? with_power(std::true_type{}) : with_power(std::false_type{});
  }

  // The first loop over one chunk of a row.
  Statistics statistics(const Row<Real>& r, std::int64_t begin, bool keep, Scratch<Real>& scratch) const {
    Chunk<Real> c = rows_.chunk(r, begin, scratch);
    if (p_.gradient != nullptr && !non_temporal_)
      c.prefetch.set(Prefetch::kGradient, p_.gradient, r.index * p_.classes + begin, p_.dtype);
    Statistics result;
    with_shape(r, [&](auto soft, auto past, auto power) {
      result = keep ? chunk_statistics<Real, soft, past, power, true>(c, inverse_t_, scratch.kept_at(begin))
                    : chunk_statistics<Real, soft, past, power, false>(c, inverse_t_, {});
    });
    return result;
  }

  // log softmax(z_i)_y
  double log_probability(std::int64_t i, std::int64_t y, const Statistics& s) const {
    return double(rows_.logit(i, y)) - s.max - std::log(s.sum);
  }

  double loss(const Row<Real>& r, const Statistics& s) const {
    if (!r.used) return 0;
    if (s.sum != s.sum) return s.sum;  // a NaN logit, even where the row's weight is 0
    const double t = p_.temperature;
    double total = r.has_soft || r.has_past ? -s.dot : 0;
    if (s.class_mass != 0) total += s.class_mass * std::log(s.sum);
    for (int k = 0; k < r.labels; ++k)
      if (r.hard[k] != 0) total -= r.hard[k] * log_probability(r.index, r.label[k], s);
    if (r.has_past) total += s.past_mass * t * std::log(s.sum_at_t) - double(r.past_scale) * t * r.past_entropy;
    return total;
  }

  void write_stats(const Row<Real>& r, const Statistics* by_chunk, const Statistics& s) const {
    const std::int64_t i = r.index;
    double cross_entropy = 0;
    for (int which = 0; r.used && which < 2 && rows_.labels(which) != nullptr; ++which) {
      const std::int64_t y = rows_.labels(which)[i];
      if (y != p_.ignore_index && rows_.share_of(i, which) != 0)
        cross_entropy -= rows_.share_of(i, which) * log_probability(i, y, s);
    }
    if (p_.target == nullptr) {
      Real buffer[1];
      for (std::int64_t j = 0; j < p_.classes; ++j)
        if (const double mass = *r.target[0].chunk(j, 1, buffer); mass != 0)
          cross_entropy -= mass * log_probability(i, j, s);
    }
    stats_[i] = Real(cross_entropy);
    stats_[p_.rows + i] = Real(s.max + std::log(s.sum));
    p_.argmax[i] = argmax(i, by_chunk, s);
  }

  // The first of the largest logits; a NaN counts as the largest, as in torch.argmax.
  std::int64_t argmax(std::int64_t i, const Statistics* by_chunk, const Statistics& total) const {
    if (total.sum != total.sum)
      if (const std::int64_t nan = first(i, 0, [](Real z) { return z != z; }); nan >= 0) return nan;
    std::int64_t k = 0;
    while (k + 1 < chunks_ && by_chunk[k].max != total.max) ++k;
    return std::max<std::int64_t>(0, first(i, k, [max = Real(total.max)](Real z) { return z == max; }));
  }

  // The row's first class from chunk k on whose logit is wanted, or -1.
  template <class F>
  std::int64_t first(std::int64_t i, std::int64_t k, F&& wanted) const {
    constexpr std::int64_t block = 64;  // looked through without a branch
    Real buffer[kChunk];
    for (std::int64_t begin = k * kChunk; begin < p_.classes; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, p_.classes - begin);
      const Real* z = as_real(p_.dtype, p_.logits, i * p_.stride + begin, n, buffer);
      for (std::int64_t j = 0; j < n; j += block) {
        const std::int64_t end = std::min(n, j + block);
        int found = 0;
        for (std::int64_t at = j; at < end; ++at) found |= int(wanted(z[at]));
        for (std::int64_t at = j; found && at < end; ++at)
          if (wanted(z[at])) return begin + at;
      }
    }
    return -1;
  }

  // The second loop over one chunk of a row, from what the first kept of it.
  void gradient(const Row<Real>& r, std::int64_t begin, const Statistics& chunk, const Statistics& total,
                Scratch<Real>& scratch) const {
    const std::int64_t n = std::min(kChunk, p_.classes - begin);
    with_dtype(p_.dtype, [&](auto zero) {
      using T = decltype(zero);
      T* out = static_cast<T*>(p_.gradient) + r.index * p_.classes + begin;
      if (!r.used) {
        std::fill(out, out + n, T{});
      } else if constexpr (std::is_same_v<T, Real>) {
        compute_gradient(r, begin, n, chunk, total, scratch.kept_at(begin), non_temporal_ ? scratch.gradient : out);
        if (non_temporal_) copy_non_temporal(scratch.gradient, n * sizeof(T), out);
      } else {
        compute_gradient(r, begin, n, chunk, total, scratch.kept_at(begin), scratch.gradient);
        T* rounded = non_temporal_ ? reinterpret_cast<T*>(scratch.spare) : out;
        round_to(scratch.gradient, n, rounded);
        if (non_temporal_) copy_non_temporal(rounded, n * sizeof(T), out);
      }
    });
  }

  void compute_gradient(const Row<Real>& r, std::int64_t begin, std::int64_t n, const Statistics& chunk,
                        const Statistics& total, const Kept<Real>& kept, Real* out) const {
    const double upstream = upstream_ == nullptr ? 1 : double(upstream_[r.index * p_.upstream_stride]);
    double class_mass = total.class_mass;
    for (int k = 0; k < r.labels; ++k) class_mass += r.hard[k];
    const Real coef_p = Real(upstream * class_mass / total.sum * chunk.relative_to(total));
    Real coef_e = 0;
    if (r.has_past)
      coef_e = Real(upstream * total.past_mass / total.sum_at_t * chunk.relative_to(total, p_.temperature));
    with_shape(r, [&](auto soft, auto past, auto power) {
      chunk_gradient<Real, soft, past, power>(kept, n, coef_p, coef_e, Real(upstream), out);
    });
    for (int k = 0; k < r.labels; ++k)
      if (r.label[k] >= begin && r.label[k] < begin + n) out[r.label[k] - begin] -= Real(upstream * r.hard[k]);
  }

  bool needs_statistics(const Row<Real>& r) const { return r.used || stats_ != nullptr; }

  // Parallel over rows.
  void rows_to_threads(std::vector<Scratch<Real>>& scratch, double* losses) const {
    const int threads = int(scratch.size());
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / p_.classes);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch<Real>& own = scratch[thread_number()];
      const bool keep = own.whole_row;
#pragma omp for schedule(dynamic, grain)
      for (std::int64_t i = 0; i < p_.rows; ++i) {
        const Row<Real> r = rows_.row(i);
        Statistics total;
        for (std::int64_t k = 0; needs_statistics(r) && k < chunks_; ++k) {
          own.by_chunk[k] = statistics(r, k * kChunk, keep, own);
          k == 0 ? void(total = own.by_chunk[k]) : total.merge(own.by_chunk[k], p_.temperature);
        }
        losses[i] = loss(r, total);
        if (stats_ != nullptr) write_stats(r, own.by_chunk.data(), total);
        for (std::int64_t k = 0; p_.gradient != nullptr && k < chunks_; ++k) {
          if (!keep && r.used) statistics(r, k * kChunk, true, own);
          gradient(r, k * kChunk, own.by_chunk[k], total, own);
        }
      }
      if (non_temporal_) non_temporal_fence();
    }
  }

  // Parallel over chunks: for rows too few to keep the threads busy.
  void chunks_to_threads(std::vector<Scratch<Real>>& scratch, double* losses) const {
    const int threads = int(scratch.size());
    std::vector<Row<Real>> rows(p_.rows);
    std::vector<Statistics> by_chunk(p_.rows * chunks_), totals(p_.rows);
    for (std::int64_t i = 0; i < p_.rows; ++i) rows[i] = rows_.row(i);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch<Real>& own = scratch[thread_number()];
#pragma omp for schedule(static)
      for (std::int64_t k = 0; k < p_.rows * chunks_; ++k)
        if (const Row<Real>& r = rows[k / chunks_]; needs_statistics(r))
          by_chunk[k] = statistics(r, k % chunks_ * kChunk, false, own);
#pragma omp single
      for (std::int64_t i = 0; i < p_.rows; ++i) {
        totals[i] = by_chunk[i * chunks_];
        for (std::int64_t k = 1; k < chunks_; ++k) totals[i].merge(by_chunk[i * chunks_ + k], p_.temperature);
        losses[i] = loss(rows[i], totals[i]);
        if (stats_ != nullptr) write_stats(rows[i], &by_chunk[i * chunks_], totals[i]);
      }
      if (p_.gradient != nullptr) {
#pragma omp for schedule(static)
        for (std::int64_t k = 0; k < p_.rows * chunks_; ++k) {
          const Row<Real>& r = rows[k / chunks_];
          const std::int64_t begin = k % chunks_ * kChunk;
          if (r.used) statistics(r, begin, true, own);
          gradient(r, begin, by_chunk[k], totals[r.index], own);
        }
      }
      if (non_temporal_) non_temporal_fence();
    }
  }

  const BlendedKL& p_;
  const Rows<Real> rows_;
  const Real* upstream_;
  Real* stats_;
  const std::int64_t chunks_;
  const Real inverse_t_;
  const int power_;
  const bool non_temporal_;
};

}  // namespace

void blended_kl(const BlendedKL& problem) {
  if (problem.dtype == DType::float64)
    Kernel<double>(problem).run();
  else
    Kernel<float>(problem).run();
}

}  // namespace TOAST_ISA
}  // namespace toast
