// The two loops of blended_kl, over a chunk of a row that lies in the first-level cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/simd.h"
#include "dtype.h"

namespace toast {
namespace TOAST_ISA {

constexpr std::int64_t kChunk = 2048;  // classes; a fixed size, so that results do not depend on the threads

// Software prefetch while a chunk is worked on, since the hardware's stops at the end of a page: of the next chunk's
// logits, soft target and past, and of this chunk's gradient, whose lines a store reads first. An absent one repeats
// the logits: four prefetches without a branch are the fastest.
class Prefetch {
 public:
  enum Which { kLogits, kSoft, kPast, kGradient, kCount };

  Prefetch() = default;
  Prefetch(const void* logits, std::int64_t element, DType dtype) {
    for (int which = 0; which < kCount; ++which) set(Which(which), logits, element, dtype);
  }
  void set(Which which, const void* values, std::int64_t element, DType dtype) {
    bytes_[which] = size_of(dtype);
    from_[which] = static_cast<const char*>(values) + element * bytes_[which];
  }
  void issue(std::int64_t element) const {
#if defined(__GNUC__)
    for (int which = 0; which < kCount; ++which) __builtin_prefetch(from_[which] + element * bytes_[which], 0, 2);
#endif
  }

 private:
  const char* from_[kCount];
  std::int64_t bytes_[kCount];  // of an element
};

// A chunk of a row: logits z, and target mass t = a s (class term) + b q (past term), with s or q absent.
template <class Real>
struct Chunk {
  const Real* z;
  const Real* s = nullptr;
  const Real* q = nullptr;
  Real a = 0, b = 0;
  std::int64_t n;
  Prefetch prefetch;
};

// What the first loop leaves for the second, each with room for n rounded up to a whole Vec.
template <class Real>
struct Kept {
  Real* p = nullptr;  // exp(z - max)
  Real* e = nullptr;  // exp((z - max) / T), with a past only; p is written only where it is not a power of e
  Real* t = nullptr;  // a s + b q, where there is one
};

// What the first loop finds for a chunk, or several. Exponentials are relative to max.
struct Statistics {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;         // of exp(z - max)
  double sum_at_t = 0;    // of exp((z - max) / T)
  double dot = 0;         // of t (z - max)
  double class_mass = 0;  // of a s
  double past_mass = 0;   // of b q

  // exp(max - other.max): what turns sums relative to max into sums relative to other.max
  double relative_to(const Statistics& other, double temperature = 1) const {
    return max == other.max && std::isfinite(max) ? 1 : std::exp((max - other.max) / temperature);
  }

  // Adds the statistics of the chunks that follow.
  void merge(const Statistics& next, double temperature) {
    Statistics low = *this, high = next;
    if (!(next.max > max)) std::swap(low, high);
    // A chunk of -inf alone has sums of 0 (NaN if one is among them), and its dot, 0 or -inf, needs no shift.
    const bool empty = low.max == -std::numeric_limits<double>::infinity();
    max = high.max;
    sum = high.sum + (empty ? low.sum : low.sum * low.relative_to(high));
    sum_at_t = high.sum_at_t + (empty ? low.sum_at_t : low.sum_at_t * low.relative_to(high, temperature));
    dot = high.dot + low.dot + (empty ? 0 : (low.max - high.max) * (low.class_mass + low.past_mass));
    class_mass += next.class_mass;
    past_mass += next.past_mass;
  }
};

template <class Real>
Real chunk_max(const Real* z, std::int64_t n) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  const V lowest = V::broadcast(-std::numeric_limits<Real>::infinity());
  V m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  std::int64_t j = 0;
  for (; j + 4 * lanes <= n; j += 4 * lanes) {
    m0 = max(V::load(z + j), m0);
    m1 = max(V::load(z + j + lanes), m1);
    m2 = max(V::load(z + j + 2 * lanes), m2);
    m3 = max(V::load(z + j + 3 * lanes), m3);
  }
  for (; j + lanes <= n; j += lanes) m0 = max(V::load(z + j), m0);
  if (const int rest = int(n - j)) m1 = max(load_first(z + j, rest, -std::numeric_limits<Real>::infinity()), m1);
  return lane_max(max(max(m0, m1), max(m2, m3)));
}

// The first loop. Where T is a small integer Power is T and exp(z) = exp(z / T)^T costs no second exponential; else
// Power is 0. Nothing is kept unless Keep.
template <class Real, bool Soft, bool Past, int Power, bool Keep>
Statistics chunk_statistics(const Chunk<Real>& c, Real inverse_t, const Kept<Real>& kept) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  Statistics result;
  result.max = chunk_max(c.z, c.n);
  // A chunk of -inf alone would subtract -inf from itself. A NaN that the maximum passed over shows in the sums.
  const bool empty = result.max == -std::numeric_limits<double>::infinity();
  const V shift = V::broadcast(empty ? Real(0) : Real(result.max));
  const V inverse = V::broadcast(inverse_t), a = V::broadcast(c.a), b = V::broadcast(c.b);
  const V zero = V::broadcast(0);
  const Prefetch prefetch = c.prefetch;
  // Added up in blocks: rounding grows with how many a lane adds up one after the other.
  struct Sums {
    V p = V::broadcast(0), e = p, dot = p, s = p, q = p;
  } total;
  auto step = [&](Sums& sum, V z, V s, V q, std::int64_t j) {
    prefetch.issue(j);
    const V d = z - shift;
    V e = zero, p;
    if constexpr (Past) {
      e = exp(d * inverse);
      p = Power == 0 ? exp(d) : e;
      for (int i = 1; i < Power; ++i) p = p * e;
      sum.e = sum.e + e;
      sum.q = sum.q + q;
    } else {
      p = exp(d);
    }
    sum.p = sum.p + p;
    if constexpr (Soft) sum.s = sum.s + s;
    V t = zero;
    if constexpr (Past) t = b * q;
    if constexpr (Soft) t = Past ? fma(a, s, t) : a * s;
    if constexpr (Soft || Past) sum.dot = fma_nonzero(t, d, sum.dot);
    if constexpr (Keep && (!Past || Power == 0)) p.store(kept.p + j);
    if constexpr (Keep && Past) e.store(kept.e + j);
    if constexpr (Keep && (Soft || Past)) t.store(kept.t + j);
  };
  for (std::int64_t j = 0; j < c.n;) {
    const std::int64_t end = std::min(c.n, j + 16 * lanes);
    Sums block;
    for (; j + lanes <= end; j += lanes)
      step(block, V::load(c.z + j), Soft ? V::load(c.s + j) : zero, Past ? V::load(c.q + j) : zero, j);
    if (const int rest = int(end - j)) {
      step(block, load_first(c.z + j, rest, -std::numeric_limits<Real>::infinity()),
           Soft ? load_first(c.s + j, rest, Real(0)) : zero, Past ? load_first(c.q + j, rest, Real(0)) : zero, j);
      j = end;
    }
    total = {total.p + block.p, total.e + block.e, total.dot + block.dot, total.s + block.s, total.q + block.q};
  }
  result.sum = lane_sum(total.p);
  if constexpr (Past) result.sum_at_t = lane_sum(total.e);
  if constexpr (Soft || Past) result.dot = lane_sum(total.dot);
  if constexpr (Soft) result.class_mass = double(c.a) * lane_sum(total.s);
  if constexpr (Past) result.past_mass = double(c.b) * lane_sum(total.q);
  return result;
}

// The second loop: out[n] = coef_p p + coef_e e - coef_t t
template <class Real, bool Soft, bool Past, int Power>
void chunk_gradient(const Kept<Real>& kept, std::int64_t n, Real coef_p, Real coef_e, Real coef_t, Real* out) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  const V by_p = V::broadcast(coef_p), by_e = V::broadcast(coef_e), by_t = V::broadcast(-coef_t);
  auto step = [&](std::int64_t j) {
    V g;
    if constexpr (Past) {
      const V e = V::load(kept.e + j);
      V p = Power == 0 ? V::load(kept.p + j) : e;
      for (int i = 1; i < Power; ++i) p = p * e;
      g = fma(by_e, e, by_p * p);
    } else {
      g = by_p * V::load(kept.p + j);
    }
    if constexpr (Soft || Past) g = fma(by_t, V::load(kept.t + j), g);
    return g;
  };
  std::int64_t j = 0;
  for (; j + lanes <= n; j += lanes) step(j).store(out + j);
  if (const int rest = int(n - j)) store_first(step(j), out + j, rest);
}

}  // namespace TOAST_ISA
}  // namespace toast
