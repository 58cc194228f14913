// The target row: the mass of every class in a block's slice of a row but for what falls on labels alone, built in
// shared memory from smoothing and parts of tables.
#pragma once

#include "cuda/convert.cuh"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"

namespace toast {

// A block's share of a piece of a row. Its classes lie in shared memory at the places [lead, lead + n) of arrays of
// `places`, a multiple of 16 bytes: so a class has the same offset from a multiple of 16 bytes there as in the row of
// logits.
struct Slice {
  std::int64_t begin;  // the first class
  int n, lead, places;

  __device__ bool has(int place) const { return place >= lead && place < lead + n; }
  __device__ std::int64_t class_at(int place) const { return begin + (place - lead); }
  __device__ int place_of(std::int64_t j) const { return int(j - begin) + lead; }
};

// Calls f(place, shares) for the slice's part of a dense row or of logits, 16 bytes at a time where they lie right for
// that, else one by one: shares is a float[n], at n places from `place` on. A thread has several loads
// under way, but of float64: it would take too many registers, as four would on sm_100.
template <int kLoads, class F>
__device__ void for_each_share(const Part& part, const Slice& slice, F&& f) {
  const bool logits = part.logits;
  const float high = part.high, low = part.low, by = part.by;
  const auto share_of = [&](float value) { return logits ? exp2_approx((value - high - low) * by) : value; };
  with_element(part.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = kWidth<T>, kInFlight = width == 2 ? 1 : kLoads;
    const T* values = static_cast<const T*>(part.values) + slice.begin;
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
        float shares[width];
        widen<T>(bytes[i], shares);
#pragma unroll
        for (float& share : shares) share = share_of(share);
        f(at, shares);
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
        const float shares[1] = {share_of(widen(elements[i]))};
        f(slice.lead + (at < head ? at : last - first + at), shares);
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
  constexpr int parts = PastTerm ? kParts : kPast;
  const int threads = int(blockDim.x);
  const float smooth = row.smooth;
  const float* weight = smooth == 0 ? nullptr : static_cast<const float*>(p.weight);
  const auto smoothed = [&](std::int64_t j) { return weight == nullptr ? smooth : smooth * weight[j]; };
  Masses sums{0, 0};

  // What every class has: smoothing, and the rest that top-k rows spread.
  float even = 0, past_even = 0;
  bool listed = false;
  for (int k = 0; k < parts; ++k) {
    const Part& part = row.part[k];
    if (part.scale == 0 || part.indices == nullptr) continue;
    listed = true;
    (k == kPast ? past_even : even) += part.rest;
  }
  if (weight == nullptr) {
    const float all = smooth + even + past_even, vector[4] = {all, all, all, all};
    for (int place = 4 * int(threadIdx.x); place < slice.places; place += 4 * threads) {
      if (slice.has(place) && slice.has(place + 3))
        store(vector, mass + place);
      else
        for (int k = place; k < place + 4; ++k) mass[k] = slice.has(k) ? all : 0;
    }
    if (threadIdx.x == 0) sums = {float(slice.n) * (smooth + even), float(slice.n) * past_even};
  } else {
#pragma unroll 4
    for (int place = int(threadIdx.x); place < slice.places; place += threads) {
      float all = 0;
      if (slice.has(place)) {
        const float of_class = smoothed(slice.class_at(place)) + even;
        sums.of_class += of_class;
        sums.of_past += past_even;
        all = of_class + past_even;
      }
      mass[place] = all;
    }
  }

  // A class that is listed gets all its mass anew, from the first list that has it.
  if (listed) {
    __syncthreads();
    for (int k = 0; k < parts; ++k) {
      const Part& part = row.part[k];
      if (part.scale == 0 || part.indices == nullptr) continue;
      for (int i = int(threadIdx.x); i < part.width; i += threads) {
        const int j = part.indices[i];
        if (j < slice.begin || j >= slice.begin + slice.n) continue;
        bool first = true;
        float of_class = smoothed(j), of_past = 0;
        for (int other = 0; other < parts; ++other) {
          const Part& list = row.part[other];
          if (list.scale == 0 || list.indices == nullptr) continue;
          if (other < k && place_in(list, j) >= 0) first = false;
          (other == kPast ? of_past : of_class) += listed_mass(list, j);
        }
        if (!first) continue;
        mass[slice.place_of(j)] = of_class + of_past;
        sums.of_class += of_class - (smoothed(j) + even);
        sums.of_past += of_past - past_even;
      }
    }
  }

  for (int k = 0; k < parts; ++k) {
    const Part& part = row.part[k];
    if (part.scale == 0 || part.indices != nullptr) continue;
    __syncthreads();
    const float scale = part.scale;
    const float* by = part.weight;
    float sum = 0;
    for_each_share<3>(part, slice, [&](int place, auto& shares) {
      constexpr int n = sizeof(shares) / sizeof(float);
      float all[n];
      load(mass + place, all);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float share = scale * shares[i];
        const float added = by == nullptr ? share : share * by[slice.class_at(place + i)];
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
