// A thread's share of a row, held in registers from the statistics to the gradient: vectors of 16 bytes of the logits
// and of what lies beside them. They begin at multiples of 16 bytes; the few single logits before and after them are
// read one by one, as all logits are of a row of which nothing is held.
#pragma once

#include <utility>

#include "cuda/blended_kl.h"
#include "cuda/row.cuh"

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
  // Calls f(whether the row has a past), which is known as f is compiled.
  template <class F>
  __device__ static void with_past(const Row& row, F&& f) {
    if constexpr (kMasses)
      if (has_past(row)) return f(std::true_type());
    f(std::false_type());
  }

  __device__ Span<T> span(std::int64_t row) const {
    const T* logits = static_cast<const T*>(p.logits) + row * p.stride;
    const int classes = int(p.classes);
    if (kVectors == 0 || row >= p.rows) return {logits, classes, 0, 0};
    const int head = int((0 - reinterpret_cast<std::uintptr_t>(logits)) % 16 / sizeof(T));
    return {logits, classes, min(head, classes), max(classes - head, 0) / kW};
  }

  // Calls f(v, at) for this thread's vectors: its number v is the row's number `at`, if it has as many. By a fold and
  // TOAST_INLINED, as `#pragma unroll` gives up on long loops, and registers cannot be indexed.
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
  __device__ __forceinline__ void load(int v, int at, const Span<T>& span, const Row& row) {
    const auto load_from = [&](const void* values, bool there, uint4 otherwise) {
      there = there && at < span.vectors;
      return there ? load_global_16(static_cast<const T*>(values) + span.first_class(at)) : otherwise;
    };
    z[v] = load_from(span.logits, true, minus_infinities<T>());
    if constexpr (kSoftRow) soft[v] = load_from(row.scaled[kSoftA].values, row.scaled[kSoftA].is_full(), {});
    if constexpr (kPastRow) past[v] = load_from(row.scaled[kPast].values, row.scaled[kPast].is_full(), {});
  }
  __device__ void load(const Span<T>& span, const Row& row) {
    for_each_vector([&](int v, int at) TOAST_INLINED { load(v, at, span, row); });
  }

  // Makes the logits, whatever they are, such that count for nothing.
  __device__ void clear() {
    for_each_vector([&](int v, int) TOAST_INLINED { z[v] = minus_infinities<T>(); });
  }

  __device__ float largest() const {
    uint4 all = z[0];
#pragma unroll
    for (int v = 1; v < kVectors; ++v) all = larger<T>(all, z[v]);
    return toast::largest<T>(all);
  }
};

}  // namespace toast
