// What a thread does with its share of a row: one sweep over what it holds for the statistics, relative to the maximum
// of its warp, and one for the gradient, coef_p p + coef_e e - upstream mass, which loads the next row into the
// registers that it has done with. What labels and lists have is added to the statistics class by class, and those
// classes of the gradient are written a second time, complete, behind the vectors that they lie in.
#pragma once

#include "cuda/held_row.cuh"
#include "cuda/statistics.cuh"

namespace toast {

struct Slope {
  float coef_p, coef_e, origin;
};

template <class T, RowKind kind, bool kPastTerm>
class RowWork {
  using Held = HeldRow<T, kind>;
  static constexpr int kW = Held::kW;

 public:
  using Stats = Statistics<sums_of(kind)>;

  __device__ RowWork(Held& held, std::int64_t i, const Row& row, const Base& base)
      : held_(held), i_(i), row_(row), base_(base), span_(held.span(i)) {}

  // `lists`: whether they are added here, as they are once in a cluster.
  __device__ Stats statistics(bool lists) {
    float top = Held::kVectors > 0 ? held_.largest() : -kInf;
    held_.for_each_single(span_, [&](int j) { top = fmaxf(top, span_.logit(j)); });
    Stats s = Stats::of_nothing(warp_max(top));
    origin_ = origin_of(s.max);
    if constexpr (Held::kVectors > 0) add_vectors(s);
    held_.for_each_single(span_, [&](int j) { add_single(s, j); });
    if (Held::kMasses && lists) add_lists(s);
    if (held_.p.stats != nullptr) {
      const auto look_at = [&](int j) { s.saw(span_.logit(j), j); };
      held_.for_each_class(span_, look_at);
      held_.for_each_single(span_, look_at);
    }
    return s;
  }

  // And loads row `next`.
  __device__ void write_gradient(const Slope& slope, std::int64_t next, const Row& next_row) {
    origin_ = slope.origin;
    write_vectors(slope, next, next_row);
    forget(i_);  // what follows from it is in the vectors' way
    span_ = held_.span(i_);
    const auto write_without_lists = [&](int j) { write_class(slope, j, false); };
    held_.for_each_single(span_, write_without_lists);
    // A label by the thread that has written its vector; a class of lists once, by the block that has.
#pragma unroll
    for (const int y : row_.label)
      if (y >= 0 && held_.thread_of(span_, y) == held_.thread) write_without_lists(y);
    if (!Held::kMasses || !row_.has_lists()) return;
    __syncthreads();
    row_.for_each_listed([&](int k, const ScaledRow&, int, int j) {
      const bool here = held_.thread_of(span_, j) / int(blockDim.x) == cluster_rank();
      if (here && !row_.listed_before(k, j)) write_class(slope, j, true);
    });
    if (!row_.masked) return;
    __syncthreads();
    const auto write_masked = [&](int j) {
      if (span_.logit(j) == -kInf) write_class(slope, j, true);
    };
    held_.for_each_class(span_, write_masked);
    held_.for_each_single(span_, write_masked);
  }

 private:
  __device__ float x_of(float z) const { return base_.x(z, origin_); }
  __device__ Masses masses_at(int j, bool lists) const { return row_.at(j, span_.logit(j), lists); }

  // --- Of a vector
  __device__ static void unpack(uint4& held, float (&x)[kW]) {
    forget(held);
    widen<T>(held, x);
  }
  // Of the logits: x, p = exp(z - max) and where the row has a past e = exp((z - max) / t).
  __device__ __forceinline__ void exponentials(int v, float (&x)[kW], float (&p)[kW], float (&e)[kW]) {
    unpack(held_.z[v], x);
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      x[k] = x_of(x[k]);
      e[k] = exp2_approx(x[k]);
      p[k] = kPastTerm && base_.power == 0 ? exp2_approx(base_.t * x[k]) : e[k];
    }
    if constexpr (kPastTerm)
      for (int i = 1; i < base_.power; ++i)
#pragma unroll
        for (int k = 0; k < kW; ++k) p[k] *= e[k];
  }

  // What masses are made of: uniform + soft S + past Q, all times a factor.
  struct MassScales {
    float uniform, soft, past;
  };
  __device__ MassScales mass_scales(float factor) const {
    MassScales s{factor * row_.uniform().both(), 0, 0};
    if (Held::kSoftRow && row_.scaled[kSoftA].is_full()) s.soft = factor * row_.scaled[kSoftA].scale;
    if (Held::kPastRow && row_.scaled[kPast].is_full()) s.past = factor * row_.scaled[kPast].scale;
    return s;
  }
  // The masses; adds S and Q to their sums.
  __device__ __forceinline__ void masses(int v, const MassScales& scales, float (&m)[kW], float& s_sum, float& q_sum) {
#pragma unroll
    for (float& mass : m) mass = scales.uniform;
    const auto add = [&](uint4& held, bool logits, float scale, float& sum) TOAST_INLINED {
      float s[kW];
      unpack(held, s);
      if (logits)
#pragma unroll
        for (float& x : s) x = row_.scaled[kPast].probability(x);
#pragma unroll
      for (int k = 0; k < kW; ++k) {
        m[k] = fmaf(scale, s[k], m[k]);
        sum += s[k];
      }
    };
    if constexpr (Held::kSoftRow) add(held_.soft[v], false, scales.soft, s_sum);
    if constexpr (Held::kPastRow && kPastTerm) add(held_.past[v], row_.scaled[kPast].logits, scales.past, q_sum);
  }

  // --- Statistics
  __device__ void add_vectors(Stats& s) {
    const MassScales scales = mass_scales(1);
    float soft_sum = 0, past_sum = 0;
    int classes = 0;
    held_.for_each_vector([&](int v, int at) TOAST_INLINED {
      if (at >= span_.vectors) return;
      float x[kW], p[kW], e[kW], m[kW];
      exponentials(v, x, p, e);
#pragma unroll
      for (int k = 0; k < kW; ++k) {
        s.sum[kSum] += p[k];
        if constexpr (kPastTerm) s.sum[kSumAtT] += e[k];
      }
      if constexpr (Held::kMasses) {
        masses(v, scales, m, soft_sum, past_sum);
#pragma unroll
        for (int k = 0; k < kW; ++k) s.sum[kDot] = fmaf(m[k], x[k], s.sum[kDot]);
        classes += kW;
      }
    });
    if constexpr (Held::kMasses) {
      const Masses uniform = row_.uniform();
      s.sum[kClassMass] = fmaf(float(classes), uniform.of_class, scales.soft * soft_sum);
      s.sum[kPastMass] = fmaf(float(classes), uniform.of_past, scales.past * past_sum);
      // A logit is -inf or NaN. That is rare, and 0 * -inf = 0: the vectors are read again, which takes no registers.
      if (!(fabsf(s.sum[kDot]) < kInf) && row_.used) {
        s.sum[kDot] = s.sum[kClassMass] = s.sum[kPastMass] = 0;
        held_.for_each_class(span_, [&](int j) { add_masses(s, x_of(span_.logit(j)), masses_at(j, false)); });
      }
    }
  }

  __device__ void add_masses(Stats& s, float x, Masses m) {
    s.sum[kClassMass] += m.of_class;
    s.sum[kPastMass] += m.of_past;
    if (m.both() != 0) s.sum[kDot] = fmaf(m.both(), x, s.sum[kDot]);
  }

  __device__ void add_single(Stats& s, int j) {
    const float x = x_of(span_.logit(j));
    s.sum[kSum] += exp2_approx(base_.t * x);
    if constexpr (Held::kMasses) {
      if constexpr (kPastTerm) s.sum[kSumAtT] += exp2_approx(x);
      add_masses(s, x, masses_at(j, false));
    }
    if constexpr (kind == RowKind::any) {
      if (held_.p.target != nullptr || held_.p.stats == nullptr) return;
      const float score = element(held_.p.probabilities.dtype, row_.scaled[kSoftA].values, j);
      s.sum[kScoreMass] += score;
      if (score != 0) s.sum[kScoreDot] = fmaf(score, x, s.sum[kScoreDot]);
    }
  }

  __device__ void add_lists(Stats& s) {
    row_.for_each_listed([&](int k, const ScaledRow& list, int n, int j) {
      const float z = span_.logit(j), more = list.listed(n) - row_.unlisted(list, z);
      add_masses(s, x_of(z), k == kPast ? Masses{0, more} : Masses{more, 0});
    });
  }

  // --- The gradient
  __device__ T* gradient() const { return static_cast<T*>(held_.p.gradient) + i_ * held_.p.classes; }

  __device__ void write_vectors(const Slope& slope, std::int64_t next, const Row& next_row) {
    const Span<T> next_span = held_.span(next);
    T* const to = gradient();
    const bool aligned = reinterpret_cast<std::uintptr_t>(to + span_.head) % 16 == 0;
    const MassScales scales = mass_scales(row_.upstream);
    held_.for_each_vector([&](int v, int at) TOAST_INLINED {
      if (at < span_.vectors) {
        float x[kW], p[kW], e[kW], m[kW] = {}, unused = 0;
        exponentials(v, x, p, e);
        if constexpr (Held::kMasses) masses(v, scales, m, unused, unused);
#pragma unroll
        for (int k = 0; k < kW; ++k) {
          if constexpr (kPastTerm) m[k] = fmaf(-slope.coef_e, e[k], m[k]);
          m[k] = fmaf(slope.coef_p, p[k], -m[k]);
        }
        store<T>(round_to<T>(m), to + span_.first_class(at), aligned);
      }
      held_.load(v, at, next_span, next_row);
    });
  }

  // Complete, but if not `lists` for what lists have there.
  __device__ void write_class(const Slope& slope, int j, bool lists) const {
    const float x = x_of(span_.logit(j));
    float mass = row_.hard_at(j);
    if constexpr (Held::kMasses) mass += masses_at(j, lists).both();
    float g = slope.coef_p * exp2_approx(base_.t * x) - row_.upstream * mass;
    if constexpr (kPastTerm) g = fmaf(slope.coef_e, exp2_approx(x), g);
    round_to(row_.used ? g : 0, gradient()[j]);
  }

  Held& held_;
  std::int64_t i_;
  const Row& row_;
  const Base& base_;
  Span<T> span_;
  float origin_;  // what logits are relative to
};

}  // namespace toast
