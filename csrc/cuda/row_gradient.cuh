// A thread's share of a row's gradient, coef_p p + coef_e e - upstream mass: in one sweep over what it holds, which
// loads the next row into the registers that it has done with. Labels, and classes that lists have, are written a
// second time, complete, behind the vectors that they lie in.
#pragma once

#include "cuda/held_row.cuh"

namespace toast {

struct Slope {
  float coef_p, coef_e, origin;
};

enum class Terms { none, of_class, of_class_and_past };

template <class T, RowKind kind, Terms terms>
class RowGradient {
  using Held = HeldRow<T, kind>;
  static constexpr int kW = Held::kW;
  static constexpr bool kPastTerm = terms == Terms::of_class_and_past, kZeros = terms == Terms::none;

 public:
  __device__ RowGradient(Held& held, const Row& row, const Base& base, const Slope& slope)
      : held_(held), row_(row), base_(base), slope_(slope) {}

  // Writes row i and loads row `next`. `rank`: of this block in its cluster.
  __device__ void write(std::int64_t i, int rank, std::int64_t next, const Row& next_row) {
    write_vectors(i, next, next_row);
    forget(i);  // what follows from it is in the vectors' way
    const Span<T> span = held_.span(i);
    T* const to = gradient(i);
    held_.for_each_single(span, [&](int j) {
      if constexpr (kZeros)
        round_to(0, to[j]);
      else
        write_class(to, span, j, Held::kMasses ? masses_at(held_.p, row_, j, false).both() : 0);
    });
    if constexpr (!kZeros) write_sparse(to, span, rank);
    if constexpr (!kZeros && Held::kMasses)
      if (row_.masked) write_masked(to, span);
  }

 private:
  __device__ T* gradient(std::int64_t i) const { return static_cast<T*>(held_.p.gradient) + i * held_.p.classes; }

  __device__ void write_vectors(std::int64_t i, std::int64_t next, const Row& next_row) {
    const Span<T> span = held_.span(i), next_span = held_.span(next);
    T* const to = gradient(i);
    const bool aligned = reinterpret_cast<std::uintptr_t>(to + span.head) % 16 == 0;
    const auto scales = Held::mass_scales(row_, row_.upstream);
    held_.for_each_vector([&](int v, int at) TOAST_INLINE {
      if (at < span.vectors) {
        float x[kW], p[kW], e[kW], m[kW] = {};
        if constexpr (!kZeros) {
          held_.template exponentials<kPastTerm>(v, base_, slope_.origin, x, p, e);
          if constexpr (Held::kMasses) held_.template masses<kPastTerm>(v, row_, scales, m, [](float) {}, [](float) {});
#pragma unroll
          for (int k = 0; k < kW; ++k) {
            if constexpr (kPastTerm) m[k] = fmaf(-slope_.coef_e, e[k], m[k]);
            m[k] = fmaf(slope_.coef_p, p[k], -m[k]);
          }
        }
        store<T>(round_to<T>(m), to + span.first_class(at), aligned);
      }
      held_.load(v, at, next_span, next_row);
    });
  }

  __device__ void write_class(T* to, const Span<T>& span, int j, float mass) const {
    const float x = base_.x(span.logit(j), slope_.origin);
    float g = slope_.coef_p * exp2_approx(base_.t * x) - row_.upstream * mass;
    if constexpr (kPastTerm) g = fmaf(slope_.coef_e, exp2_approx(x), g);
    round_to(g, to[j]);
  }

  // A label by the thread that has written its vector; a class of lists once, by the block that has.
  __device__ void write_sparse(T* to, const Span<T>& span, int rank) const {
#pragma unroll
    for (const int y : row_.label) {
      if (y < 0 || held_.thread_of(span, y) != held_.thread) continue;
      const float others = Held::kMasses ? masses_at(held_.p, row_, y, false).both() : 0;
      write_class(to, span, y, others + hard_at(row_, y));
    }
    if (!Held::kMasses || !has_lists(row_)) return;
    __syncthreads();
    for_each_listed(row_, [&](int k, const ScaledRow&, int, int j) {
      if (held_.thread_of(span, j) / int(blockDim.x) != rank || listed_before(row_, k, j)) return;
      write_class(to, span, j, masses_at(held_.p, row_, j, true).both() + hard_at(row_, j));
    });
  }

  // Classes that have no share of tails, by the thread that has written their vectors.
  __device__ void write_masked(T* to, const Span<T>& span) const {
    __syncthreads();  // what lists have has been written
    const auto write = [&](int j) {
      if (span.logit(j) == -kInf)
        write_class(to, span, j, masses_at(held_.p, row_, j, true, false).both() + hard_at(row_, j));
    };
    held_.for_each_class(span, write);
    held_.for_each_single(span, write);
  }

  Held& held_;
  const Row& row_;
  const Base& base_;
  const Slope& slope_;
};

}  // namespace toast
