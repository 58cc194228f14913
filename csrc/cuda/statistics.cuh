// What a sweep over a row finds, in float: for the classes of a thread, a warp, a block, and for the whole row.
#pragma once

#include "cuda/blended_kl.h"
#include "cuda/row.cuh"

namespace toast {

// The base of a row's exponentials. With x = (z - max) scale they are 2^x = exp((z - max) / t), and to the power of t
// exp(z - max). t is T in a row with a past, else 1.
struct Base {
  float scale, t;
  int power;  // t where it is a small integer, else 0

  __device__ float x(float z, float origin) const { return (z - origin) * scale; }
};
// What z is relative to: 0 where all logits are -inf.
__device__ inline float origin_of(float max) { return max == -kInf ? 0 : max; }

// Sums over classes, in the terms above.
enum {
  kSum,        // of exp(z - max)
  kSumAtT,     // of exp((z - max) / t)
  kDot,        // of mass x, over the target but for what falls on labels alone; -inf where a logit is -inf under mass
  kClassMass,  // of that target
  kPastMass,
  kScoreMass,  // of class probabilities as they were given
  kScoreDot,
};
constexpr int sums_of(RowKind kind) { return kind == RowKind::labels ? 1 : kind == RowKind::any ? 7 : 5; }

template <int n>
struct Statistics {
  float max;       // of the logits that are no NaN
  unsigned first;  // where it is first: the class, or'ed with kNumber where it is no NaN: a NaN is larger
  float sum[n];

  static constexpr unsigned kNumber = 0x80000000u, kNowhere = 0xffffffffu;

  __device__ static Statistics of_nothing(float max = -kInf) { return {max, kNowhere, {}}; }

  __device__ void saw(float z, std::int64_t j) {
    const bool number = z == z;
    if (z == max || !number) first = min(first, unsigned(j) | (number ? kNumber : 0));
  }

  // The same relative to a larger maximum. What knows none is relative to 0, and its exponentials are 0 or NaN.
  __device__ void make_relative_to(float larger, const Base& base) {
    if (max == larger) return;
    const float d = base.x(origin_of(max), larger);
    if (max != -kInf) {
      sum[kSum] *= exp2_approx(d * base.t);
      if constexpr (n > kSumAtT) sum[kSumAtT] *= exp2_approx(d);
    }
    if constexpr (n > kPastMass) sum[kDot] += d * (sum[kClassMass] + sum[kPastMass]);
    if constexpr (n > kScoreDot) sum[kScoreDot] += d * sum[kScoreMass];
    if (first >= kNumber) first = kNowhere;
    max = larger;
  }
};

// Of all lanes' statistics, which are relative to the same maximum; in the same order for every lane.
template <int n>
__device__ void warp_sum(Statistics<n>& s, bool with_first) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (float& x : s.sum) x += __shfl_xor_sync(kAllLanes, x, lanes);
    if (with_first) s.first = min(s.first, __shfl_xor_sync(kAllLanes, s.first, lanes));
  }
}

// Of `count` <= 32 statistics with maxima of their own, by a whole warp: lane k takes partial[k].
template <int n>
__device__ Statistics<n> merged(const Statistics<n>* partial, int count, const Base& base, bool with_first) {
  auto s = lane() < count ? partial[lane()] : Statistics<n>::of_nothing();
  s.make_relative_to(warp_max(s.max), base);
  warp_sum(s, with_first);
  return s;
}

}  // namespace toast
