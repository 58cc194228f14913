// A thread's statistics of its share of a row, relative to the maximum of its warp: in one sweep over what it holds,
// with the single classes and what lists have beyond their tails added one by one.
#pragma once

#include "cuda/held_row.cuh"

namespace toast {

template <class T, RowKind kind, bool kPastTerm>
class RowStatistics {
  using Held = HeldRow<T, kind>;
  static constexpr int kW = Held::kW;

 public:
  using Stats = Statistics<sums_of(kind)>;

  __device__ RowStatistics(Held& held, const Row& row, const Span<T>& span, const Base& base)
      : held_(held), row_(row), span_(span), base_(base) {}

  // `lists`: whether they are to be added here, as they are once in a cluster.
  __device__ Stats take(bool lists) {
    float top = Held::kVectors > 0 ? held_.largest() : -kInf;
    held_.for_each_single(span_, [&](int j) { top = fmaxf(top, span_.logit(j)); });
    s_ = Stats::of_nothing(warp_max(top));
    origin_ = origin_of(s_.max);
    if constexpr (Held::kVectors > 0) add_vectors();
    held_.for_each_single(span_, [&](int j) { add_single(j); });
    if (Held::kMasses && lists) add_lists();
    if (held_.p.stats != nullptr) {
      const auto look_at = [&](int j) { s_.saw(span_.logit(j), j); };
      held_.for_each_class(span_, look_at);
      held_.for_each_single(span_, look_at);
    }
    return s_;
  }

 private:
  __device__ float x_of(float z) const { return base_.x(z, origin_); }

  __device__ void add_vectors() {
    const auto scales = Held::mass_scales(row_, 1);
    float soft_sum = 0, past_sum = 0;
    int classes = 0;
    held_.for_each_vector([&](int v, int at) TOAST_INLINE {
      if (at >= span_.vectors) return;
      float x[kW], p[kW], e[kW], m[kW];
      held_.template exponentials<kPastTerm>(v, base_, origin_, x, p, e);
#pragma unroll
      for (int k = 0; k < kW; ++k) {
        s_.sum[kSum] += p[k];
        if constexpr (kPastTerm) s_.sum[kSumAtT] += e[k];
      }
      if constexpr (Held::kMasses) {
        held_.template masses<kPastTerm>(
            v, row_, scales, m, [&](float s) { soft_sum += s; }, [&](float q) { past_sum += q; });
#pragma unroll
        for (int k = 0; k < kW; ++k) s_.sum[kDot] = fmaf(m[k], x[k], s_.sum[kDot]);
        classes += kW;
      }
    });
    if constexpr (Held::kMasses) {
      const Masses uniform = uniform_masses(row_);
      s_.sum[kClassMass] = fmaf(float(classes), uniform.of_class, scales.soft * soft_sum);
      s_.sum[kPastMass] = fmaf(float(classes), uniform.of_past, scales.past * past_sum);
      // A logit is -inf or NaN. That is rare, and 0 * -inf = 0: the vectors are read again, which takes no registers.
      if (!(fabsf(s_.sum[kDot]) < kInf) && row_.used) {
        s_.sum[kDot] = 0;
        held_.for_each_class(span_, [&](int j) { add_dot(j, span_.logit(j), masses_at(held_.p, row_, j, false)); });
      }
    }
  }

  // Where a logit is -inf, what lists have there counts here, which add_lists leaves out.
  __device__ void add_dot(int j, float z, Masses m) {
    const float mass = (z == -kInf ? masses_at(held_.p, row_, j, true) : m).both();
    if (mass != 0) s_.sum[kDot] = fmaf(mass, x_of(z), s_.sum[kDot]);
  }

  __device__ void add_single(int j) {
    const float z = span_.logit(j), x = x_of(z);
    s_.sum[kSum] += exp2_approx(base_.t * x);
    if constexpr (Held::kMasses) {
      if constexpr (kPastTerm) s_.sum[kSumAtT] += exp2_approx(x);
      const Masses m = masses_at(held_.p, row_, j, false);
      s_.sum[kClassMass] += m.of_class;
      s_.sum[kPastMass] += m.of_past;
      add_dot(j, z, m);
    }
    if constexpr (kind == RowKind::any) {
      if (held_.p.target != nullptr || held_.p.stats == nullptr) return;
      const float score = element(held_.p.probabilities.dtype, row_.scaled[kSoftA].values, j);
      s_.sum[kScoreMass] += score;
      if (score != 0) s_.sum[kScoreDot] = fmaf(score, x, s_.sum[kScoreDot]);
    }
  }

  __device__ void add_lists() {
    for_each_listed(row_, [&](int k, const ScaledRow& list, int i, int j) {
      const float more = list.listed(i) - list.tail, z = span_.logit(j);
      s_.sum[k == kPast ? kPastMass : kClassMass] += more;
      if (z != -kInf) s_.sum[kDot] = fmaf(more, x_of(z), s_.sum[kDot]);
    });
  }

  Held& held_;
  const Row& row_;
  const Span<T>& span_;
  const Base& base_;
  Stats s_;
  float origin_;
};

}  // namespace toast
