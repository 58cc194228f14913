// The formulas at the head of csrc/blended_kl.h, in plain double loops (long double for the sums).
#pragma once

#include "blended_kl_problem.h"

struct Answer {
  Row loss, cross_entropy, logsumexp;
  Rows gradient;
  std::vector<int64_t> argmax;
  // What rounding errors are relative to: the sum of the terms of a row's loss or gradient without their signs.
  Row loss_size, gradient_size;
};

// sum_j mass_j log_probability_j with 0 * -inf = 0
inline double weighted(const Row& mass, const Row& log_probability) {
  long double total = 0;
  for (std::size_t j = 0; j < mass.size(); ++j)
    if (mass[j] != 0) total += mass[j] * log_probability[j];
  return double(total);
}

inline double sum_of(const Row& x) {
  long double total = 0;
  for (double v : x) total += v;
  return double(total);
}

// Row r of a table as a loss with logits z takes it: what a list leaves of 1, to the classes that it does not have and
// whose logits are not -inf.
inline Row row_beside(const Table& table, int64_t r, const Row& z) {
  Row q = table.probabilities[r];
  if (table.rows.indices == nullptr) return q;
  const std::int32_t *const first = table.rows.indices + r * table.rows.width, *const last = first + table.rows.width;
  long double rest = 1;
  int64_t sharing = 0;
  auto listed = [&](std::size_t j) { return std::binary_search(first, last, std::int32_t(j)); };
  for (std::size_t j = 0; j < q.size(); ++j)
    if (listed(j))
      rest -= q[j];
    else
      sharing += z[j] != -INFINITY;
  for (std::size_t j = 0; j < q.size(); ++j)
    if (!listed(j)) q[j] = z[j] == -INFINITY ? 0 : std::max(0.0, double(rest)) / double(sharing);
  return q;
}

inline Answer truth(Problem& problem) {
  const BlendedKL& p = problem.p;
  const int64_t n = p.rows, classes = p.classes;
  const double eps = p.label_smoothing, t = p.temperature;
  auto weight = [&](int64_t j) { return p.weight == nullptr ? 1.0 : problem.weight.get(j); };

  Rows mass(n, Row(classes)), score(n, Row(classes));
  std::vector<bool> used(n, p.target == nullptr), has_past(n);
  double divisor = 0, past_rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (p.target == nullptr) {
      divisor += 1;
      score[i] = problem.given.probabilities[i];
      for (int64_t j = 0; j < classes; ++j) mass[i][j] = weight(j) * ((1 - eps) * score[i][j] + eps / double(classes));
    }
    const int labels = p.target == nullptr ? 0 : p.target_b == nullptr ? 1 : 2;
    for (int which = 0; which < labels; ++which) {
      const int64_t y = which == 0 ? problem.target[i] : problem.target_b[i];
      if (y == p.ignore_index) continue;
      const double lam = p.lam == nullptr ? 1 : problem.lam.get(i), share = which == 0 ? lam : 1 - lam;
      const double alpha = p.soft.values != nullptr && problem.soft.has(y) ? p.alpha : 0;
      used[i] = true;
      const Row soft = alpha == 0 ? Row(classes) : row_beside(problem.soft, y, problem.z[i]);
      divisor += share * weight(y);
      score[i][y] += share;
      mass[i][y] += share * (1 - alpha) * (1 - eps) * weight(y);
      for (int64_t j = 0; j < classes; ++j) {
        mass[i][j] += share * (1 - alpha) * eps / double(classes) * weight(j);
        mass[i][j] += share * alpha * weight(y) * soft[j];
      }
    }
    has_past[i] =
        used[i] && p.past_index != nullptr && problem.past_index[i] >= 0 && problem.past.has(problem.past_index[i]);
    past_rows += has_past[i];
  }
  const bool mean = p.reduction == Reduction::mean;
  const double class_scale = !mean ? 1 : divisor == 0 ? 0 : 1 / divisor;
  const double past_scale = p.past_weight / (mean && past_rows > 0 ? past_rows : 1);

  Answer a;
  for (int64_t i = 0; i < n; ++i) {
    const Row at_1 = log_softmax(problem.z[i], 1), at_t = log_softmax(problem.z[i], t);
    Row& m = mass[i];
    Row q = has_past[i] ? row_beside(problem.past, problem.past_index[i], problem.z[i]) : Row(classes);
    long double entropy = 0;
    for (double x : q) entropy -= x > 0 ? past_scale * x * std::log(static_cast<long double>(x)) : 0;
    // What the kernel starts from: beside masked classes a list's own entropy is smaller than the one that is kept.
    const double kept = has_past[i] ? past_scale * problem.past.entropy.get(problem.past_index[i]) : 0;
    for (double& x : m) x *= class_scale;
    for (double& x : q) x *= past_scale;
    const bool diverged = std::isnan(at_1[0]);  // by one NaN logit; an ignored row does not mind
    const double class_term = diverged && used[i] ? NAN : -weighted(m, at_1), cross = -t * t * weighted(q, at_t),
                 own = static_cast<double>(t * t * entropy);
    a.loss.push_back(class_term + cross - own);
    a.loss_size.push_back(class_term + cross + std::max(own, t * t * kept));

    const double upstream = p.upstream == nullptr ? 1 : problem.upstream.get(i * p.upstream_stride);
    const double class_mass = sum_of(m), past_mass = sum_of(q);
    Row gradient(classes);
    for (int64_t j = 0; j < classes && used[i]; ++j)
      gradient[j] = upstream * (class_mass * std::exp(at_1[j]) - m[j] + t * (past_mass * std::exp(at_t[j]) - q[j]));
    a.gradient.push_back(gradient);
    a.gradient_size.push_back(std::fabs(upstream) * (class_mass + t * past_mass));

    a.cross_entropy.push_back(-weighted(score[i], at_1));
    a.logsumexp.push_back(logsumexp(problem.z[i]));
    int64_t largest = 0;  // the first of the largest, and NaN is larger than any number
    for (int64_t j = 1; j < classes; ++j)
      if (const double z = problem.z[i][j], best = problem.z[i][largest]; z > best || (z != z && best == best))
        largest = j;
    a.argmax.push_back(largest);
  }
  if (p.reduction != Reduction::none) {
    a.loss = {mean && divisor == 0 ? NAN : sum_of(a.loss)};
    a.loss_size = {sum_of(a.loss_size)};
  }
  return a;
}
