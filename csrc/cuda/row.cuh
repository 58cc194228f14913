// A row's labels and past, and the mass that they give: hard mass at the labels, uniform mass, scaled rows of tables.
// Computed by one warp for its block; also what "mean" divides by.
#pragma once

#include "cuda/blended_kl.h"
#include "cuda/convert.cuh"
#include "cuda/ptx.cuh"

namespace toast {

constexpr unsigned kAllLanes = 0xffffffff;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInf = INFINITY;

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

__device__ inline float element(DType dtype, const void* values, std::int64_t i) {
  float x = 0;
  with_element(dtype, [&](auto zero) { x = widen(__ldg(static_cast<const decltype(zero)*>(values) + i)); });
  return x;
}

// `scale` times a row of a table, a term of the target mass; absent if scale is 0.
struct ScaledRow {
  float scale;
  DType dtype;
  const void* values;
  const std::int32_t* indices;  // of a top-k row, else null
  int width;
  float tail;           // of a top-k row: mass of each class that is not listed
  const float* weight;  // [C] class weights that multiply the row, or null
  bool logits;          // row = 2^(value by - shift)
  float by, shift;

  __device__ bool is_list() const { return scale != 0 && indices != nullptr; }
  __device__ bool is_full() const { return scale != 0 && indices == nullptr; }

  // Of a full row.
  __device__ float probability(float value) const { return logits ? exp2_approx(fmaf(value, by, -shift)) : value; }
  // Of a list: the mass of its class number i, and where it has class j, or -1.
  __device__ float listed(int i) const { return scale * element(dtype, values, i); }
  // Of a list: takes the tail from `masked` of the classes that have it, for the others. Returns what that adds to the
  // entropy of the scaled row.
  __device__ float take_tail_from(double masked, std::int64_t classes) {
    const double unlisted = double(classes - width), sharing = unlisted - masked, rest = tail * unlisted;
    if (masked == 0 || rest == 0) return 0;
    const double more = rest * log(sharing > 0 ? sharing / unlisted : double(tail) / scale);
    tail = sharing > 0 ? float(rest / sharing) : 0;
    return float(more);
  }
  __device__ int place_of(int j) const {
    int first = 0, last = width;
    while (first < last) {
      const int middle = (first + last) / 2;
      if (__ldg(indices + middle) < j)
        first = middle + 1;
      else
        last = middle;
    }
    return first < width && __ldg(indices + first) == j ? first : -1;
  }
};

enum { kSoftA, kSoftB, kPast, kScaledRows };

// Everything that the block's threads need to know of a row. The masses are scaled by the reduction.
struct Row {
  bool used, bad;  // bad: a label or past_index is out of range
  bool masked;     // lists have tails, and logits are -inf: these have no share of the tails
  int label[2];    // -1: none
  float hard[2];   // mass of the label's own class
  float share[2];  // the label's share of the row's class term
  float smooth;    // mass of every class, times its class weight
  ScaledRow scaled[kScaledRows];
  float past_entropy;  // of the past row, times its scale
  float upstream;      // what the gradient is multiplied by
};

// What all else of a row waits for.
constexpr int kNone = -1, kOutOfRange = -2;
struct Indices {
  int label[2], past;
};

__device__ inline Indices indices_of(const BlendedKL& p, std::int64_t i) {
  const auto in_range = [](std::int64_t j, std::int64_t end) { return j >= 0 && j < end ? int(j) : kOutOfRange; };
  const auto label = [&](const std::int64_t* target) {
    const std::int64_t y = target == nullptr ? p.ignore_index : __ldg(target + i);
    return y == p.ignore_index ? kNone : in_range(y, p.classes);
  };
  const std::int64_t r = p.past.values == nullptr ? kNone : __ldg(p.past_index + i);
  return {{label(p.target), label(p.target_b)}, r == kNone ? kNone : in_range(r, p.past.rows)};
}

// For that.
__device__ inline void prefetch_indices(const BlendedKL& p, std::int64_t i) {
  if (p.target != nullptr) prefetch(p.target + i);
  if (p.target_b != nullptr) prefetch(p.target_b + i);
  if (p.past_index != nullptr) prefetch(p.past_index + i);
}

__device__ inline bool is_used(const BlendedKL& p, const Indices& at) {
  return p.target == nullptr || at.label[0] != kNone || at.label[1] != kNone;
}
__device__ inline bool is_bad(const BlendedKL& p, const Indices& at) {
  return at.label[0] == kOutOfRange || at.label[1] == kOutOfRange || (is_used(p, at) && at.past == kOutOfRange);
}
__device__ inline bool has_past(const BlendedKL& p, const Indices& at) {
  return is_used(p, at) && at.past >= 0 && (p.past.filled == nullptr || p.past.filled[at.past]);
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
struct Normalisers {
  double weight;     // of the labels
  double past_rows;  // rows with a past
};

__device__ inline Normalisers normalisers_of(const BlendedKL& p, std::int64_t i) {
  const Indices at = indices_of(p, i);
  if (is_bad(p, at)) return {0, 0};
  double weight = p.target == nullptr ? 1 : 0;
#pragma unroll
  for (int which = 0; which < 2; ++which)
    if (const int y = at.label[which]; y >= 0) weight += weighted(p, share_of(p, i, which), y);
  return {weight, has_past(p, at) ? 1.0 : 0.0};
}

// --- The row. All of it by a whole warp, for the sums over lists; its first lane writes it down.

// `scale` times the table's row, to `scaled`.
__device__ inline void scale_row(const SoftRows& table, std::int64_t row, float scale, std::int64_t classes,
                                 ScaledRow& scaled) {
  const void* values = static_cast<const char*>(table.values) + row * table.stride * size_of(table.dtype);
  float tail = 0;
  if (table.indices != nullptr && scale != 0) {
    float listed = 0;
    for (int k = int(threadIdx.x) % 32; k < table.width; k += 32) {
      prefetch(table.indices + row * table.width + k);
      listed += element(table.dtype, values, k);
    }
    tail = scale * (fmaxf(1 - warp_sum(listed), 0) / float(max(classes - table.width, std::int64_t(1))));
  }
  if (threadIdx.x % 32 != 0) return;
  scaled.scale = scale;
  scaled.dtype = table.dtype;
  scaled.values = values;
  scaled.indices = table.indices == nullptr ? nullptr : table.indices + row * table.width;
  scaled.width = int(table.width);
  scaled.tail = tail;
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
__device__ void make_row(const BlendedKL& p, std::int64_t i, float class_scale, float past_term_scale, Row& row) {
  constexpr bool tables = kind != RowKind::labels;
  const bool writes = threadIdx.x % 32 == 0;
  const Indices at = indices_of(p, i);
  const float eps = tables ? float(p.label_smoothing) : 0, uniform = tables ? eps / float(p.classes) : 0;
  const float alpha = float(p.alpha_on_device == nullptr ? p.alpha : *p.alpha_on_device);
  const bool bad = is_bad(p, at);
  float smooth = 0;
  if (tables && writes)
    for (ScaledRow& scaled : row.scaled) {
      scaled.scale = 0;
      scaled.weight = nullptr;
    }
  if (kind == RowKind::any && p.target == nullptr) {
    scale_row(p.probabilities, i, class_scale * (1 - eps), p.classes, row.scaled[kSoftA]);
    if (writes) row.scaled[kSoftA].weight = static_cast<const float*>(p.weight);
    smooth = class_scale * uniform;
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int y = at.label[which];
    float hard = 0, share = 0;
    if (y >= 0) {
      share = share_of(p, i, which);
      const bool soft = tables && p.soft.values != nullptr && (p.soft.filled == nullptr || p.soft.filled[y]);
      const float a = soft ? alpha : 0, mass = class_scale * weighted(p, share, y);
      hard = (1 - a) * (1 - eps) * mass;
      smooth += class_scale * share * (1 - a) * uniform;
      if (soft) scale_row(p.soft, y, a * mass, p.classes, row.scaled[which]);
    }
    if (writes) {
      row.label[which] = max(y, kNone);
      row.hard[which] = hard;
      row.share[which] = share;
    }
  }
  float past_entropy = 0;
  if (tables && !bad && has_past(p, at)) {
    const double weight = p.past_weight_on_device == nullptr ? p.past_weight : *p.past_weight_on_device;
    const float scale = past_term_scale * (float(weight) * float(p.temperature));
    scale_row(p.past, at.past, scale, p.classes, row.scaled[kPast]);
    if (scale != 0) past_entropy = scale * static_cast<const float*>(p.past.entropy)[at.past];
  }
  if (writes) {
    row.used = is_used(p, at);
    row.bad = bad;
    row.masked = false;
    row.smooth = smooth;
    row.past_entropy = past_entropy;
    row.upstream = p.upstream == nullptr ? 1 : static_cast<const float*>(p.upstream)[i * p.upstream_stride];
  }
}

}  // namespace toast
