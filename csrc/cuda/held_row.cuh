// A thread's share of a row, held in registers from the statistics to the gradient: vectors of 16 bytes of the logits
// and of what lies beside them. They begin at multiples of 16 bytes; the few single logits before and after them are
// read one by one, as all logits are of a row of which nothing is held.
#pragma once

#include <utility>

#include "cuda/statistics.cuh"
#include "cuda/target.cuh"

namespace toast {

// Where a row's classes are: `head` single ones, `vectors` of kWidth<T>, and single ones again.
template <class T>
struct Span {
  const T* logits;
  int classes, head, vectors;

  __device__ int first_class(int vector) const { return head + vector * kWidth<T>; }
  __device__ int singles() const { return classes - vectors * kWidth<T>; }
  __device__ int single(int i) const { return i < head ? i : i + vectors * kWidth<T>; }
  __device__ float logit(int j) const { return widen(__ldg(logits + j)); }
};

template <class T, RowKind kind>
struct HeldRow {
  static constexpr int kVectors = vectors_of(kind), kSize = kVectors > 0 ? kVectors : 1, kW = kWidth<T>;
  static constexpr bool kMasses = kind != RowKind::labels;  // there is more to the target than labels
  static constexpr bool kSoftRow = kind == RowKind::dense, kPastRow = kSoftRow || kind == RowKind::past;

  const BlendedKL& p;
  const int thread, threads;  // which of the cluster's this is, and how many there are
  uint4 z[kSize], soft[kSoftRow ? kSize : 1], past[kPastRow ? kSize : 1];

  __device__ HeldRow(const BlendedKL& problem, int thread, int threads)
      : p(problem), thread(thread), threads(threads) {}

  __device__ static bool has_past(const Row& row) { return kMasses && row.scaled[kPast].scale != 0; }

  __device__ Span<T> span(std::int64_t row) const {
    const T* logits = static_cast<const T*>(p.logits) + row * p.stride;
    const int classes = int(p.classes);
    if (kVectors == 0 || row >= p.rows) return {logits, classes, 0, 0};
    const int head = int((0 - reinterpret_cast<std::uintptr_t>(logits)) % 16 / sizeof(T));
    return {logits, classes, min(head, classes), max(classes - head, 0) / kW};
  }

  // Calls f(v, at) for this thread's vectors: its number v is the row's number `at`, if it has as many. By a fold and
  // TOAST_INLINE, as `#pragma unroll` gives up on long loops, and registers cannot be indexed.
  template <class F>
  __device__ void for_each_vector(F&& f) const {
    for_each_vector(f, std::make_integer_sequence<int, kVectors>());
  }
  template <class F, int... v>
  __device__ void for_each_vector(F& f, std::integer_sequence<int, v...>) const {
    int at = thread;
    forget(at);
    ((f(v, at), at += threads), ...);
  }
  // Calls f(j) for the single classes that are this thread's.
  template <class F>
  __device__ void for_each_single(const Span<T>& span, F&& f) const {
    for (int i = thread; i < span.singles(); i += threads) f(span.single(i));
  }
  // Calls f(j) for all classes in this thread's vectors.
  template <class F>
  __device__ void for_each_class(const Span<T>& span, F&& f) const {
#pragma unroll 1
    for (int at = thread; at < span.vectors; at += threads)
#pragma unroll 1
      for (int k = 0; k < kW; ++k) f(span.first_class(at) + k);
  }
  // Whose class j is.
  __device__ int thread_of(const Span<T>& span, int j) const {
    const int place = j - span.head, vector = place / kW;
    const bool single = place < 0 || vector >= span.vectors;
    return (!single ? vector : place < 0 ? j : j - span.vectors * kW) % threads;
  }

  // Vector `at` of a row; of one that the row has not, logits that count for nothing.
  __device__ void load(int v, int at, const Span<T>& span, const Row& row) {
    const bool there = at < span.vectors;
    const auto load_from = [&](const void* values) {
      return load_global_16(static_cast<const T*>(values) + span.first_class(at));
    };
    const auto load_beside = [&](const ScaledRow& term) {
      return there && term.is_full() ? load_from(term.values) : uint4{0, 0, 0, 0};
    };
    z[v] = all_of<T>(-kInf);
    if (there) z[v] = load_from(span.logits);
    if constexpr (kSoftRow) soft[v] = load_beside(row.scaled[kSoftA]);
    if constexpr (kPastRow) past[v] = load_beside(row.scaled[kPast]);
  }
  __device__ void load(const Span<T>& span, const Row& row) {
    for_each_vector([&](int v, int at) TOAST_INLINE { load(v, at, span, row); });
  }

  __device__ float largest() const {
    uint4 all = z[0];
#pragma unroll
    for (int v = 1; v < kVectors; ++v) all = larger<T>(all, z[v]);
    return toast::largest<T>(all);
  }

  // Of the logits of vector v: x, p = exp(z - max) and where the row has a past e = exp((z - max) / t).
  template <bool kPastTerm>
  __device__ void exponentials(int v, const Base& base, float origin, float (&x)[kW], float (&p)[kW], float (&e)[kW]) {
    forget(z[v]);
    widen<T>(z[v], x);
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      x[k] = base.x(x[k], origin);
      e[k] = exp2_approx(x[k]);
      p[k] = kPastTerm && base.power == 0 ? exp2_approx(base.t * x[k]) : e[k];
    }
    if constexpr (kPastTerm)
      for (int i = 1; i < base.power; ++i)
#pragma unroll
        for (int k = 0; k < kW; ++k) p[k] *= e[k];
  }

  // What the masses of vectors are made of: uniform + soft S + past Q, all times a factor.
  struct MassScales {
    float uniform, soft, past;
  };
  __device__ static MassScales mass_scales(const Row& row, float factor) {
    MassScales s{factor * uniform_masses(row).both(), 0, 0};
    if (kSoftRow && row.scaled[kSoftA].is_full()) s.soft = factor * row.scaled[kSoftA].scale;
    if (kPastRow && row.scaled[kPast].is_full()) s.past = factor * row.scaled[kPast].scale;
    return s;
  }
  // The masses of vector v; calls add_s(S) and add_q(Q) too.
  template <bool kPastTerm, class AddS, class AddQ>
  __device__ void masses(int v, const Row& row, const MassScales& scales, float (&m)[kW], AddS&& add_s, AddQ&& add_q) {
#pragma unroll
    for (float& mass : m) mass = scales.uniform;
    if constexpr (kSoftRow) {
      float s[kW];
      forget(soft[v]);
      widen<T>(soft[v], s);
#pragma unroll
      for (int k = 0; k < kW; ++k) {
        m[k] = fmaf(scales.soft, s[k], m[k]);
        add_s(s[k]);
      }
    }
    if constexpr (kPastRow && kPastTerm) {
      float q[kW];
      forget(past[v]);
      widen<T>(past[v], q);
      if (row.scaled[kPast].logits)
#pragma unroll
        for (float& x : q) x = row.scaled[kPast].probability(x);
#pragma unroll
      for (int k = 0; k < kW; ++k) {
        m[k] = fmaf(scales.past, q[k], m[k]);
        add_q(q[k]);
      }
    }
  }
};

}  // namespace toast
