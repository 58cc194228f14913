// What the threads of a block know of a row, and the mass that its target gives to a class: hard mass at the labels,
// uniform mass, scaled rows of tables.
#pragma once

#include "cuda/convert.cuh"

namespace toast {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInf = INFINITY;

// One number for each of the two terms of the loss.
template <class Real>
struct Terms {
  Real of_class, of_past;

  __device__ Real both() const { return of_class + of_past; }
};
using Masses = Terms<float>;

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
  // Of a list: takes the tail from `count` of the classes that have it, for the others. Returns what that adds to the
  // entropy of the scaled row.
  __device__ float take_tail_from(double count, std::int64_t classes) {
    const double others = double(classes - width), sharing = others - count, rest = tail * others;
    if (count == 0 || rest == 0) return 0;
    const double more = rest * log(sharing > 0 ? sharing / others : double(tail) / scale);
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

// Masses are scaled by the reduction; those of classes leave out what falls on labels alone, but for hard_at.
struct Row {
  bool used, bad;  // bad: a label or past_index is out of range
  bool masked;     // lists have tails, and logits are -inf: these have no share of the tails
  int label[2];    // -1: none
  float hard[2];   // mass of the label's own class
  float share[2];  // the label's share of the row's class term
  float smooth;    // mass of every class, times its class weight, if there are any
  const float* weight;
  ScaledRow scaled[kScaledRows];
  float past_entropy;  // of the past row, times its scale
  float upstream;      // what the gradient is multiplied by

  __device__ float hard_at(int j) const { return (label[0] == j ? hard[0] : 0) + (label[1] == j ? hard[1] : 0); }
  // That a list gives to a class which it does not have and whose logit is z.
  __device__ float unlisted(const ScaledRow& list, float z) const { return masked && z == -kInf ? 0 : list.tail; }
  // At each class that no list has, but for weights and full rows.
  __device__ Masses uniform() const {
    Masses m{smooth, 0};
#pragma unroll
    for (int k = 0; k < kScaledRows; ++k)
      if (scaled[k].is_list()) (k == kPast ? m.of_past : m.of_class) += scaled[k].tail;
    return m;
  }
  // At class j, whose logit is z. `lists`: with what lists have there; else it is none that they have.
  __device__ Masses at(int j, float z, bool lists) const {
    Masses m{weight == nullptr ? smooth : smooth * weight[j], 0};
    for (int k = 0; k < kScaledRows; ++k) {
      const ScaledRow& term = scaled[k];
      float mass = 0;
      if (term.is_full()) {
        mass = term.scale * term.probability(element(term.dtype, term.values, j));
        if (term.weight != nullptr) mass *= term.weight[j];
      } else if (term.is_list()) {
        const int place = lists ? term.place_of(j) : -1;
        mass = place >= 0 ? term.listed(place) : unlisted(term, z);
      }
      (k == kPast ? m.of_past : m.of_class) += mass;
    }
    return m;
  }

  __device__ bool has_lists() const {
    return scaled[kSoftA].is_list() || scaled[kSoftB].is_list() || scaled[kPast].is_list();
  }
  // Calls f(k, list, i, j) for class j, number i of list k, of all lists: each by one thread of the block.
  template <class F>
  __device__ void for_each_listed(F&& f) const {
    for (int k = 0; k < kScaledRows; ++k) {
      const ScaledRow& list = scaled[k];
      if (!list.is_list()) continue;
      for (int i = int(threadIdx.x); i < list.width; i += int(blockDim.x)) f(k, list, i, __ldg(list.indices + i));
    }
  }
  // Whether one of the lists before list k has class j.
  __device__ bool listed_before(int k, int j) const {
    for (int other = 0; other < k; ++other)
      if (scaled[other].is_list() && scaled[other].place_of(j) >= 0) return true;
    return false;
  }
};

}  // namespace toast
