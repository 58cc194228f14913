// From nominated costs and the bounds on their errors to the winner.
#pragma once

#include "cpu/medoids/costs.h"

namespace toast {
namespace TOAST_ISA {

// Rows that may still win, by position in the class, each with a cost and a bound on its error.
struct Candidates {
  int64_t* positions;  // ascending
  double *cost, *bound;
  int64_t count;
};

// How far exact_costs may lie from a nominated cost: the nomination's bound and exact_costs' own rounding. Infinite for
// a cost or bound that is not finite, which says nothing: such a row stays a candidate.
inline double margin(const ClassRows& c, double cost, double bound) {
  const double reach = bound + rounding(c.n, c.x.width) * cost;
  return std::fabs(cost) + reach < INFINITY ? reach : INFINITY;
}

// What the nominations say of the smallest cost.
struct Range {
  double lowest, highest;
};
inline Range range_of_minimum(const ClassRows& c, const Candidates& all) {
  Range range{INFINITY, INFINITY};
  for (int64_t i = 0; i < all.count; ++i) {
    const double reach = margin(c, all.cost[i], all.bound[i]);
    range.lowest = std::min(range.lowest, reach < INFINITY ? std::max(0.0, all.cost[i] - reach) : 0.0);
    range.highest = std::min(range.highest, reach < INFINITY ? all.cost[i] + reach : INFINITY);
  }
  return range;
}

inline std::uint64_t hash_row(const double* x, int64_t width) {
  std::uint64_t hash = 0;
  for (int64_t k = 0; k < width; ++k) {
    std::uint64_t bits;
    const double value = x[k] + 0.0;  // -0 and 0 are equal
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

// Equal rows have equal costs: keeps the first of each. Returns how many are left.
inline int64_t drop_duplicates(const ClassRows& c, const Candidates& all, int threads) {
  struct Hashed {
    std::uint64_t hash;
    int64_t i;
  };
  const int64_t w = padded(c.x.width), groups = std::min<int64_t>(threads, all.count);
  std::vector<Hashed> hashed(all.count);
  parallel_for(groups, threads, [&](int64_t group) {
    std::vector<double> row(w);
    for (int64_t i = all.count * group / groups; i < all.count * (group + 1) / groups; ++i) {
      load_row(c.x, c.rows[all.positions[i]], row.data());
      hashed[i] = {hash_row(row.data(), c.x.width), i};
    }
  });
  std::sort(hashed.begin(), hashed.end(),
            [](const Hashed& a, const Hashed& b) { return a.hash != b.hash ? a.hash < b.hash : a.i < b.i; });

  std::vector<char> drop(all.count);
  std::vector<double> first(w), row(w);
  for (int64_t begin = 0, i = 0; i < all.count; ++i) {
    if (hashed[i].hash != hashed[begin].hash || i == begin) {
      begin = i;
      continue;
    }
    if (i == begin + 1) load_row(c.x, c.rows[all.positions[hashed[begin].i]], first.data());
    load_row(c.x, c.rows[all.positions[hashed[i].i]], row.data());
    drop[hashed[i].i] = row == first;  // a mere collision stays: nothing is lost but time
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < all.count; ++i) {
    if (drop[i]) continue;
    all.positions[kept] = all.positions[i];
    all.cost[kept] = all.cost[i];
    all.bound[kept++] = all.bound[i];
  }
  return kept;
}

// Drops the candidates that cannot win and all but the first of equal rows, in place; returns how many are left.
inline int64_t drop_losers(const ClassRows& c, Metric metric, const Candidates& all, int threads) {
  const double limit = tie(range_of_minimum(c, all).highest, metric, c.n);
  int64_t kept = 0;
  for (int64_t i = 0; i < all.count; ++i) {
    const double reach = margin(c, all.cost[i], all.bound[i]);
    if (reach < INFINITY && all.cost[i] - reach > limit) continue;
    all.positions[kept] = all.positions[i];
    all.cost[kept] = all.cost[i];
    all.bound[kept++] = all.bound[i];
  }
  return kept == 1 ? 1 : drop_duplicates(c, {all.positions, all.cost, all.bound, kept}, threads);
}

// Position of the winner among the candidates that are left. Exact costs are got in the order of the rows and only
// until it is certain: a row that ties with the least that any can cost wins over every later one.
inline int64_t decide(const ClassRows& c, Metric metric, const Candidates& all, int threads) {
  if (all.count == 1) return all.positions[0];
  Range range = range_of_minimum(c, all);
  std::vector<double> cost(all.count);
  for (int64_t done = 0; done < all.count;) {
    const int64_t count = std::min<int64_t>(32, all.count - done);
    exact_costs(c, metric, all.positions + done, count, cost.data() + done, threads);
    done += count;
    range.highest = std::min(range.highest, *std::min_element(cost.begin() + done - count, cost.begin() + done));
    const int64_t first = first_at_most(cost.data(), done, tie(range.highest, metric, c.n));
    if (first < done && cost[first] <= tie(range.lowest, metric, c.n)) return all.positions[first];
  }
  const double lowest = *std::min_element(cost.begin(), cost.end());
  return all.positions[first_at_most(cost.data(), all.count, tie(lowest, metric, c.n))];
}

}  // namespace TOAST_ISA
}  // namespace toast
