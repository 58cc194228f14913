// The target row: the mass of every class in a block's slice of a row but for what falls on labels alone, built in
// shared memory from smoothing and scaled rows of tables.
#pragma once

#include "cuda/convert.cuh"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"

namespace toast {

// What a block holds of a piece of a row. Its classes lie in shared memory at the places [lead, lead + n) of arrays of
// `places`, a multiple of 16 bytes: so a class has the same offset from a multiple of 16 bytes there as in the row of
// logits.
struct Slice {
  std::int64_t begin;  // the first class
  int n, lead, places;

  __device__ bool has(int place) const { return place >= lead && place < lead + n; }
  __device__ std::int64_t class_at(int place) const { return begin + (place - lead); }
  __device__ int place_of(std::int64_t j) const { return int(j - begin) + lead; }
};

// Calls f(place, probabilities) for the slice of a dense row or a row of logits, not scaled: float[n], of the n places
// from `place` on; 16 bytes of the table at a time where they are aligned, else one element. A thread has kLoads loads
// in flight, of float64 one: more would take too many registers, as four of other types would on sm_100.
template <int kLoads, class F>
__device__ void for_each_probability(const ScaledRow& row, const Slice& slice, F&& f) {
  const bool logits = row.logits;
  const float high = row.high, low = row.low, by = row.by;
  const auto probability_of = [&](float value) { return logits ? exp2_approx((value - high - low) * by) : value; };
  with_element(row.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = kWidth<T>, kInFlight = width == 2 ? 1 : kLoads;
    const T* values = static_cast<const T*>(row.values) + slice.begin;
    const int threads = int(blockDim.x), end = slice.lead + slice.n;
    // Whole vectors: the places [first, last).
    int first = end, last = end;
    if ((reinterpret_cast<std::uintptr_t>(values) - slice.lead * sizeof(T)) % 16 == 0) {
      first = min((slice.lead + width - 1) / width * width, end);
      last = max(end / width * width, first);
    }
#pragma unroll 1
    for (int place = first + int(threadIdx.x) * width; place < last; place += kInFlight * threads * width) {
      uint4 bytes[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (const int at = place + i * threads * width; at < last)
          bytes[i] = __ldg(reinterpret_cast<const uint4*>(values + (at - slice.lead)));
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int at = place + i * threads * width;
        if (at >= last) break;
        float probabilities[width];
        widen<T>(bytes[i], probabilities);
#pragma unroll
        for (float& probability : probabilities) probability = probability_of(probability);
        f(at, probabilities);
      }
    }
    // What lies before and after them.
    const int head = first - slice.lead, others = head + end - last;
#pragma unroll 1
    for (int other = int(threadIdx.x); other < others; other += kInFlight * threads) {
      T elements[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (const int at = other + i * threads; at < others)
          elements[i] = __ldg(values + (at < head ? at : last - first + at));
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int at = other + i * threads;
        if (at >= others) break;
        const float probabilities[1] = {probability_of(widen(elements[i]))};
        f(slice.lead + (at < head ? at : last - first + at), probabilities);
      }
    }
  });
}

struct Masses {
  float of_class, of_past;
};

// Writes the target row of a slice, and returns the masses in it that this thread has added. All threads of the block
// take part; a barrier must follow before it is read.
template <bool PastTerm>
__device__ Masses build_target(const BlendedKL& p, const Row& row, const Slice& slice, float* mass) {
  constexpr int terms = PastTerm ? kScaledRows : kPast;
  const int threads = int(blockDim.x);
  const float smooth = row.smooth;
  const float* weight = smooth == 0 ? nullptr : static_cast<const float*>(p.weight);
  const auto smoothed = [&](std::int64_t j) { return weight == nullptr ? smooth : smooth * weight[j]; };
  Masses sums{0, 0};

  // Uniform mass: smoothing, and the tails of top-k rows.
  float uniform = 0, past_uniform = 0;
  bool listed = false;
  for (int k = 0; k < terms; ++k) {
    const ScaledRow& term = row.scaled[k];
    if (term.scale == 0 || term.indices == nullptr) continue;
    listed = true;
    (k == kPast ? past_uniform : uniform) += term.tail;
  }
  if (weight == nullptr) {
    const float all = smooth + uniform + past_uniform, vector[4] = {all, all, all, all};
    for (int place = 4 * int(threadIdx.x); place < slice.places; place += 4 * threads) {
      if (slice.has(place) && slice.has(place + 3))
        store(vector, mass + place);
      else
        for (int k = place; k < place + 4; ++k) mass[k] = slice.has(k) ? all : 0;
    }
    if (threadIdx.x == 0) sums = {float(slice.n) * (smooth + uniform), float(slice.n) * past_uniform};
  } else {
#pragma unroll 4
    for (int place = int(threadIdx.x); place < slice.places; place += threads) {
      float all = 0;
      if (slice.has(place)) {
        const float of_class = smoothed(slice.class_at(place)) + uniform;
        sums.of_class += of_class;
        sums.of_past += past_uniform;
        all = of_class + past_uniform;
      }
      mass[place] = all;
    }
  }

  // A class that is listed gets all its mass anew, from the first list that has it.
  if (listed) {
    __syncthreads();
    for (int k = 0; k < terms; ++k) {
      const ScaledRow& term = row.scaled[k];
      if (term.scale == 0 || term.indices == nullptr) continue;
      for (int i = int(threadIdx.x); i < term.width; i += threads) {
        const int j = term.indices[i];
        if (j < slice.begin || j >= slice.begin + slice.n) continue;
        bool first = true;
        float of_class = smoothed(j), of_past = 0;
        for (int other = 0; other < terms; ++other) {
          const ScaledRow& list = row.scaled[other];
          if (list.scale == 0 || list.indices == nullptr) continue;
          if (other < k && place_in(list, j) >= 0) first = false;
          (other == kPast ? of_past : of_class) += listed_mass(list, j);
        }
        if (!first) continue;
        mass[slice.place_of(j)] = of_class + of_past;
        sums.of_class += of_class - (smoothed(j) + uniform);
        sums.of_past += of_past - past_uniform;
      }
    }
  }

  for (int k = 0; k < terms; ++k) {
    const ScaledRow& term = row.scaled[k];
    if (term.scale == 0 || term.indices != nullptr) continue;
    __syncthreads();
    const float scale = term.scale;
    const float* by = term.weight;
    float sum = 0;
    for_each_probability<3>(term, slice, [&](int place, auto& probabilities) {
      constexpr int n = sizeof(probabilities) / sizeof(float);
      float all[n];
      load(mass + place, all);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float scaled = scale * probabilities[i];
        const float added = by == nullptr ? scaled : scaled * by[slice.class_at(place + i)];
        sum += added;
        all[i] += added;
      }
      store(all, mass + place);
    });
    (k == kPast ? sums.of_past : sums.of_class) += sum;
  }
  return sums;
}

}  // namespace toast
