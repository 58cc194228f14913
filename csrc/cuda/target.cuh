// The mass that a row's target gives to a class, but for what falls on labels alone.
#pragma once

#include "cuda/row.cuh"

namespace toast {

struct Masses {
  float of_class, of_past;

  __device__ float both() const { return of_class + of_past; }
};

// Of list `term` at each class that it does not have, and the sum over all lists.
__device__ inline Masses uniform_masses(const Row& row) {
  Masses m{row.smooth, 0};
#pragma unroll
  for (int k = 0; k < kScaledRows; ++k)
    if (row.scaled[k].is_list()) (k == kPast ? m.of_past : m.of_class) += row.scaled[k].tail;
  return m;
}

// At class j. `lists`: with what lists have there; else all lists give it their tail. `tails`: false for a logit of
// -inf in a row that is `masked`.
__device__ inline Masses masses_at(const BlendedKL& p, const Row& row, std::int64_t j, bool lists, bool tails = true) {
  const float* weight = row.smooth == 0 ? nullptr : static_cast<const float*>(p.weight);
  Masses m{weight == nullptr ? row.smooth : row.smooth * weight[j], 0};
  for (int k = 0; k < kScaledRows; ++k) {
    const ScaledRow& term = row.scaled[k];
    float mass = 0;
    if (term.is_full()) {
      mass = term.scale * term.probability(element(term.dtype, term.values, j));
      if (term.weight != nullptr) mass *= term.weight[j];
    } else if (term.is_list()) {
      const int place = lists ? term.place_of(int(j)) : -1;
      mass = place >= 0 ? term.listed(place) : tails ? term.tail : 0;
    }
    (k == kPast ? m.of_past : m.of_class) += mass;
  }
  return m;
}

// Mass that falls on class j as a label.
__device__ inline float hard_at(const Row& row, int j) {
  return (row.label[0] == j ? row.hard[0] : 0) + (row.label[1] == j ? row.hard[1] : 0);
}

// --- The classes that lists have
__device__ inline bool has_lists(const Row& row) {
  return row.scaled[kSoftA].is_list() || row.scaled[kSoftB].is_list() || row.scaled[kPast].is_list();
}

// Calls f(k, list, i, j) for class j, number i of list k, of all lists: each by one thread of the block.
template <class F>
__device__ void for_each_listed(const Row& row, F&& f) {
  for (int k = 0; k < kScaledRows; ++k) {
    const ScaledRow& list = row.scaled[k];
    if (!list.is_list()) continue;
    for (int i = int(threadIdx.x); i < list.width; i += int(blockDim.x)) f(k, list, i, __ldg(list.indices + i));
  }
}

// Whether one of the row's lists before list k has class j.
__device__ inline bool listed_before(const Row& row, int k, int j) {
  for (int other = 0; other < k; ++other)
    if (row.scaled[other].is_list() && row.scaled[other].place_of(j) >= 0) return true;
  return false;
}

}  // namespace toast
