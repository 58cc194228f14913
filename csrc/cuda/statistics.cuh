// What a sweep over a row finds, in float: for the classes of a thread, a warp, a block, and for the whole row.
#pragma once

#include <cmath>

#include "cuda/ptx.cuh"
#include "cuda/row.cuh"

namespace toast {

constexpr float kInf = INFINITY;

struct Statistics {
  float max;         // of the logits that are no NaN; exponentials and products are relative to it
  float sum;         // of exp(z - max)
  float sum_at_t;    // of exp((z - max) / T)
  float dot;         // of mass (z - max), over the target
  float class_mass;  // of the target
  float past_mass;
  float score_mass;  // of the labels alone, or of class probabilities as they were given
  float score_dot;
  unsigned first;  // where the largest logit is first, as place_key says
};

// The least key is the largest logit's: of the first NaN if there is one, as in torch.argmax.
constexpr unsigned kNumber = 0x80000000u, kNowhere = 0xffffffffu;

__device__ inline Statistics no_statistics() { return {-kInf, 0, 0, 0, 0, 0, 0, 0, kNowhere}; }

// The same relative to a larger maximum. Statistics of -inf alone were relative to 0: their sums are 0, or NaN if one
// is among them, and their dots 0 or -inf.
__device__ inline Statistics relative_to(float max, Statistics s, float log2e_by_t) {
  if (s.max != max) {
    if (s.max != -kInf) {
      const float d = s.max - max;
      s.sum *= exp2_approx(d * kLog2e);
      s.sum_at_t *= exp2_approx(d * log2e_by_t);
      s.dot += d * (s.class_mass + s.past_mass);
      s.score_dot += d * s.score_mass;
    }
    if (s.first >= kNumber) s.first = kNowhere;
    s.max = max;
  }
  return s;
}

// Of both, which are relative to the same maximum.
__device__ inline Statistics operator+(Statistics a, const Statistics& b) {
  a.sum += b.sum;
  a.sum_at_t += b.sum_at_t;
  a.dot += b.dot;
  a.class_mass += b.class_mass;
  a.past_mass += b.past_mass;
  a.score_mass += b.score_mass;
  a.score_dot += b.score_dot;
  a.first = min(a.first, b.first);
  return a;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

// Of all lanes' statistics, which are relative to the same maximum; in the same order for every lane.
__device__ inline Statistics warp_sum(Statistics s) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const auto other = [&](auto x) { return __shfl_xor_sync(kAllLanes, x, lanes); };
    s = s + Statistics{s.max,
                       other(s.sum),
                       other(s.sum_at_t),
                       other(s.dot),
                       other(s.class_mass),
                       other(s.past_mass),
                       other(s.score_mass),
                       other(s.score_dot),
                       other(s.first)};
  }
  return s;
}

// Of `count` <= 32 statistics with maxima of their own, by a whole warp: lane k takes partial[k].
__device__ inline Statistics merged(const Statistics* partial, int count, float log2e_by_t) {
  const int lane = int(threadIdx.x) % 32;
  const Statistics mine = lane < count ? partial[lane] : no_statistics();
  return warp_sum(relative_to(warp_max(mine.max), mine, log2e_by_t));
}

}  // namespace toast
