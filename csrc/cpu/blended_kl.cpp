// blended_kl on the CPU. A row is worked on in chunks of kChunk classes: one sweep for the statistics of each chunk,
// which are merged in order, and one for the gradient. The second sweep finds the row in the cache; a row of one
// chunk keeps its exponentials too. Rows go to the threads, or the chunks of a row where rows are few.
#include "blended_kl.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/blended_kl_chunk.h"
#include "cpu/convert.h"
#include "cpu/soft_rows.h"

namespace toast {
namespace TOAST_ISA {
namespace {

// A gradient larger than this is stored past the caches.
constexpr std::int64_t kStreamBytes = std::int64_t(8) << 20;
// Rows up to this many classes keep their exponentials and target between the two loops; that of a longer row would
// fall out of the second-level cache, and the first loop runs again.
constexpr std::int64_t kKeptRow = 32768;
// Logits worth a thread of their own.
constexpr std::int64_t kGrain = 16384;

// A thread's working memory.
template <class Real>
struct Scratch {
  Scratch(std::int64_t classes, std::int64_t chunks, bool keep, bool past)
      : parts(chunks), whole_row(keep && classes <= kKeptRow) {
    constexpr std::int64_t lanes = Vec<Real>::lanes;
    const auto padded = [&](std::int64_t n) { return (n + lanes - 1) / lanes * lanes; };
    const std::int64_t chunk = padded(std::min(classes, kChunk)), row = whole_row ? padded(classes) : chunk;
    const std::int64_t total = 5 * chunk + (keep ? (past ? 3 : 2) * row : 0);
    memory.reset(static_cast<Real*>(std::aligned_alloc(64, total * sizeof(Real))));
    if (memory == nullptr) throw std::bad_alloc();
    Real* next = memory.get();
    for (Real** buffer : {&z, &s, &q, &part, &gradient}) *buffer = std::exchange(next, next + chunk);
    if (!keep) return;
    kept.p = std::exchange(next, next + row);
    kept.t = std::exchange(next, next + row);
    if (past) kept.e = next;
  }

  // Where the chunk that begins there is kept.
  Kept<Real> kept_at(std::int64_t begin) const {
    const std::int64_t at = whole_row ? begin : 0;
    return {kept.p + at, kept.e + at, kept.t + at};
  }

  struct Free {
    void operator()(Real* p) const { std::free(p); }
  };
  std::vector<Statistics> parts;  // of each chunk of the row
  const bool whole_row;           // kept holds all of a row, else only its last chunk
  std::unique_ptr<Real, Free> memory;
  Real *z, *s, *q, *part, *gradient;  // a chunk each
  Kept<Real> kept;
};

template <class Real>
class Kernel {
 public:
  explicit Kernel(const BlendedKL& problem)
      : p_(problem),
        weight_(static_cast<const Real*>(p_.weight)),
        lam_(static_cast<const Real*>(p_.lam)),
        upstream_(static_cast<const Real*>(p_.upstream)),
        stats_(static_cast<Real*>(p_.stats)),
        chunks_((p_.classes + kChunk - 1) / kChunk),
        inverse_t_(Real(1 / p_.temperature)),
        power_(p_.temperature <= 4 && p_.temperature == std::floor(p_.temperature) ? int(p_.temperature) : 0),
        stream_(p_.rows * p_.classes * size_of(p_.dtype) >= kStreamBytes) {}

  void run() {
    check_indices();
    normalise();
    std::vector<double> losses(p_.rows);
    const std::int64_t worth = p_.rows * p_.classes / kGrain;
    const int threads = int(std::max<std::int64_t>(1, std::min<std::int64_t>(p_.threads, worth)));
    if (p_.rows >= 4 * threads || chunks_ == 1)
      share_rows(threads, losses.data());
    else
      share_chunks(threads, losses.data());

    auto* loss = static_cast<Real*>(p_.loss);
    if (p_.reduction == Reduction::none) {
      for (std::int64_t i = 0; i < p_.rows; ++i) loss[i] = Real(losses[i]);
      return;
    }
    double total = 0;
    for (double x : losses) total += x;
    const bool nothing_to_average = p_.reduction == Reduction::mean && !(class_rows_ != 0);
    *loss = nothing_to_average ? std::numeric_limits<Real>::quiet_NaN() : Real(total);
  }

 private:
  // Row i as the formulas see it, scaled by the reduction.
  struct Row {
    std::int64_t index;
    bool used = false;
    int labels = 0;
    std::int64_t label[2];
    double hard[2];           // mass at label
    Real soft[2];             // weight of S[label]; 0 where it is not filled
    Real smooth = 0;          // mass that label smoothing gives each class, times its class weight
    SoftRow<Real> target[2];  // S[label], or the row of probabilities
    bool has_soft = false;    // the class term has more than its hard mass
    bool has_past = false;
    SoftRow<Real> past;
    Real past_scale = 0;  // lambda T / P
    double past_entropy = 0;
  };

  static std::int64_t first_bad(const std::int64_t* index, std::int64_t n, std::int64_t bound, std::int64_t unused) {
    for (std::int64_t i = 0; i < n; ++i)
      if ((index[i] < 0 || index[i] >= bound) && index[i] != unused) return i;
    return -1;
  }

  void check_indices() const {
    auto check = [&](const char* name, const std::int64_t* index, std::int64_t bound, std::int64_t unused) {
      const std::int64_t bad = index == nullptr ? -1 : first_bad(index, p_.rows, bound, unused);
      if (bad >= 0)
        throw std::out_of_range(std::string(name) + "[" + std::to_string(bad) + "] = " + std::to_string(index[bad]) +
                                " is out of range [0, " + std::to_string(bound) + ") and not " +
                                std::to_string(unused));
    };
    check(p_.target_b == nullptr ? "target" : "target[0]", p_.target, p_.classes, p_.ignore_index);
    check("target[1]", p_.target_b, p_.classes, p_.ignore_index);
    check("past_index", p_.past_index, p_.past.rows, -1);
  }

  double share(std::int64_t i, int which) const {
    return lam_ == nullptr ? 1 : which == 0 ? double(lam_[i]) : 1 - double(lam_[i]);
  }
  const std::int64_t* labels(int which) const { return which == 0 ? p_.target : p_.target_b; }
  double weight_of(std::int64_t y) const { return weight_ == nullptr ? 1 : double(weight_[y]); }

  bool used(std::int64_t i) const {
    return p_.target == nullptr || p_.target[i] != p_.ignore_index ||
           (p_.target_b != nullptr && p_.target_b[i] != p_.ignore_index);
  }
  bool has_past(std::int64_t i) const {
    if (p_.past_index == nullptr || p_.past_index[i] < 0 || !used(i)) return false;
    return p_.past.filled == nullptr || p_.past.filled[p_.past_index[i]];
  }

  // The divisors of the mean: W for the class term, P for the past term.
  void normalise() {
    double past_rows = 0;
    for (std::int64_t i = 0; i < p_.rows; ++i) {
      if (p_.target == nullptr) class_rows_ += 1;
      for (int which = 0; which < 2 && labels(which) != nullptr; ++which)
        if (const std::int64_t y = labels(which)[i]; y != p_.ignore_index)
          class_rows_ += share(i, which) * weight_of(y);
      past_rows += has_past(i);
    }
    if (p_.reduction != Reduction::mean) return;
    class_scale_ = class_rows_ == 0 ? 0 : 1 / class_rows_;
    past_term_scale_ = past_rows == 0 ? 0 : 1 / past_rows;
  }

  Row row(std::int64_t i) const {
    Row r;
    r.index = i;
    r.used = used(i);
    if (!r.used) return r;
    const double eps = p_.label_smoothing;
    double smooth = 0;
    if (p_.target == nullptr) {
      r.target[0] = SoftRow<Real>(p_.probabilities, i, p_.classes);
      r.has_soft = true;
      smooth = eps;
    }
    for (int which = 0; which < 2 && labels(which) != nullptr; ++which) {
      const std::int64_t y = labels(which)[i];
      if (y == p_.ignore_index) continue;
      const double portion = share(i, which);
      const bool blended = p_.soft.values != nullptr && (p_.soft.filled == nullptr || p_.soft.filled[y]);
      const double alpha = blended ? p_.alpha : 0;
      const int k = r.labels++;
      r.label[k] = y;
      r.hard[k] = class_scale_ * portion * (1 - alpha) * (1 - eps) * weight_of(y);
      r.soft[k] = Real(class_scale_ * portion * alpha * weight_of(y));
      if (r.soft[k] != 0) {
        r.target[k] = SoftRow<Real>(p_.soft, y, p_.classes);
        r.has_soft = true;
      }
      smooth += portion * (1 - alpha) * eps;
    }
    r.smooth = Real(class_scale_ * smooth / double(p_.classes));
    r.has_soft = r.has_soft || r.smooth != 0;
    r.has_past = has_past(i);
    if (r.has_past) {
      const std::int64_t row = p_.past_index[i];
      r.past = SoftRow<Real>(p_.past, row, p_.classes);
      r.past_scale = Real(past_term_scale_ * p_.past_weight * p_.temperature);
      r.past_entropy = double(static_cast<const Real*>(p_.past.entropy)[row]);
    }
    return r;
  }

  Chunk<Real> chunk(const Row& r, std::int64_t begin, Scratch<Real>& scratch) const {
    Chunk<Real> c;
    c.n = std::min(kChunk, p_.classes - begin);
    c.z = as_real(p_.dtype, p_.logits, r.index * p_.stride + begin, c.n, scratch.z);
    if (r.has_soft) class_target(r, begin, c, scratch);
    if (r.has_past) {
      c.q = r.past.chunk(begin, c.n, scratch.q);
      c.b = r.past_scale;
    }
    return c;
  }

  // The part of the class term's target mass that is not at the labels: a single soft row is used where it lies,
  // anything else is added up.
  void class_target(const Row& r, std::int64_t begin, Chunk<Real>& c, Scratch<Real>& scratch) const {
    if (p_.target != nullptr && r.labels == 1 && r.smooth == 0) {
      c.s = r.target[0].chunk(begin, c.n, scratch.s);
      c.a = r.soft[0];
      return;
    }
    Real* mass = scratch.s;
    for (std::int64_t j = 0; j < c.n; ++j) mass[j] = r.smooth;
    if (p_.target == nullptr) {
      const Real* probabilities = r.target[0].chunk(begin, c.n, scratch.part);
      const Real scale = Real(class_scale_ * (1 - p_.label_smoothing));
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] += scale * probabilities[j];
    }
    if (weight_ != nullptr)
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] *= weight_[begin + j];
    for (int k = 0; k < r.labels; ++k) {
      if (r.soft[k] == 0) continue;
      const Real* soft = r.target[k].chunk(begin, c.n, scratch.part);
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] += r.soft[k] * soft[j];
    }
    c.s = mass;
    c.a = 1;
  }

  // Calls f with the template arguments that fit a row: <has_soft, has_past, power>.
  template <class F>
  void with_shape(const Row& r, F&& f) const {
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
  Statistics statistics(const Row& r, std::int64_t begin, bool keep, Scratch<Real>& scratch) const {
    const Chunk<Real> c = chunk(r, begin, scratch);
    Statistics result;
    with_shape(r, [&](auto soft, auto past, auto power) {
      result = keep ? chunk_statistics<Real, soft, past, power, true>(c, inverse_t_, scratch.kept_at(begin))
                    : chunk_statistics<Real, soft, past, power, false>(c, inverse_t_, {});
    });
    return result;
  }

  Real logit(std::int64_t i, std::int64_t j) const {
    Real buffer[1];
    return *as_real(p_.dtype, p_.logits, i * p_.stride + j, 1, buffer);
  }

  // log softmax(z_i)_y
  double log_probability(std::int64_t i, std::int64_t y, const Statistics& s) const {
    return double(logit(i, y)) - s.max - std::log(s.sum);
  }

  double loss(const Row& r, const Statistics& s) const {
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

  void write_stats(const Row& r, const Statistics& s) const {
    const std::int64_t i = r.index;
    double cross_entropy = 0;
    for (int which = 0; r.used && which < 2 && labels(which) != nullptr; ++which) {
      const std::int64_t y = labels(which)[i];
      if (y != p_.ignore_index && share(i, which) != 0) cross_entropy -= share(i, which) * log_probability(i, y, s);
    }
    if (p_.target == nullptr) {
      Real buffer[1];
      for (std::int64_t j = 0; j < p_.classes; ++j)
        if (const double mass = *r.target[0].chunk(j, 1, buffer); mass != 0)
          cross_entropy -= mass * log_probability(i, j, s);
    }
    stats_[i] = Real(cross_entropy);
    stats_[p_.rows + i] = Real(s.max + std::log(s.sum));
    p_.argmax[i] = argmax(i, s);
  }

  // The first of the largest logits; a NaN counts as the largest, as in torch.argmax.
  std::int64_t argmax(std::int64_t i, const Statistics& s) const {
    std::int64_t best = -1;
    Real buffer[kChunk];
    for (std::int64_t begin = 0; begin < p_.classes; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, p_.classes - begin);
      const Real* z = as_real(p_.dtype, p_.logits, i * p_.stride + begin, n, buffer);
      for (std::int64_t j = 0; j < n; ++j) {
        if (z[j] != z[j]) return begin + j;
        if (best < 0 && double(z[j]) == s.max) best = begin + j;
      }
    }
    return std::max<std::int64_t>(best, 0);
  }

  // The second loop over one chunk of a row, from what the first kept of it.
  void gradient(const Row& r, std::int64_t begin, const Statistics& part, const Statistics& total,
                Scratch<Real>& scratch) const {
    const std::int64_t n = std::min(kChunk, p_.classes - begin);
    with_dtype(p_.dtype, [&](auto zero) {
      using T = decltype(zero);
      T* out = static_cast<T*>(p_.gradient) + r.index * p_.classes + begin;
      if (!r.used) {
        std::fill(out, out + n, T{});
      } else if constexpr (std::is_same_v<T, Real>) {
        compute_gradient(r, begin, n, part, total, scratch.kept_at(begin), stream_ ? scratch.gradient : out);
        if (stream_) stream_bytes(scratch.gradient, n * sizeof(T), out);
      } else {
        compute_gradient(r, begin, n, part, total, scratch.kept_at(begin), scratch.gradient);
        T* rounded = stream_ ? reinterpret_cast<T*>(scratch.part) : out;
        narrow(scratch.gradient, n, rounded);
        if (stream_) stream_bytes(rounded, n * sizeof(T), out);
      }
    });
  }

  void compute_gradient(const Row& r, std::int64_t begin, std::int64_t n, const Statistics& part,
                        const Statistics& total, const Kept<Real>& kept, Real* out) const {
    const double upstream = upstream_ == nullptr ? 1 : double(upstream_[r.index * p_.upstream_stride]);
    double class_mass = total.class_mass;
    for (int k = 0; k < r.labels; ++k) class_mass += r.hard[k];
    const Real of_p = Real(upstream * class_mass / total.sum * part.relative_to(total));
    Real of_e = 0;
    if (r.has_past) of_e = Real(upstream * total.past_mass / total.sum_at_t * part.relative_to(total, p_.temperature));
    with_shape(r, [&](auto soft, auto past, auto power) {
      chunk_gradient<Real, soft, past, power>(kept, n, of_p, of_e, Real(upstream), out);
    });
    for (int k = 0; k < r.labels; ++k)
      if (r.label[k] >= begin && r.label[k] < begin + n) out[r.label[k] - begin] -= Real(upstream * r.hard[k]);
  }

  bool needs_statistics(const Row& r) const { return r.used || stats_ != nullptr; }

  Scratch<Real> scratch() const {
    return Scratch<Real>(p_.classes, chunks_, p_.gradient != nullptr, p_.past.values != nullptr);
  }

  // A row to a thread.
  void share_rows(int threads, double* losses) const {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / p_.classes);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch<Real> own = scratch();
      const bool keep = own.whole_row;
#pragma omp for schedule(dynamic, grain)
      for (std::int64_t i = 0; i < p_.rows; ++i) {
        const Row r = row(i);
        Statistics total;
        for (std::int64_t k = 0; needs_statistics(r) && k < chunks_; ++k) {
          own.parts[k] = statistics(r, k * kChunk, keep, own);
          k == 0 ? void(total = own.parts[k]) : total.merge(own.parts[k], p_.temperature);
        }
        losses[i] = loss(r, total);
        if (stats_ != nullptr) write_stats(r, total);
        for (std::int64_t k = 0; p_.gradient != nullptr && k < chunks_; ++k) {
          if (!keep && r.used) statistics(r, k * kChunk, true, own);
          gradient(r, k * kChunk, own.parts[k], total, own);
        }
      }
      if (stream_) stream_fence();
    }
  }

  // A chunk to a thread: for rows fewer than would keep the threads busy.
  void share_chunks(int threads, double* losses) const {
    std::vector<Row> rows(p_.rows);
    std::vector<Statistics> parts(p_.rows * chunks_), totals(p_.rows);
    for (std::int64_t i = 0; i < p_.rows; ++i) rows[i] = row(i);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch<Real> own = scratch();
#pragma omp for schedule(static)
      for (std::int64_t k = 0; k < p_.rows * chunks_; ++k)
        if (const Row& r = rows[k / chunks_]; needs_statistics(r))
          parts[k] = statistics(r, k % chunks_ * kChunk, false, own);
#pragma omp single
      for (std::int64_t i = 0; i < p_.rows; ++i) {
        totals[i] = parts[i * chunks_];
        for (std::int64_t k = 1; k < chunks_; ++k) totals[i].merge(parts[i * chunks_ + k], p_.temperature);
        losses[i] = loss(rows[i], totals[i]);
        if (stats_ != nullptr) write_stats(rows[i], totals[i]);
      }
      if (p_.gradient != nullptr) {
#pragma omp for schedule(static)
        for (std::int64_t k = 0; k < p_.rows * chunks_; ++k) {
          const Row& r = rows[k / chunks_];
          const std::int64_t begin = k % chunks_ * kChunk;
          if (r.used) statistics(r, begin, true, own);
          gradient(r, begin, parts[k], totals[r.index], own);
        }
      }
      if (stream_) stream_fence();
    }
  }

  const BlendedKL& p_;
  const Real* weight_;
  const Real* lam_;
  const Real* upstream_;
  Real* stats_;
  const std::int64_t chunks_;
  const Real inverse_t_;
  const int power_;
  const bool stream_;
  double class_rows_ = 0;  // W
  double class_scale_ = 1;
  double past_term_scale_ = 1;
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
