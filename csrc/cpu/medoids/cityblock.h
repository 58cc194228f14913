// cityblock, a column at a time. In a sorted column the sum of |v_i - v_j| over j follows from v_i, its rank and the
// sum of the values before it; buckets of equal width give nearly that, and a bound, without a sort.
#pragma once

#include "cpu/medoids/costs.h"

namespace toast {
namespace TOAST_ISA {

// A thread's scratch, and what it found: a column is added to every row's cost; `bound` is common to all rows and holds
// what buckets leave open; `spread` is the sum of distances from the columns' middles, which rounding errors are
// relative to.
class Columns {
 public:
  Columns(int64_t n, double* cost) : n_(n), cost_(cost), bucket_of_(n), slopes_(buckets), offsets_(buckets) {}

  double bound() const { return bound_; }
  double spread() const { return spread_; }

  void add(double* column, bool exactly) {
    double low = INFINITY, high = -INFINITY;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n_; ++i) {
      low = std::min(low, column[i]);
      high = std::max(high, column[i]);
    }
    if (low == high) return;
    const double middle = low + (high - low) / 2;
    double distances = 0, total = 0;
#pragma omp simd reduction(+ : distances, total)
    for (int64_t i = 0; i < n_; ++i) {
      column[i] -= middle;
      distances += std::fabs(column[i]);
      total += column[i];
    }
    spread_ += distances;
    if (exactly)
      add_sorted(column);
    else
      add_buckets(column, low - middle, high - low, total);
  }

 private:
  static constexpr std::int32_t buckets = 1024;     // 16 KB of sums: the level 1 cache
  static constexpr std::int32_t run = buckets / 8;  // buckets that one lane adds up
  struct Entry {
    double value;
    int64_t row;
  };

  void add_sorted(const double* column) {
    sorted_.resize(n_);
    for (int64_t i = 0; i < n_; ++i) sorted_[i] = {column[i], i};
    std::sort(sorted_.begin(), sorted_.end(), [](const Entry& a, const Entry& b) { return a.value < b.value; });
    double total = 0, before = 0;
    for (const Entry& e : sorted_) total += e.value;
    for (int64_t rank = 0; rank < n_; ++rank) {
      const Entry& e = sorted_[rank];
      cost_[e.row] += e.value * double(2 * rank - n_) + (total - 2 * before);
      before += e.value;
    }
  }

  // Two values of one bucket are taken to lie half its width apart. Bucket b is kept in lane b / run of the Lanes at
  // 8 (b % run), so that the sums before each come from 8 runs of buckets side by side.
  void add_buckets(const double* column, double low, double range, double total) {
    const double scale = buckets / range, half = 0.5 * range / buckets;
    if (!(scale < 1e300 && range < 1e300)) {  // beyond double's range: leaves everything open
      bound_ = INFINITY;
      return;
    }
    double *slopes = slopes_.data(), *offsets = offsets_.data();
    std::fill(slopes, slopes + buckets, 0.0);
    std::fill(offsets, offsets + buckets, 0.0);
    for (int64_t i = 0; i < n_; ++i) {
      const std::int32_t bucket = std::min(buckets - 1, std::int32_t((column[i] - low) * scale));
      bucket_of_[i] = bucket % run * 8 + bucket / run;
    }
    for (int64_t i = 0; i < n_; ++i) {
      slopes[bucket_of_[i]] += 1;  // count and sum of values, for now
      offsets[bucket_of_[i]] += column[i];
    }
    Lanes count, sum, fullest;
    for (int64_t k = 0; k < buckets; k += 8) {
      count += load(slopes + k);
      sum += load(offsets + k);
      fullest = max(fullest, load(slopes + k));
    }
    // What a column adds to a row's cost is a line in its value: slope = count below - count above, offset = sum above
    // - sum below.
    Lanes count_before = before(count), sum_before = before(sum);
    for (int64_t k = 0; k < buckets; k += 8) {
      const Lanes count_here = load(slopes + k), sum_here = load(offsets + k);
      store(2 * count_before + count_here - n_, slopes + k);
      store((total - sum_here - 2 * sum_before) + half * (count_here - 1), offsets + k);
      count_before += count_here;
      sum_before += sum_here;
    }
    for (int64_t i = 0; i < n_; ++i) cost_[i] += column[i] * slopes[bucket_of_[i]] + offsets[bucket_of_[i]];
    bound_ += 2 * half * (largest_lane(fullest) - 1);
  }

  // Of each lane, the sum of the lanes before it.
  static Lanes before(const Lanes& v) {
    double lane[8], sum = 0;
    store(v, lane);
    for (double& x : lane) {
      const double here = x;
      x = sum;
      sum += here;
    }
    return load(lane);
  }

  int64_t n_;
  double* cost_;
  double bound_ = 0, spread_ = 0;
  std::vector<std::int32_t> bucket_of_;
  std::vector<Entry> sorted_;
  LaneVector slopes_, offsets_;
};

// cost [n] and bound [n] on its error, by sorting or by buckets. Columns are added up in at most 16 groups, whose
// borders depend on the width alone, and the groups in order: the same bits for any number of threads.
inline void costs_by_columns(const ClassRows& c, bool exactly, double* cost, double* bound, int threads) {
  const int64_t width = c.x.width, groups = std::max<int64_t>(1, std::min<int64_t>(16, width / 8));
  std::vector<double> costs(groups * c.n), bounds(groups), spreads(groups);
  parallel_for(groups, threads, [&](int64_t group) {
    Columns columns(c.n, costs.data() + group * c.n);
    std::vector<double> some(8 * c.n);  // 8 columns at a time: a row's cache line is read once for all of them
    const int64_t end = width * (group + 1) / groups;
    for (int64_t first = width * group / groups; first < end; first += 8) {
      const int64_t count = std::min<int64_t>(8, end - first);
      with_dtype(c.x.dtype, [&](auto zero) {
        const auto* x = static_cast<const decltype(zero)*>(c.x.data) + first * c.x.column_stride;
        for (int64_t i = 0; i < c.n; ++i)
          for (int64_t k = 0; k < count; ++k)
            some[k * c.n + i] = widen(x[c.rows[i] * c.x.row_stride + k * c.x.column_stride]);
      });
      for (int64_t k = 0; k < count; ++k) columns.add(some.data() + k * c.n, exactly);
    }
    bounds[group] = columns.bound();
    spreads[group] = columns.spread();
  });
  double open = 0, spread = 0;
  for (int64_t group = 0; group < groups; ++group) {
    open += bounds[group];
    spread += spreads[group];
  }
  for (int64_t i = 0; i < c.n; ++i) {
    cost[i] = 0;
    for (int64_t group = 0; group < groups; ++group) cost[i] += costs[group * c.n + i];
    bound[i] = open + 2 * rounding(c.n, width) * (cost[i] + spread);
  }
}

}  // namespace TOAST_ISA
}  // namespace toast
