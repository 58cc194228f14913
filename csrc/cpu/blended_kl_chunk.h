// The two loops of blended_kl over a chunk of a row that lies in the first-level cache.
#pragma once

#include "cpu/simd.h"

namespace toast {
namespace TOAST_ISA {

constexpr std::int64_t kChunk = 2048;  // classes; a fixed size, so that results do not depend on the threads

// A chunk of a row: logits z, and target mass a * s (class term) + b * q (past term), with s or q absent.
template <class Real>
struct Chunk {
  const Real* z;
  const Real* s = nullptr;
  const Real* q = nullptr;
  Real a = 0, b = 0;
  std::int64_t n;
};

// What one sweep learns of a chunk, or several of a row. Exponentials are relative to max.
struct Statistics {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;         // of exp(z - max)
  double sum_at_t = 0;    // of exp((z - max) / T)
  double dot = 0;         // of (a s + b q) (z - max)
  double class_mass = 0;  // of a s
  double past_mass = 0;   // of b q

  // The statistics of two parts of a row together.
  void merge(const Statistics& other, double temperature) {
    if (other.max > max) {
      Statistics larger = other;
      larger.merge(*this, temperature);
      *this = larger;
      return;
    }
    // Where other holds nothing but -inf its sums are 0, and its dot is 0 or -inf.
    const double shift = other.max == max ? 0 : other.max - max;
    sum += other.sum * std::exp(shift);
    sum_at_t += other.sum_at_t * std::exp(shift / temperature);
    const double mass = other.class_mass + other.past_mass;
    dot += other.dot + (std::isfinite(shift) ? shift * mass : 0);
    class_mass += other.class_mass;
    past_mass += other.past_mass;
  }
};

// e = exp(d / T) and p = exp(d) for one Vec of d = z - max <= 0. Where T is a small integer, Power is T and p = e^T
// costs no second exponential; else Power is 0. Without a past only p is wanted.
template <bool Past, int Power, class V>
void exponentials(V d, V inverse_t, V& e, V& p) {
  if constexpr (!Past) {
    p = exp(d);
    return;
  }
  e = exp(d * inverse_t);
  if constexpr (Power == 0) {
    p = exp(d);
  } else {
    p = e;
    for (int i = 1; i < Power; ++i) p = p * e;
  }
}

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
  Real best = lane_max(max(max(m0, m1), max(m2, m3)));
  for (; j < n; ++j) best = z[j] > best ? z[j] : best;
  return best;
}

// Statistics of a chunk. `saved`, if given, receives what chunk_gradient then need not compute again: exp((z - max) /
// T) with a past, else exp(z - max); room for n rounded up to a whole Vec.
template <class Real, bool Soft, bool Past, int Power>
Statistics chunk_statistics(const Chunk<Real>& c, Real inverse_t, Real* saved) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  const Real top = chunk_max(c.z, c.n);
  // A chunk of -inf alone would subtract -inf from itself; a NaN that the maximum passed over shows in the sums.
  const V shift = V::broadcast(top == -std::numeric_limits<Real>::infinity() ? Real(0) : top);
  const V inv = V::broadcast(inverse_t), a = V::broadcast(c.a), b = V::broadcast(c.b);
  const V zero = V::broadcast(0);
  V sum_p = zero, sum_e = zero, dot = zero, sum_s = zero, sum_q = zero;
  auto step = [&](V z, V s, V q, std::int64_t j) {
    const V d = z - shift;
    V e = zero, p = zero;
    exponentials<Past, Power>(d, inv, e, p);
    sum_p = sum_p + p;
    if constexpr (Past) sum_e = sum_e + e;
    if constexpr (Soft) sum_s = sum_s + s;
    if constexpr (Past) sum_q = sum_q + q;
    if constexpr (Soft && Past)
      dot = fma_nonzero(fma(a, s, b * q), d, dot);
    else if constexpr (Soft)
      dot = fma_nonzero(s, d, dot);
    else if constexpr (Past)
      dot = fma_nonzero(q, d, dot);
    if (saved != nullptr) (Past ? e : p).store(saved + j);
  };
  std::int64_t j = 0;
  for (; j + lanes <= c.n; j += lanes)
    step(V::load(c.z + j), Soft ? V::load(c.s + j) : zero, Past ? V::load(c.q + j) : zero, j);
  if (const int rest = int(c.n - j))
    step(load_first(c.z + j, rest, -std::numeric_limits<Real>::infinity()),
         Soft ? load_first(c.s + j, rest, Real(0)) : zero, Past ? load_first(c.q + j, rest, Real(0)) : zero, j);
  Statistics result;
  result.max = top;
  result.sum = lane_sum(sum_p);
  result.sum_at_t = lane_sum(sum_e);
  const double scale = Soft && Past ? 1 : Soft ? double(c.a) : double(c.b);
  const double total = lane_sum(dot);
  result.dot = scale == 0 || total == 0 ? 0 : scale * total;
  result.class_mass = double(c.a) * lane_sum(sum_s);
  result.past_mass = double(c.b) * lane_sum(sum_q);
  return result;
}

// out = of_p exp(z - max) + of_e exp((z - max) / T) - (a s + b q)
template <class Real, bool Soft, bool Past, int Power>
void chunk_gradient(const Chunk<Real>& c, Real max, Real inverse_t, Real of_p, Real of_e, const Real* saved,
                    Real* out) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  const V shift = V::broadcast(max), inv = V::broadcast(inverse_t);
  const V a = V::broadcast(-c.a), b = V::broadcast(-c.b), to_p = V::broadcast(of_p), to_e = V::broadcast(of_e);
  const V zero = V::broadcast(0);
  auto step = [&](V z, V s, V q, V known) {
    V e = known, p = known;
    if (saved == nullptr || (Past && Power == 0)) {
      exponentials<Past, Power>(z - shift, inv, e, p);
    } else if constexpr (Past) {
      for (int i = 1; i < Power; ++i) p = p * e;
    }
    V g = to_p * p;
    if constexpr (Past) g = fma(to_e, e, g);
    if constexpr (Soft) g = fma(a, s, g);
    if constexpr (Past) g = fma(b, q, g);
    return g;
  };
  const bool stored = saved != nullptr;
  std::int64_t j = 0;
  for (; j + lanes <= c.n; j += lanes)
    step(V::load(c.z + j), Soft ? V::load(c.s + j) : zero, Past ? V::load(c.q + j) : zero,
         stored ? V::load(saved + j) : zero)
        .store(out + j);
  if (const int rest = int(c.n - j))
    store_first(
        step(load_first(c.z + j, rest, Real(0)), Soft ? load_first(c.s + j, rest, Real(0)) : zero,
             Past ? load_first(c.q + j, rest, Real(0)) : zero, stored ? load_first(saved + j, rest, Real(0)) : zero),
        out + j, rest);
}

}  // namespace TOAST_ISA
}  // namespace toast
