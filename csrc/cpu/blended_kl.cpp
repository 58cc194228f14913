// blended_kl on the CPU. A row is worked on in chunks of kChunk classes: one sweep for the statistics of each chunk,
// which are merged in order, and one for the gradient, from what the first kept. Rows go to the threads, or the chunks
// of a row where rows are few.
#include "blended_kl.h"

#include <limits>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "cpu/blended_kl_chunk.h"
#include "cpu/blended_kl_rows.h"
#include "cpu/convert.h"
#include "cpu/parallel.h"

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

// Logits worth a thread of their own, and how many of them take as long as what a row costs besides its logits.
constexpr std::int64_t kGrain = 16384, kRow = 256;

// Calls f with value, one of first to last, as a compile-time constant.
template <int first, int last, class F>
void with_constant(int value, F&& f) {
  if constexpr (first < last)
    if (value != first) return with_constant<first + 1, last>(value, f);
  f(std::integral_constant<int, first>{});
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
        power_(p_.temperature <= kMostPower && p_.temperature == std::floor(p_.temperature) ? int(p_.temperature) : 0),
        non_temporal_(p_.rows * p_.classes * size_of(p_.dtype) >=
                      (p_.non_temporal_from < 0 ? half_of_cache() : p_.non_temporal_from)) {}

  void run() {
    std::vector<double> losses(p_.rows);
    const int threads = threads_for(p_.rows * (p_.classes + kRow) / kGrain, p_.threads);
    std::vector<Scratch<Real>> scratch;  // made here, where running out of memory can still be thrown
    for (int i = 0; i < threads; ++i)
      scratch.emplace_back(p_.classes, chunks_, p_.gradient != nullptr, p_.past.values != nullptr);
    if (threads == 1 || p_.rows >= 4 * threads || chunks_ == 1)
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
    const bool nothing_to_average = p_.reduction == Reduction::mean && !rows_.has_class_weight();
    *loss = nothing_to_average ? std::numeric_limits<Real>::quiet_NaN() : Real(total);
  }

 private:
  static constexpr int kMostPower = std::is_same_v<Real, float> ? 4 : 0;  // float64 is not worth as many loops

  int power_of(const Row<Real>& r) const { return r.has_past ? power_ : kNoPast; }

  // Calls f(tables, power) with the row's values as compile-time constants.
  template <class F>
  void with_shape(const Row<Real>& r, F&& f) const {
    with_constant<0, 2>(r.tables, [&](auto tables) {
      with_constant<kNoPast, kMostPower>(power_of(r), [&](auto power) { f(tables, power); });
    });
  }

  void* gradient_at(std::int64_t i, std::int64_t j) const {
    return static_cast<char*>(p_.gradient) + (i * p_.classes + j) * size_of(p_.dtype);
  }
  std::int64_t width(std::int64_t begin) const { return std::min(kChunk, p_.classes - begin); }
  Real max(std::int64_t i, std::int64_t begin) const { return chunk_max(rows_.logits(i, begin), width(begin)); }

  // The first loop over the chunk of a row whose largest logit is max.
  void statistics(const Row<Real>& r, std::int64_t begin, Real max, Scratch<Real>& scratch, Statistics& result) const {
    Chunk<Real>& c = scratch.chunk_at(begin);
    rows_.set_chunk(c, r, begin, scratch);
    with_shape(r, [&](auto tables, auto power) {
      chunk_statistics<Real, tables, power>(c, max, Real(1 / p_.temperature), scratch.kept_at(begin), result);
    });
  }

  // Of a row of which these are the chunks; merged is where it may be put.
  const Statistics& total(const Statistics* by_chunk, Statistics& merged) const {
    if (chunks_ == 1) return *by_chunk;
    merged = by_chunk[0];
    for (std::int64_t k = 1; k < chunks_; ++k) merged.merge(by_chunk[k], p_.temperature);
    return merged;
  }

  // As total. Where the tail of a list met a logit of -inf, which the dot shows, the row's statistics are taken again.
  const Statistics& final_total(Row<Real>& r, Statistics* by_chunk, Statistics& merged, Scratch<Real>& own) const {
    const Statistics& first = total(by_chunk, merged);
    if (!r.used || std::isfinite(first.dot) || !rows_.keep_lists_off_masked(r)) return first;
    for (std::int64_t k = 0; k < chunks_; ++k) statistics(r, k * kChunk, Real(by_chunk[k].max), own, by_chunk[k]);
    return total(by_chunk, merged);
  }

  // Mass of a row's class term, or of its past term.
  static double mass(const Row<Real>& r, const Statistics& s, bool past) {
    double mass = r.sparse_mass[past];
    for (int k = 0; k < r.tables; ++k) mass += (r.dense[k] == kPast) == past ? s.dense[k] : 0;
    return mass;
  }

  // log softmax(z_i)_y
  double log_probability(std::int64_t i, std::int64_t y, const Statistics& s) const {
    return double(rows_.logit(i, y)) - s.max - std::log(s.sum);
  }

  double loss(const Row<Real>& r, const Statistics& s, Scratch<Real>& scratch) const {
    if (!r.used) return 0;
    if (s.sum != s.sum) return s.sum;  // a NaN logit, even where the row's weight is 0
    const double t = p_.temperature;
    double dot = s.dot;
    r.each_listed(0, p_.classes, [&](std::int64_t j, double mass) {
      if (mass != 0) dot += mass * (double(rows_.logit(r.index, j)) - s.max);
    });
    if (dot != dot) dot = guarded_dot(r, s.max, scratch);
    double total = -dot;
    if (const double m = mass(r, s, false); m != 0) total += m * std::log(s.sum);
    if (r.has_past) total += mass(r, s, true) * t * std::log(s.sum_at_t) - double(r.scale[kPast]) * t * r.past_entropy;
    return total;
  }

  struct Sums {
    double mass, dot;  // of t and of t (z - max), with 0 * -inf = 0
  };

  // Over a row's classes; mass_of(begin, n) returns t of the n classes from begin on.
  template <class F>
  Sums guarded_sums(std::int64_t i, double max, F&& mass_of) const {
    using V = Vec<Real>;
    WideSum<Real> mass, dot;
    const V shift = V::broadcast(Real(max)), zero = V::broadcast(0);
    for (std::int64_t begin = 0; begin < p_.classes; begin += kChunk) {
      const std::int64_t n = width(begin);
      const Input<Real> z = rows_.logits(i, begin), t = in_buffer<Real>(mass_of(begin, n));
      each_vec<V::lanes>(0, n, [&](std::int64_t j, int m) TOAST_INLINED {
        const V here = t.load(j, m);
        mass.add(here);
        dot.add(fma_nonzero(here, z.load(j, m) - shift, zero));
      });
    }
    return {mass.total(), dot.total()};
  }

  // Statistics::dot and what the labels and lists add to it, where a mass of 0 met a logit of -inf.
  double guarded_dot(const Row<Real>& r, double max, Scratch<Real>& scratch) const {
    const auto mass_of = [&](std::int64_t begin, std::int64_t n) {
      rows_.mass(r, begin, n, scratch.dense[0], scratch.spare);
      return scratch.dense[0];
    };
    return guarded_sums(r.index, max, mass_of).dot;
  }

  void write_stats(const Row<Real>& r, const Statistics* by_chunk, const Statistics& s, Scratch<Real>& scratch) const {
    const std::int64_t i = r.index;
    double cross_entropy = 0;
    for (int which = 0; r.used && which < 2 && rows_.labels(which) != nullptr; ++which) {
      const std::int64_t y = rows_.labels(which)[i];
      if (y != p_.ignore_index && rows_.share_of(i, which) != 0)
        cross_entropy -= rows_.share_of(i, which) * log_probability(i, y, s);
    }
    if (p_.target == nullptr) {
      const auto mass_of = [&](std::int64_t begin, std::int64_t n) {
        return r.soft[kSoft].chunk(begin, n, scratch.spare);
      };
      const Sums sums = guarded_sums(i, s.max, mass_of);
      cross_entropy = (sums.mass == 0 ? 0 : sums.mass * std::log(s.sum)) - sums.dot;
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
    const std::int64_t bytes = width(begin) * size_of(p_.dtype);
    void* const out = gradient_at(r.index, begin);
    if (!r.used) {
      std::memset(out, 0, bytes);
      return;
    }
    const auto [next_row, next_class] = rows_.after(r.index, begin, 1);
    Output<Real> to{p_.dtype, out, gradient_at(next_row, next_class)};
    if (non_temporal_) to.at = scratch.gradient, to.prefetch_at = to.at;

    const Chunk<Real>& c = scratch.chunk_at(begin);
    const double upstream = upstream_ == nullptr ? 1 : double(upstream_[r.index * p_.upstream_stride]);
    const Real coef_p = Real(upstream * mass(r, total, false) / total.sum * chunk.relative_to(total));
    Real coef_e = 0;
    if (r.has_past)
      coef_e = Real(upstream * mass(r, total, true) / total.sum_at_t * chunk.relative_to(total, p_.temperature));
    const Kept<Real> kept = scratch.kept_at(begin);
    with_shape(r, [&](auto tables, auto power) {
      chunk_gradient<Real, tables, power>(c, kept, coef_p, coef_e, Real(upstream), to);
    });
    Real* const listed = scratch.listed;
    r.each_listed(begin, begin + c.n, [&](std::int64_t j, double mass) { listed[j - begin] += Real(upstream * mass); });
    r.each_listed(begin, begin + c.n, [&](std::int64_t j, double) {
      Real& here = listed[j - begin];
      if (here == 0) return;
      const double others = gradient_of(j - begin, r.tables, power_of(r), c, kept, coef_p, coef_e, upstream);
      to.store_one(Real(others - std::exchange(here, Real(0))), j - begin);
    });
    if (non_temporal_) copy_non_temporal(scratch.gradient, bytes, out);
  }

  bool needs_statistics(const Row<Real>& r) const { return r.used || stats_ != nullptr; }

  // Parallel over rows.
  void rows_to_threads(std::vector<Scratch<Real>>& scratch, double* losses) const {
    const int threads = int(scratch.size());
    // A thread takes runs of rows. What it prefetches of those after a run is lost, if they go to another thread.
    const std::int64_t run = threads == 1
                                 ? std::max(std::int64_t(1), p_.rows)
                                 : std::max({std::int64_t(1), kGrain / (p_.classes + kRow), p_.rows / (16 * threads)});
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const FlushDenormals<Real> flush;
      Scratch<Real>& own = scratch[thread_number()];
      Statistics again;
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t first = 0; first < p_.rows; first += run) {
        const std::int64_t end = std::min(first + run, p_.rows);
        Real next_max = max(first, 0);
        for (std::int64_t i = first; i < end; ++i) {
          Row<Real> r = rows_.row(i);
          Real largest = next_max;
          for (std::int64_t k = 0; needs_statistics(r) && k < chunks_; ++k) {
            statistics(r, k * kChunk, largest, own, own.by_chunk[k]);
            if (k + 1 < chunks_) largest = max(i, (k + 1) * kChunk);
          }
          // While the row's sums and quotients are on their way the next row's maximum is found. (Not beyond the run:
          // another thread may write its gradient over those logits.)
          if (i + 1 < end) next_max = max(i + 1, 0);
          Statistics merged;
          const Statistics& s = final_total(r, own.by_chunk.data(), merged, own);
          losses[i] = loss(r, s, own);
          if (stats_ != nullptr) write_stats(r, own.by_chunk.data(), s, own);
          for (std::int64_t k = 0; p_.gradient != nullptr && k < chunks_; ++k) {
            if (!own.whole_row && r.used) statistics(r, k * kChunk, Real(own.by_chunk[k].max), own, again);
            gradient(r, k * kChunk, own.by_chunk[k], s, own);
          }
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
      const FlushDenormals<Real> flush;
      Scratch<Real>& own = scratch[thread_number()];
      Statistics again;
#pragma omp for schedule(static)
      for (std::int64_t k = 0; k < p_.rows * chunks_; ++k)
        if (const Row<Real>& r = rows[k / chunks_]; needs_statistics(r))
          statistics(r, k % chunks_ * kChunk, max(r.index, k % chunks_ * kChunk), own, by_chunk[k]);
#pragma omp single
      for (std::int64_t i = 0; i < p_.rows; ++i) {
        totals[i] = final_total(rows[i], &by_chunk[i * chunks_], totals[i], own);
        losses[i] = loss(rows[i], totals[i], own);
        if (stats_ != nullptr) write_stats(rows[i], &by_chunk[i * chunks_], totals[i], own);
      }
      if (p_.gradient != nullptr) {
#pragma omp for schedule(static)
        for (std::int64_t k = 0; k < p_.rows * chunks_; ++k) {
          const Row<Real>& r = rows[k / chunks_];
          const std::int64_t begin = k % chunks_ * kChunk;
          if (r.used) statistics(r, begin, Real(by_chunk[k].max), own, again);
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
