// The two loops of blended_kl, over a chunk of a row that lies in the first-level cache. Both and the maximum take 6 ns
// for 16 logits, 8 with a table and 9 to 10 with two (AVX-512, a Xeon, rows of 1000 in the second-level cache).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "cpu/chunk.h"
#include "cpu/convert.h"

namespace toast {
namespace TOAST_ISA {

// A chunk of a row: logits z, and the mass t_j that class j has: `uniform`, and of each dense table (at most two) a
// probability times its scale. What few classes have besides (labels, top-k lists) is the row's.
template <class Real>
struct Chunk {
  std::int64_t n;
  Input<Real> z;
  Input<Real> dense[2] = {};
  Real scale[2] = {};
  Real uniform;
  bool spread;  // uniform is not 0
};

// What the first loop leaves for the second, each with room for n rounded up to a whole Vec.
template <class Real>
struct Kept {
  Real* p = nullptr;  // exp(z - max)
  Real* e = nullptr;  // exp((z - max) / T), with a past only; p is written only where it is not a power of e
  Real* t = nullptr;  // the mass, where there are two tables; a single one is read again
};

// What the first loop finds for a chunk, or several. Exponentials are relative to max.
struct Statistics {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;        // of exp(z - max)
  double sum_at_t = 0;   // of exp((z - max) / T)
  double dot = 0;        // of t (z - max); NaN where 0 meets -inf
  double mass = 0;       // of t
  double dense[2] = {};  // of each table's part of t

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
    dot = high.dot + low.dot + (empty ? 0 : (low.max - high.max) * low.mass);
    mass += next.mass;
    for (int k = 0; k < 2; ++k) dense[k] += next.dense[k];
  }
};

// e^Power
template <int Power, class V>
V to_the_power(V e) {
  V p = e;
  for (int i = 1; i < Power; ++i) p = p * e;
  return p;
}

constexpr int kNoPast = -1;  // as a Power; 0: any T; else T, and exp(z) = exp(z / T)^T costs no second exponential

// The first loop, of a chunk whose largest logit is max.
template <class Real, int Tables, int Power>
void chunk_statistics(const Chunk<Real>& chunk, Real max, Real inverse_temperature, const Kept<Real>& kept_at,
                      Statistics& result) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  const Chunk<Real> c = chunk;  // and a copy of its own of this, which no store can change
  const Kept<Real> kept = kept_at;
  // A chunk of -inf alone would subtract -inf from itself. A NaN that the maximum passed over shows in the sums.
  const V shift = V::broadcast(max == -std::numeric_limits<Real>::infinity() ? Real(0) : max);
  const V uniform = V::broadcast(c.uniform), inverse_t = V::broadcast(inverse_temperature);
  const V scale[2] = {V::broadcast(c.scale[0]), V::broadcast(c.scale[1])};
  // Added up in blocks: rounding grows with how many a lane adds up one after the other.
  struct Sums {
    V p = V::broadcast(0), e = p, dot = p, dense[2] = {p, p};
  } total;
  const auto step = [&](Sums& sum, std::int64_t j, int n) TOAST_INLINED {
    V d = c.z.load_and_prefetch(j, n, -std::numeric_limits<Real>::infinity()) - shift, p;
    if constexpr (Power == kNoPast) {
      p = exp(d);
    } else {
      const V e = Power == 0 ? exp(d * inverse_t) : exp_over(d, Real(Power));
      sum.e = sum.e + e;
      e.store(kept.e + j);
      p = Power == 0 ? exp(d) : to_the_power<Power>(e);
    }
    sum.p = sum.p + p;
    if constexpr (Power <= 0) p.store(kept.p + j);
    if (n < lanes) d = keep_first(d, n, Real(0));
    if constexpr (Tables == 0) {
      if (c.spread) sum.dot = sum.dot + d;
      return;
    }
    V t = uniform;
    for (int k = 0; k < Tables; ++k) {
      const V probability = c.dense[k].load_and_prefetch(j, n);
      sum.dense[k] = sum.dense[k] + probability;
      t = fma(scale[k], probability, t);
    }
    if constexpr (Tables == 2) t.store(kept.t + j);
    sum.dot = fma(t, d, sum.dot);
  };
  for (std::int64_t j = 0; j < c.n;) {
    const std::int64_t end = std::min(c.n, j + 16 * lanes);
    Sums block;
    each_vec<lanes>(j, end, [&](std::int64_t i, int n) TOAST_INLINED { step(block, i, n); });
    j = end;
    total = {total.p + block.p,
             total.e + block.e,
             total.dot + block.dot,
             {total.dense[0] + block.dense[0], total.dense[1] + block.dense[1]}};
  }
  c.z.prefetch(c.n - 1);
  for (int k = 0; k < Tables; ++k) c.dense[k].prefetch(c.n - 1);

  result.max = max;
  result.sum = lane_sum(total.p);
  result.sum_at_t = Power == kNoPast ? 0 : lane_sum(total.e);
  result.mass = double(c.uniform) * double(c.n);
  for (int k = 0; k < Tables; ++k) result.mass += result.dense[k] = double(c.scale[k]) * lane_sum(total.dense[k]);
  result.dot = Tables > 0 ? lane_sum(total.dot) : c.spread ? double(c.uniform) * lane_sum(total.dot) : 0;
}

// The second loop: writes coef_p p + coef_e e - coef_t t.
template <class Real, int Tables, int Power>
void chunk_gradient(const Chunk<Real>& chunk, const Kept<Real>& kept_at, Real coef_p, Real coef_e, Real coef_t,
                    const Output<Real>& out) {
  using V = Vec<Real>;
  const Input<Real> dense = chunk.dense[0];  // copies, which no store can change
  const Kept<Real> kept = kept_at;
  const Output<Real> to = out;
  const V p_factor = V::broadcast(coef_p), e_factor = V::broadcast(coef_e), both = p_factor + e_factor;
  const V t_factor = V::broadcast(-coef_t * (Tables == 2 ? Real(1) : chunk.scale[0]));
  const V uniform = V::broadcast(-coef_t * chunk.uniform);
  each_vec<V::lanes>(0, chunk.n, [&](std::int64_t j, int n) TOAST_INLINED {
    V g = uniform;  // less the mass
    if constexpr (Tables == 1) g = fma(t_factor, dense.load(j, n), g);
    if constexpr (Tables == 2) g = t_factor * V::load(kept.t + j);
    if constexpr (Power <= 0) g = fma(p_factor, V::load(kept.p + j), g);
    if constexpr (Power == 0) g = fma(e_factor, V::load(kept.e + j), g);
    if constexpr (Power > 0) {
      const V e = V::load(kept.e + j);
      V factor = both;
      if constexpr (Power > 1) factor = fma(p_factor, to_the_power<Power - 1>(e), e_factor);
      g = fma(factor, e, g);
    }
    to.store_and_prefetch(g, j, n);
  });
  to.prefetch(chunk.n - 1);
}

// The same of one class, before it is rounded to what is stored.
template <class Real>
double gradient_of(std::int64_t j, int tables, int power, const Chunk<Real>& c, const Kept<Real>& kept, double coef_p,
                   double coef_e, double coef_t) {
  double t = c.uniform;
  if (tables == 1) t += double(c.scale[0]) * c.dense[0].load_one(j);
  if (tables == 2) t = kept.t[j];
  const double e = power == kNoPast ? 0 : kept.e[j];
  double p = power > 0 ? e : kept.p[j];
  for (int i = 1; i < power; ++i) p *= e;
  return coef_p * p + coef_e * e - coef_t * t;
}

}  // namespace TOAST_ISA
}  // namespace toast
