// A row's labels and past, looked up by one warp for its block; also what "mean" divides by.
#pragma once

#include "cuda/blended_kl.h"
#include "cuda/row.cuh"

namespace toast {

// What all else of a row waits for.
constexpr int kNone = -1, kOutOfRange = -2;
struct Indices {
  int label[2], past;  // of a past row that is filled
  bool used, bad;
};

__device__ inline Indices indices_of(const BlendedKL& p, std::int64_t i) {
  const auto in_range = [](std::int64_t j, std::int64_t end) { return j >= 0 && j < end ? int(j) : kOutOfRange; };
  const auto label = [&](const std::int64_t* target) {
    const std::int64_t y = target == nullptr ? p.ignore_index : __ldg(target + i);
    return y == p.ignore_index ? kNone : in_range(y, p.classes);
  };
  const std::int64_t r = p.past.values == nullptr ? kNone : __ldg(p.past_index + i);
  Indices at{{label(p.target), label(p.target_b)}, kNone, false, false};
  at.used = p.target == nullptr || at.label[0] != kNone || at.label[1] != kNone;
  if (at.used && r != kNone) at.past = in_range(r, p.past.rows);
  at.bad = at.label[0] == kOutOfRange || at.label[1] == kOutOfRange || at.past == kOutOfRange;
  if (at.past >= 0 && p.past.filled != nullptr && !p.past.filled[at.past]) at.past = kNone;
  return at;
}

// A label's share of its row's class term.
__device__ inline float share_of(const BlendedKL& p, std::int64_t i, int which) {
  if (p.lam == nullptr) return 1;
  const float lam = static_cast<const float*>(p.lam)[i];
  return which == 0 ? lam : 1 - lam;
}

// share times the class's weight; 0 * inf = 0.
__device__ inline float weighted(const BlendedKL& p, float share, int y) {
  return p.weight == nullptr || share == 0 ? share : share * static_cast<const float*>(p.weight)[y];
}

// --- What "mean" divides by
using Normalisers = Terms<double>;  // the weight of the labels; rows with a past

__device__ inline Normalisers normalisers_of(const BlendedKL& p, std::int64_t i) {
  const Indices at = indices_of(p, i);
  if (at.bad) return {0, 0};
  double weight = p.target == nullptr ? 1 : 0;
#pragma unroll
  for (int which = 0; which < 2; ++which)
    if (const int y = at.label[which]; y >= 0) weight += weighted(p, share_of(p, i, which), y);
  return {weight, at.past >= 0 ? 1.0 : 0.0};
}

// --- The row. All of it by a whole warp, for the sums over lists; its first lane writes it down.

// `scale` times the table's row, to `scaled`.
__device__ inline void scale_row(const SoftRows& table, std::int64_t row, float scale, std::int64_t classes,
                                 ScaledRow& scaled, const void* weight = nullptr) {
  const void* values = static_cast<const char*>(table.values) + row * table.stride * size_of(table.dtype);
  float tail = 0;
  if (table.indices != nullptr && scale != 0) {
    float listed = 0;
    for (int k = lane(); k < table.width; k += 32) {
      prefetch(table.indices + row * table.width + k);
      listed += element(table.dtype, values, k);
    }
    tail = scale * (fmaxf(1 - warp_sum(listed), 0) / float(max(classes - table.width, std::int64_t(1))));
  }
  if (lane() != 0) return;
  scaled.scale = scale;
  scaled.dtype = table.dtype;
  scaled.values = values;
  scaled.indices = table.indices == nullptr ? nullptr : table.indices + row * table.width;
  scaled.width = int(table.width);
  scaled.tail = tail;
  scaled.weight = static_cast<const float*>(weight);
  scaled.logits = table.logsumexp != nullptr;
  if (scaled.logits) {
    // Rounded to one float, the shift would show at logits far from 0: what it loses goes to the scale.
    scaled.by = float(kLog2e / table.temperature);
    const double shift = table.logsumexp[row] * table.temperature * double(scaled.by);
    scaled.shift = float(shift);
    scaled.scale *= exp2_approx(float(double(scaled.shift) - shift));
  }
}

template <RowKind kind>
__device__ void make_row(const BlendedKL& p, std::int64_t i, const Terms<float>& scales, Row& row) {
  constexpr bool tables = kind != RowKind::labels;
  const bool writes = lane() == 0;
  const Indices at = indices_of(p, i);
  const float eps = tables ? float(p.label_smoothing) : 0, uniform = tables ? eps / float(p.classes) : 0;
  const float alpha = p.alpha_on_device == nullptr ? float(p.alpha) : *p.alpha_on_device;
  float smooth = 0;
  if (tables && writes)
    for (ScaledRow& scaled : row.scaled) scaled.scale = 0;
  if (kind == RowKind::any && p.target == nullptr) {
    scale_row(p.probabilities, i, scales.of_class * (1 - eps), p.classes, row.scaled[kSoftA], p.weight);
    smooth = scales.of_class * uniform;
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int y = at.label[which];
    float hard = 0, share = 0;
    if (y >= 0) {
      share = share_of(p, i, which);
      const bool soft = tables && p.soft.values != nullptr && (p.soft.filled == nullptr || p.soft.filled[y]);
      const float a = soft ? alpha : 0, mass = scales.of_class * weighted(p, share, y);
      hard = (1 - a) * (1 - eps) * mass;
      smooth += scales.of_class * share * (1 - a) * uniform;
      if (soft) scale_row(p.soft, y, a * mass, p.classes, row.scaled[which]);
    }
    if (writes) {
      row.label[which] = max(y, kNone);
      row.hard[which] = hard;
      row.share[which] = share;
    }
  }
  float past_entropy = 0;
  if (tables && !at.bad && at.past >= 0) {
    const float weight = p.past_weight_on_device == nullptr ? float(p.past_weight) : *p.past_weight_on_device;
    const float scale = scales.of_past * (weight * float(p.temperature));
    scale_row(p.past, at.past, scale, p.classes, row.scaled[kPast]);
    if (scale != 0) past_entropy = scale * static_cast<const float*>(p.past.entropy)[at.past];
  }
  if (writes) {
    row.used = at.used;
    row.bad = at.bad;
    row.masked = false;
    row.smooth = smooth;
    row.weight = smooth == 0 ? nullptr : static_cast<const float*>(p.weight);
    row.past_entropy = past_entropy;
    row.upstream = at.used ? 1 : 0;
    if (at.used && p.upstream != nullptr) row.upstream = static_cast<const float*>(p.upstream)[i * p.upstream_stride];
  }
}

}  // namespace toast
