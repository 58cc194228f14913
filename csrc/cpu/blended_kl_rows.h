// What blended_kl computes on, row by row and chunk by chunk: labels, weights, soft targets and past predictions
// turned into masses, scaled as the reduction wants. Listed classes are worked on one by one; a computed table costs a
// sweep of its own.
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

// Rows up to this many classes keep their exponentials and mass between the two loops; those of a longer row would fall
// out of the second-level cache, and the first loop runs again.
constexpr std::int64_t kKeptRow = 32768;

// A thread's working memory.
template <class Real>
struct Scratch {
  Scratch(std::int64_t classes, std::int64_t chunks, bool keep, bool past)
      : by_chunk(chunks), chunks(chunks), whole_row(keep && classes <= kKeptRow) {
    constexpr std::int64_t lanes = Vec<Real>::lanes;
    const auto padded = [&](std::int64_t n) { return (n + lanes - 1) / lanes * lanes; };
    const std::int64_t chunk = padded(std::min(classes, kChunk)), row = whole_row ? padded(classes) : chunk;
    const std::int64_t total = 5 * chunk + (past ? 3 : 2) * row;
    memory.reset(static_cast<Real*>(std::aligned_alloc(64, total * sizeof(Real))));
    if (memory == nullptr) throw std::bad_alloc();
    Real* next = memory.get();
    for (Real** buffer : {&dense[0], &dense[1], &spare, &gradient, &listed})
      *buffer = std::exchange(next, next + chunk);
    kept.p = std::exchange(next, next + row);
    kept.t = std::exchange(next, next + row);
    if (past) kept.e = next;
    std::fill(listed, listed + chunk, Real(0));
  }

  // Where the chunk that begins there is kept.
  Kept<Real> kept_at(std::int64_t begin) const {
    const std::int64_t at = whole_row ? begin : 0;
    return {kept.p + at, kept.e == nullptr ? nullptr : kept.e + at, kept.t + at};
  }
  Chunk<Real>& chunk_at(std::int64_t begin) { return chunks[begin / kChunk]; }

  struct Free {
    void operator()(Real* p) const { std::free(p); }
  };
  std::vector<Statistics> by_chunk;  // of the row
  std::vector<Chunk<Real>> chunks;   // of the row
  const bool whole_row;              // kept holds all of a row, else only its last chunk
  std::unique_ptr<Real, Free> memory;
  Real *dense[2], *spare, *gradient;  // [chunk] each
  Real* listed;                       // [chunk]: zeros, but while listed mass is added up in it
  Kept<Real> kept;
};

// Where mass comes from: the soft row of the first or second label (or the row of probabilities), the past, or all that
// the class term has besides the labels, summed.
enum Source { kSoft, kSoftB, kPast, kClassTerm };

// A row as the formulas see it, scaled by the reduction.
template <class Real>
struct Row {
  std::int64_t index;
  bool used = false, has_past = false;
  int labels = 0;
  std::int64_t label[2];
  double hard[2];         // mass at label
  Real smooth = 0;        // mass that label smoothing gives each class, times its class weight
  SoftRow<Real> soft[3];  // by Source
  Real scale[3] = {};     // of their probabilities: lambda T / P for the past; 0 where there is none
  double past_entropy = 0;

  // The same mass as the loops take it. Listed: classes that are worked on one by one.
  double uniform = 0;
  Source dense[2], listed[3];
  int tables = 0, lists = 0;
  double sparse_mass[2] = {};  // all that is not dense, of the class term and of the past

  // Calls f(class, mass) for the labels and the listed classes of [begin, end), which may be the same: mass that they
  // have besides the uniform and the dense.
  template <class F>
  void each_listed(std::int64_t begin, std::int64_t end, F&& f) const {
    for (int k = 0; k < labels; ++k)
      if (label[k] >= begin && label[k] < end) f(label[k], hard[k]);
    for (int k = 0; k < lists; ++k) {
      const double each = scale[listed[k]], tail = soft[listed[k]].tail();
      soft[listed[k]].each_listed(begin, end,
                                  [&](std::int64_t j, Real listed) { f(j, each * (double(listed) - tail)); });
    }
  }
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

  // Whether the mean of the class term has anything to divide by.
  bool has_class_weight() const { return class_weight_ != 0; }

  Row<Real> row(std::int64_t i) const {
    Row<Real> r;
    r.index = i;
    r.used = used(i);
    if (!r.used) return r;
    const double eps = p_.label_smoothing;
    double smooth = 0;
    if (p_.target == nullptr) {
      r.soft[kSoft] = SoftRow<Real>(p_.probabilities, i, p_.classes);
      r.scale[kSoft] = Real(class_scale_ * (1 - eps));
      smooth = eps;
    }
    for (int which = 0; which < 2 && labels(which) != nullptr; ++which) {
      const std::int64_t y = labels(which)[i];
      if (y == p_.ignore_index) continue;
      const double share = share_of(i, which);
      if (share == 0) continue;  // whose weight may be infinite
      const bool blended = p_.soft.values != nullptr && (p_.soft.filled == nullptr || p_.soft.filled[y]);
      const double alpha = blended ? p_.alpha : 0;
      const int k = r.labels++;
      r.label[k] = y;
      r.hard[k] = class_scale_ * share * (1 - alpha) * (1 - eps) * weight_of(y);
      r.sparse_mass[0] += r.hard[k];
      if (alpha != 0) {
        r.scale[which] = Real(class_scale_ * share * alpha * weight_of(y));
        r.soft[which] = SoftRow<Real>(p_.soft, y, p_.classes);
      }
      smooth += share * (1 - alpha) * eps;
    }
    r.smooth = Real(class_scale_ * smooth / double(p_.classes));
    r.has_past = has_past(i);
    if (r.has_past) {
      const std::int64_t row = p_.past_index[i];
      r.soft[kPast] = SoftRow<Real>(p_.past, row, p_.classes);
      r.scale[kPast] = Real(past_scale_ * p_.past_weight * p_.temperature);
      r.past_entropy = double(static_cast<const Real*>(p_.past.entropy)[row]);
    }
    lay_out(r);
    return r;
  }

  // Keeps the tails of the row's lists off its logits of -inf; returns whether there are both.
  bool keep_lists_off_masked(Row<Real>& r) const {
    const auto is_list = [](const SoftRow<Real>& soft) { return soft.is_list(); };
    if (std::none_of(r.soft, r.soft + 3, is_list)) return false;
    std::int64_t masked = 0;
    for (std::int64_t j = 0; j < p_.classes; ++j) masked += logit(r.index, j) == -std::numeric_limits<Real>::infinity();
    if (masked == 0) return false;
    for (Source source : {kSoft, kSoftB, kPast}) {
      if (!r.soft[source].is_list()) continue;
      const double more = r.soft[source].keep_off_masked(p_.dtype, logits_at(r.index, 0), masked, p_.classes);
      if (source == kPast) r.past_entropy += more;
    }
    r.uniform = r.tables = r.lists = 0;
    r.sparse_mass[0] = r.sparse_mass[1] = 0;
    for (int k = 0; k < r.labels; ++k) r.sparse_mass[0] += r.hard[k];
    lay_out(r);
    return true;
  }

  // Sets a chunk to what the loops read. Mass that is computed goes where it lasts until the second loop, if that reads
  // it. (Set in place, as Statistics are: a copy would be loaded before what was stored has arrived.)
  void set_chunk(Chunk<Real>& c, const Row<Real>& r, std::int64_t begin, Scratch<Real>& scratch) const {
    c.n = std::min(kChunk, p_.classes - begin);
    const auto [next_row, next_class] = after(r.index, begin, p_.classes <= kChunk ? 2 : 1);
    c.z = {p_.dtype, logits_at(r.index, begin), logits_at(next_row, next_class)};
    c.uniform = Real(r.uniform);
    c.spread = c.uniform != 0;
    for (int k = 0; k < r.tables; ++k) {
      const Source source = r.dense[k];
      Real* buffer = r.tables == 1 ? scratch.kept_at(begin).t : scratch.dense[k];
      if (source == kClassTerm) {
        class_mass(r, begin, c.n, buffer, scratch.spare);
        c.dense[k] = in_buffer<Real>(buffer);
        c.scale[k] = 1;
      } else {
        c.dense[k] = r.soft[source].chunk(begin, c.n, buffer, table_row(source, r.index, next_row), next_class);
        c.scale[k] = r.scale[source];
      }
    }
  }

  // What to prefetch while a chunk is worked on, as many elements: {row, class}. A row of one chunk is over before
  // memory has answered, so that its logits and tables are those of the row after next.
  std::pair<std::int64_t, std::int64_t> after(std::int64_t i, std::int64_t begin, std::int64_t rows) const {
    const std::int64_t n = std::min(kChunk, p_.classes - begin);
    if (begin + n == p_.classes) return {std::min(i + rows, p_.rows - 1), 0};
    return {i, std::min(begin + n, p_.classes - n)};
  }

  // Mass of the class term without the labels' hard mass, class by class.
  void class_mass(const Row<Real>& r, std::int64_t begin, std::int64_t n, Real* mass, Real* spare) const {
    std::fill(mass, mass + n, r.smooth);
    const auto add = [&](Source source) {
      if (r.scale[source] == 0) return;
      const Real* soft = r.soft[source].chunk(begin, n, spare);
      for (std::int64_t j = 0; j < n; ++j) mass[j] += r.scale[source] * soft[j];
    };
    if (p_.target == nullptr) add(kSoft);
    if (weight_ != nullptr)
      for (std::int64_t j = 0; j < n; ++j) mass[j] *= weight_[begin + j];
    if (p_.target != nullptr) add(kSoft), add(kSoftB);
  }

  // All of its mass, class by class.
  void mass(const Row<Real>& r, std::int64_t begin, std::int64_t n, Real* mass, Real* spare) const {
    class_mass(r, begin, n, mass, spare);
    for (int k = 0; k < r.labels; ++k)
      if (r.label[k] >= begin && r.label[k] < begin + n) mass[r.label[k] - begin] += Real(r.hard[k]);
    if (!r.has_past) return;
    const Real* past = r.soft[kPast].chunk(begin, n, spare);
    for (std::int64_t j = 0; j < n; ++j) mass[j] += r.scale[kPast] * past[j];
  }

  Input<Real> logits(std::int64_t i, std::int64_t begin) const { return {p_.dtype, logits_at(i, begin), nullptr}; }

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
      if (p_.target == nullptr) class_weight_ += 1;
      for (int which = 0; which < 2 && labels(which) != nullptr; ++which)
        if (const std::int64_t y = labels(which)[i]; y != p_.ignore_index && share_of(i, which) != 0)
          class_weight_ += share_of(i, which) * weight_of(y);
      past_rows += has_past(i);
    }
    if (p_.reduction != Reduction::mean) return;
    class_scale_ = class_weight_ == 0 ? 0 : 1 / class_weight_;
    past_scale_ = past_rows == 0 ? 0 : 1 / past_rows;
  }

  // Decides how the loops take a row's mass: what is uniform, in a list or in a table is taken as it is; only class
  // weights of soft mass, and a third table, have the class term summed beforehand.
  void lay_out(Row<Real>& r) const {
    const auto has = [&](Source source) { return r.scale[source] != 0; };
    const auto dense = [&](Source source) { return has(source) && !r.soft[source].is_sparse(p_.classes); };
    const bool weighted = weight_ != nullptr && (p_.target == nullptr || r.smooth != 0);
    const auto take = [&](Source source, double& mass) {
      if (!has(source)) return;
      if (dense(source)) {
        r.dense[r.tables++] = source;
        return;
      }
      r.listed[r.lists++] = source;
      r.uniform += double(r.scale[source]) * double(r.soft[source].tail());
      mass += double(r.scale[source]) * r.soft[source].mass();
    };
    if (weighted || dense(kSoft) + dense(kSoftB) + dense(kPast) == 3) {
      r.dense[r.tables++] = kClassTerm;
    } else {
      r.uniform = r.smooth;
      r.sparse_mass[0] += double(r.smooth) * double(p_.classes);
      take(kSoft, r.sparse_mass[0]);
      take(kSoftB, r.sparse_mass[0]);
    }
    take(kPast, r.sparse_mass[1]);
  }

  const void* logits_at(std::int64_t i, std::int64_t j) const {
    return static_cast<const char*>(p_.logits) + (i * p_.stride + j) * size_of(p_.dtype);
  }

  // The row of its table that row i takes; that of row `otherwise` where it takes none.
  std::int64_t table_row(Source source, std::int64_t otherwise, std::int64_t i) const {
    if (source == kPast) return p_.past_index[has_past(i) ? i : otherwise];
    if (p_.target == nullptr) return i;
    return labels(source)[labels(source)[i] != p_.ignore_index ? i : otherwise];
  }

  const BlendedKL& p_;
  const Real* weight_;
  const Real* lam_;
  double class_weight_ = 0;  // W
  double class_scale_ = 1;
  double past_scale_ = 1;
};

}  // namespace TOAST_ISA
}  // namespace toast
