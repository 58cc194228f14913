// What blended_kl computes on, row by row and chunk by chunk: labels, weights, soft targets and past predictions
// turned into masses, scaled as the reduction wants.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "blended_kl.h"
#include "cpu/blended_kl_chunk.h"
#include "cpu/convert.h"
#include "cpu/soft_rows.h"

namespace toast {
namespace TOAST_ISA {

// Rows up to this many classes keep their exponentials and target between the two loops; that of a longer row would
// fall out of the second-level cache, and the first loop runs again.
constexpr std::int64_t kKeptRow = 32768;

// A thread's working memory.
template <class Real>
struct Scratch {
  Scratch(std::int64_t classes, std::int64_t chunks, bool keep, bool past)
      : by_chunk(chunks), whole_row(keep && classes <= kKeptRow) {
    constexpr std::int64_t lanes = Vec<Real>::lanes;
    const auto padded = [&](std::int64_t n) { return (n + lanes - 1) / lanes * lanes; };
    const std::int64_t chunk = padded(std::min(classes, kChunk)), row = whole_row ? padded(classes) : chunk;
    const std::int64_t total = 5 * chunk + (keep ? (past ? 3 : 2) * row : 0);
    memory.reset(static_cast<Real*>(std::aligned_alloc(64, total * sizeof(Real))));
    if (memory == nullptr) throw std::bad_alloc();
    Real* next = memory.get();
    for (Real** buffer : {&z, &s, &q, &spare, &gradient}) *buffer = std::exchange(next, next + chunk);
    if (!keep) return;
    kept.p = std::exchange(next, next + row);
    kept.t = std::exchange(next, next + row);
    if (past) kept.e = next;
  }

  // Where the chunk that begins there is kept.
  Kept<Real> kept_at(std::int64_t begin) const {
    const std::int64_t at = whole_row ? begin : 0;
    return {kept.p + at, kept.e + at, kept.t + at};
  }

  struct Free {
    void operator()(Real* p) const { std::free(p); }
  };
  std::vector<Statistics> by_chunk;  // of the row
  const bool whole_row;              // kept holds all of a row, else only its last chunk
  std::unique_ptr<Real, Free> memory;
  Real *z, *s, *q, *spare, *gradient;  // [chunk] each
  Kept<Real> kept;
};

// A row as the formulas see it, scaled by the reduction.
template <class Real>
struct Row {
  std::int64_t index;
  bool used = false;
  int labels = 0;
  std::int64_t label[2];
  double hard[2];           // mass at label
  Real soft[2];             // weight of S[label]; 0 where it is not filled
  Real smooth = 0;          // mass that label smoothing gives each class, times its class weight
  SoftRow<Real> target[2];  // S[label], or the row of probabilities
  bool has_soft = false;    // the class term has more than its hard mass
  bool has_past = false;
  SoftRow<Real> past;
  Real past_scale = 0;  // lambda T / P
  double past_entropy = 0;
};

template <class Real>
class Rows {
 public:
  // Throws std::out_of_range for a label or past_index that is out of range.
  explicit Rows(const BlendedKL& problem)
      : p_(problem), weight_(static_cast<const Real*>(p_.weight)), lam_(static_cast<const Real*>(p_.lam)) {
    check_indices();
    normalise();
  }

  // Whether "mean" has anything to divide by.
  bool any() const { return class_rows_ != 0; }

  Row<Real> row(std::int64_t i) const {
    Row<Real> r;
    r.index = i;
    r.used = used(i);
    if (!r.used) return r;
    const double eps = p_.label_smoothing;
    double smooth = 0;
    if (p_.target == nullptr) {
      r.target[0] = SoftRow<Real>(p_.probabilities, i, p_.classes);
      r.has_soft = true;
      smooth = eps;
    }
    for (int which = 0; which < 2 && labels(which) != nullptr; ++which) {
      const std::int64_t y = labels(which)[i];
      if (y == p_.ignore_index) continue;
      const double share = share_of(i, which);
      const bool blended = p_.soft.values != nullptr && (p_.soft.filled == nullptr || p_.soft.filled[y]);
      const double alpha = blended ? p_.alpha : 0;
      const int k = r.labels++;
      r.label[k] = y;
      r.hard[k] = class_scale_ * share * (1 - alpha) * (1 - eps) * weight_of(y);
      r.soft[k] = 0;
      if (alpha != 0) {
        r.soft[k] = Real(class_scale_ * share * alpha * weight_of(y));
        r.target[k] = SoftRow<Real>(p_.soft, y, p_.classes);
        r.has_soft = true;
      }
      smooth += share * (1 - alpha) * eps;
    }
    r.smooth = Real(class_scale_ * smooth / double(p_.classes));
    r.has_soft = r.has_soft || r.smooth != 0;
    r.has_past = has_past(i);
    if (r.has_past) {
      const std::int64_t row = p_.past_index[i];
      r.past = SoftRow<Real>(p_.past, row, p_.classes);
      r.past_scale = Real(past_term_scale_ * p_.past_weight * p_.temperature);
      r.past_entropy = double(static_cast<const Real*>(p_.past.entropy)[row]);
    }
    return r;
  }

  Chunk<Real> chunk(const Row<Real>& r, std::int64_t begin, Scratch<Real>& scratch) const {
    Chunk<Real> c;
    c.n = std::min(kChunk, p_.classes - begin);
    const bool last = begin + c.n == p_.classes;
    c.prefetch = last ? prefetch(std::min(r.index + 1, p_.rows - 1), 0) : prefetch(r.index, begin + c.n);
    c.z = as_real(p_.dtype, p_.logits, r.index * p_.stride + begin, c.n, scratch.z);
    if (r.has_soft) class_target(r, begin, c, scratch);
    if (r.has_past) {
      c.q = r.past.chunk(begin, c.n, scratch.q);
      c.b = r.past_scale;
    }
    return c;
  }

  // Of all that the chunk of row i beginning there is computed from.
  Prefetch prefetch(std::int64_t i, std::int64_t begin) const {
    Prefetch result(p_.logits, i * p_.stride + begin, p_.dtype);
    const auto set = [&](Prefetch::Which which, const SoftRows& table, std::int64_t row) {
      if (table.values != nullptr && table.indices == nullptr)
        result.set(which, table.values, row * table.stride + begin, table.dtype);
    };
    if (p_.target == nullptr)
      set(Prefetch::kSoft, p_.probabilities, i);
    else if (p_.target[i] != p_.ignore_index)
      set(Prefetch::kSoft, p_.soft, p_.target[i]);
    if (has_past(i)) set(Prefetch::kPast, p_.past, p_.past_index[i]);
    return result;
  }

  // The label's share of its row's class term.
  double share_of(std::int64_t i, int which) const {
    return lam_ == nullptr ? 1 : which == 0 ? double(lam_[i]) : 1 - double(lam_[i]);
  }
  const std::int64_t* labels(int which) const { return which == 0 ? p_.target : p_.target_b; }
  double weight_of(std::int64_t y) const { return weight_ == nullptr ? 1 : double(weight_[y]); }

  bool used(std::int64_t i) const {
    return p_.target == nullptr || p_.target[i] != p_.ignore_index ||
           (p_.target_b != nullptr && p_.target_b[i] != p_.ignore_index);
  }
  bool has_past(std::int64_t i) const {
    if (p_.past_index == nullptr || p_.past_index[i] < 0 || !used(i)) return false;
    return p_.past.filled == nullptr || p_.past.filled[p_.past_index[i]];
  }

  Real logit(std::int64_t i, std::int64_t j) const {
    Real buffer[1];
    return *as_real(p_.dtype, p_.logits, i * p_.stride + j, 1, buffer);
  }

 private:
  static std::int64_t first_bad(const std::int64_t* index, std::int64_t n, std::int64_t bound, std::int64_t unused) {
    for (std::int64_t i = 0; i < n; ++i)
      if ((index[i] < 0 || index[i] >= bound) && index[i] != unused) return i;
    return -1;
  }

  void check_indices() const {
    auto check = [&](const char* name, const std::int64_t* index, std::int64_t bound, std::int64_t unused) {
      const std::int64_t bad = index == nullptr ? -1 : first_bad(index, p_.rows, bound, unused);
      if (bad >= 0)
        throw std::out_of_range(std::string(name) + "[" + std::to_string(bad) + "] = " + std::to_string(index[bad]) +
                                " is out of range [0, " + std::to_string(bound) + ") and not " +
                                std::to_string(unused));
    };
    check(p_.target_b == nullptr ? "target" : "target[0]", p_.target, p_.classes, p_.ignore_index);
    check("target[1]", p_.target_b, p_.classes, p_.ignore_index);
    check("past_index", p_.past_index, p_.past.rows, -1);
  }

  // The divisors of the mean: W for the class term, P for the past term.
  void normalise() {
    double past_rows = 0;
    for (std::int64_t i = 0; i < p_.rows; ++i) {
      if (p_.target == nullptr) class_rows_ += 1;
      for (int which = 0; which < 2 && labels(which) != nullptr; ++which)
        if (const std::int64_t y = labels(which)[i]; y != p_.ignore_index)
          class_rows_ += share_of(i, which) * weight_of(y);
      past_rows += has_past(i);
    }
    if (p_.reduction != Reduction::mean) return;
    class_scale_ = class_rows_ == 0 ? 0 : 1 / class_rows_;
    past_term_scale_ = past_rows == 0 ? 0 : 1 / past_rows;
  }

  // The class term's target mass besides the labels' hard mass: a single soft row is used in place, anything else is
  // summed into scratch.
  void class_target(const Row<Real>& r, std::int64_t begin, Chunk<Real>& c, Scratch<Real>& scratch) const {
    if (p_.target != nullptr && r.labels == 1 && r.smooth == 0) {
      c.s = r.target[0].chunk(begin, c.n, scratch.s);
      c.a = r.soft[0];
      return;
    }
    Real* mass = scratch.s;
    for (std::int64_t j = 0; j < c.n; ++j) mass[j] = r.smooth;
    if (p_.target == nullptr) {
      const Real* probabilities = r.target[0].chunk(begin, c.n, scratch.spare);
      const Real scale = Real(class_scale_ * (1 - p_.label_smoothing));
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] += scale * probabilities[j];
    }
    if (weight_ != nullptr)
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] *= weight_[begin + j];
    for (int k = 0; k < r.labels; ++k) {
      if (r.soft[k] == 0) continue;
      const Real* soft = r.target[k].chunk(begin, c.n, scratch.spare);
      for (std::int64_t j = 0; j < c.n; ++j) mass[j] += r.soft[k] * soft[j];
    }
    c.s = mass;
    c.a = 1;
  }

  const BlendedKL& p_;
  const Real* weight_;
  const Real* lam_;
  double class_rows_ = 0;  // W
  double class_scale_ = 1;
  double past_term_scale_ = 1;
};

}  // namespace TOAST_ISA
}  // namespace toast
