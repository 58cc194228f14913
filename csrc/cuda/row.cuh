// A row's labels and past, and the mass that they give: hard mass at the labels, uniform mass, scaled rows of tables.
// Computed by one warp for its block; also what "mean" divides by.
#pragma once

#include "../blended_kl.h"
#include "cuda/convert.cuh"

namespace toast {

constexpr unsigned kAllLanes = 0xffffffff;
constexpr float kLog2e = 1.4426950408889634f;

// `scale` times a row of a table, a term of the target mass; absent if scale is 0.
struct ScaledRow {
  float scale;
  DType dtype;
  const void* values;
  const std::int32_t* indices;  // of a top-k row, else null
  int width;
  float tail;           // of a top-k row: mass of each class that is not listed
  const float* weight;  // [C] class weights that multiply the row, or null
  bool logits;          // row = 2^((values - high - low) by)
  float high, low, by;
};

enum { kSoftA, kSoftB, kPast, kScaledRows };

// Everything that the block's threads need to know of a row. The masses are scaled by the reduction.
struct Row {
  std::int64_t index;
  bool used, bad;  // bad: a label or past_index is out of range
  int label[2];    // -1: none
  float hard[2];   // mass of the label's own class
  float share[2];  // the label's share of the row's class term
  float smooth;    // mass of every class, times its class weight
  ScaledRow scaled[kScaledRows];
  float past_entropy;  // of the past row, times its scale
  float upstream;      // what the gradient is multiplied by
};

struct Label {
  std::int64_t y;  // 0 where it is not kept
  bool kept, bad;
};

// The row's first or second label; one that is not given is not kept.
__device__ inline Label label_of(const BlendedKL& p, std::int64_t i, int which) {
  const std::int64_t* target = which == 0 ? p.target : p.target_b;
  const std::int64_t y = target == nullptr ? p.ignore_index : target[i];
  const bool given = y != p.ignore_index, bad = given && (y < 0 || y >= p.classes);
  return {given && !bad ? y : 0, given && !bad, bad};
}

// A label's share of its row's class term.
__device__ inline float share_of(const BlendedKL& p, std::int64_t i, int which) {
  if (p.lam == nullptr) return 1;
  const float lam = static_cast<const float*>(p.lam)[i];
  return which == 0 ? lam : 1 - lam;
}

// share times the class's weight; 0 * inf = 0.
__device__ inline float weighted(const BlendedKL& p, float share, std::int64_t y) {
  return p.weight == nullptr || share == 0 ? share : share * static_cast<const float*>(p.weight)[y];
}

struct Past {
  std::int64_t row;
  bool there, bad;
};

__device__ inline Past past_of(const BlendedKL& p, std::int64_t i) {
  const std::int64_t r = p.past_index[i];
  const bool bad = r < -1 || r >= p.past.rows;
  return {r, r >= 0 && !bad && (p.past.filled == nullptr || p.past.filled[r]), bad};
}

// --- What "mean" divides by
struct Normalisers {
  double weight;     // of the labels
  double past_rows;  // rows with a past
};

__device__ inline Normalisers normalisers_of(const BlendedKL& p, std::int64_t i) {
  bool used = p.target == nullptr, bad = false;
  double weight = used ? 1 : 0;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const Label label = label_of(p, i, which);
    used |= label.kept;
    bad |= label.bad;
    if (label.kept) weight += weighted(p, share_of(p, i, which), label.y);
  }
  if (!used || bad) return {0, 0};
  if (p.past.values == nullptr) return {weight, 0};
  const Past past = past_of(p, i);
  return past.bad ? Normalisers{0, 0} : Normalisers{weight, past.there ? 1.0 : 0.0};
}

// --- Rows of tables
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

__device__ inline float element(DType dtype, const void* values, std::int64_t i) {
  float x = 0;
  with_element(dtype, [&](auto zero) { x = widen(static_cast<const decltype(zero)*>(values)[i]); });
  return x;
}

// `scale` times the table's row, to `scaled`. Called by a whole warp, for the sum over a list; its first lane writes.
__device__ inline void scale_row(const SoftRows& table, std::int64_t row, float scale, std::int64_t classes,
                                 ScaledRow& scaled) {
  const void* values = static_cast<const char*>(table.values) + row * table.stride * size_of(table.dtype);
  float tail = 0;
  if (table.indices != nullptr && scale != 0) {
    float listed = 0;
    for (int k = int(threadIdx.x) % 32; k < table.width; k += 32) listed += element(table.dtype, values, k);
    tail = scale * (fmaxf(1 - warp_sum(listed), 0) / float(max(classes - table.width, std::int64_t(1))));
  }
  if (threadIdx.x % 32 != 0) return;
  scaled.scale = scale;
  scaled.dtype = table.dtype;
  scaled.values = values;
  scaled.indices = table.indices == nullptr ? nullptr : table.indices + row * table.width;
  scaled.width = int(table.width);
  scaled.tail = tail;
  scaled.weight = nullptr;
  scaled.logits = table.logsumexp != nullptr;
  if (scaled.logits) {
    // In two terms: rounded to one float, the shift would show at logits far from 0.
    const double shift = table.logsumexp[row] * table.temperature;
    scaled.high = float(shift);
    scaled.low = float(shift - double(scaled.high));
    scaled.by = float(kLog2e / table.temperature);
  }
}

// Where a top-k row lists class j, or -1.
__device__ inline int place_in(const ScaledRow& scaled, int j) {
  int first = 0, last = scaled.width;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (scaled.indices[middle] < j)
      first = middle + 1;
    else
      last = middle;
  }
  return first < scaled.width && scaled.indices[first] == j ? first : -1;
}

// The mass that a scaled top-k row gives to class j.
__device__ inline float listed_mass(const ScaledRow& scaled, int j) {
  const int place = place_in(scaled, j);
  return place < 0 ? scaled.tail : scaled.scale * element(scaled.dtype, scaled.values, place);
}

// --- The row. Worked out by a whole warp, for the sums over lists; its first lane writes it down.
template <bool PastTerm>
__device__ void make_row(const BlendedKL& p, std::int64_t i, float class_scale, float past_term_scale, Row& row) {
  const bool writes = threadIdx.x % 32 == 0;
  // First what all else waits for.
  const Label labels[2] = {label_of(p, i, 0), label_of(p, i, 1)};
  const Past past = PastTerm ? past_of(p, i) : Past{-1, false, false};
  const float eps = float(p.label_smoothing), uniform = float(p.label_smoothing / double(p.classes));
  const float alpha = float(p.alpha_on_device == nullptr ? p.alpha : *p.alpha_on_device);
  const bool used = p.target == nullptr || labels[0].kept || labels[1].kept;
  const bool bad = labels[0].bad || labels[1].bad || (used && past.bad);
  float smooth = 0;
  if (writes)
    for (ScaledRow& scaled : row.scaled) scaled.scale = 0;
  if (p.target == nullptr) {
    ScaledRow& scaled = row.scaled[kSoftA];
    scale_row(p.probabilities, i, class_scale * (1 - eps), p.classes, scaled);
    if (writes) scaled.weight = static_cast<const float*>(p.weight);
    smooth = class_scale * uniform;
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const std::int64_t y = labels[which].y;
    float hard = 0, share = 0;
    if (labels[which].kept) {
      share = share_of(p, i, which);
      const bool soft = p.soft.values != nullptr && (p.soft.filled == nullptr || p.soft.filled[y]);
      const float a = soft ? alpha : 0, mass = class_scale * weighted(p, share, y);
      hard = (1 - a) * (1 - eps) * mass;
      smooth += class_scale * share * (1 - a) * uniform;
      if (soft) scale_row(p.soft, y, a * mass, p.classes, row.scaled[which]);
    }
    if (writes) {
      row.label[which] = labels[which].kept ? int(y) : -1;
      row.hard[which] = hard;
      row.share[which] = share;
    }
  }
  float past_entropy = 0;
  if (used && !bad && past.there) {
    const double weight = p.past_weight_on_device == nullptr ? p.past_weight : *p.past_weight_on_device;
    const float scale = past_term_scale * (float(weight) * float(p.temperature));
    scale_row(p.past, past.row, scale, p.classes, row.scaled[kPast]);
    if (scale != 0) past_entropy = scale * static_cast<const float*>(p.past.entropy)[past.row];
  }
  if (writes) {
    row.index = i;
    row.used = used || bad;
    row.bad = bad;
    row.smooth = smooth;
    row.past_entropy = past_entropy;
    row.upstream = p.upstream == nullptr ? 1 : static_cast<const float*>(p.upstream)[i * p.upstream_stride];
  }
}

}  // namespace toast
