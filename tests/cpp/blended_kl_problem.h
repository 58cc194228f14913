// Random problems for blended_kl over every option and encoding, in guarded memory.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "blended_kl.h"
#include "elements.h"
#include "random.h"

using std::int64_t;
using toast::BlendedKL;
using toast::DType;
using toast::Reduction;
using toast::SoftRows;

using Row = std::vector<double>;
using Rows = std::vector<Row>;

inline double logsumexp(const Row& x) {
  double top = -INFINITY;
  long double sum = 0;
  for (double v : x) {
    if (std::isnan(v)) return NAN;
    top = std::max(top, v);
  }
  if (std::isinf(top)) return top;
  for (double v : x) sum += std::exp(v - top);
  return top + std::log(double(sum));
}

inline Row log_softmax(Row x, double temperature) {
  for (double& v : x) v /= temperature;
  const double total = logsumexp(x);
  for (double& v : x) v -= total;
  return x;
}

enum class Encoding { dense, top_k, logits };

// A table of soft rows as the kernel takes it, and the probabilities it stands for.
struct Table {
  SoftRows rows;
  Elements values, entropy;
  Guarded<double> logsumexp;
  Guarded<std::int32_t> indices;
  Guarded<bool> filled;
  Rows probabilities;

  bool has(int64_t row) { return rows.filled == nullptr || filled[row]; }
  bool intact() {
    return values.intact() && logsumexp.intact() && entropy.intact() && indices.intact() && filled.intact();
  }
};

struct Problem {
  BlendedKL p{};
  std::string name;
  DType real;
  Elements logits, weight, lam, upstream;
  Guarded<int64_t> target, target_b, past_index;
  bool aligned = false;      // every row of logits and tables begins at 16 bytes, and all are of one type
  Table given, soft, past;   // given: class probabilities instead of labels
  Rows z;                    // the logits as they were stored
  std::vector<bool> masked;  // classes whose logits are -inf and whose soft targets are 0

  Elements loss, gradient, stats;
  Guarded<int64_t> argmax;

  int64_t stride_of(int64_t elements) const {
    const int64_t unit = aligned ? 16 / toast::size_of(p.dtype) : 1;
    return (elements + unit - 1) / unit * unit;
  }
  // Fresh outputs, all NaN.
  void make_outputs() {
    loss = Elements(real, p.reduction == Reduction::none ? p.rows : 1);
    gradient = Elements(p.dtype, p.rows * p.classes);
    stats = Elements(real, 2 * p.rows);
    argmax = Guarded<int64_t>(p.rows);
    p.loss = loss.data();
    p.gradient = gradient.data();
    p.stats = stats.data();
    p.argmax = argmax.data();
  }
  bool intact() {
    return loss.intact() && gradient.intact() && stats.intact() && argmax.intact() && logits.intact() &&
           given.intact() && soft.intact() && past.intact();
  }
};

// Fills t with `rows` random rows; with `optional`, some may be missing.
inline void make_table(Random& random, const Problem& problem, Encoding encoding, int64_t rows, bool optional,
                       Table& t) {
  const int64_t classes = problem.p.classes;
  const DType any = random.one_of({DType::float64, DType::float32, DType::bfloat16, DType::float16});
  const DType dtype = problem.aligned ? problem.p.dtype : any;
  const int64_t width = encoding == Encoding::top_k ? 1 + random.below(std::min<int64_t>(classes, 150)) : classes;
  const int64_t stride = problem.stride_of(width + random.one_of({0, 0, 1, 5}));
  const double temperature = encoding == Encoding::logits ? random.one_of({1.0, 2.0, 3.5}) : 1.0;
  // Logits far from 0; in float64, as they are stored or computed in, that would cost digits.
  const bool wide = dtype == DType::float64 || problem.real == DType::float64;
  const double shift = wide ? 0 : random.one_of({0.0, 0.0, 1000.0});
  t.values = Elements(dtype, rows * stride);
  t.entropy = Elements(problem.real, rows);
  t.logsumexp = Guarded<double>(encoding == Encoding::logits ? rows : 0);
  t.indices = Guarded<std::int32_t>(encoding == Encoding::top_k ? rows * width : 0);
  t.filled = Guarded<bool>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    t.filled[r] = !random.once_in(3);
    Row logits(classes), q(classes);
    for (int64_t j = 0; j < classes; ++j) logits[j] = problem.masked[j] ? -INFINITY : shift + 3 * random.normal();
    auto set = [&](int64_t j, double x) { return t.values.set(r * stride + j, x); };
    if (encoding == Encoding::logits) {
      for (int64_t j = 0; j < classes; ++j) q[j] = set(j, logits[j]) / temperature;
      const double total = t.logsumexp[r] = logsumexp(q);
      for (double& x : q) x = std::exp(x - total);
    } else {
      const Row ideal = log_softmax(logits, 1);
      std::vector<std::int32_t> order(classes);  // the listed classes, ascending, then the others
      for (int64_t j = 0; j < classes; ++j) order[j] = std::int32_t(j);
      if (encoding == Encoding::top_k)
        for (int64_t k = 0; k < width; ++k) std::swap(order[k], order[k + random.below(classes - k)]);
      std::sort(order.begin(), order.begin() + width);
      double mass = 0;
      for (int64_t k = 0; k < width; ++k) mass += q[order[k]] = set(k, std::exp(ideal[order[k]]));
      for (int64_t k = width; k < classes; ++k) q[order[k]] = std::max(0.0, 1 - mass) / double(classes - width);
      if (encoding == Encoding::top_k) std::copy(order.begin(), order.begin() + width, &t.indices[r * width]);
    }
    long double entropy = 0;  // thousands of equal terms, whose roundings in double all go the same way
    for (double x : q) entropy -= x > 0 ? static_cast<long double>(x) * std::log(static_cast<long double>(x)) : 0;
    t.entropy.set(r, static_cast<double>(entropy));
    t.probabilities.push_back(q);
    t.values.forbid(r * stride + width, stride - width);
  }
  t.rows = {dtype, t.values.data(), stride, rows, width, nullptr, nullptr, t.entropy.data(), nullptr, temperature};
  if (encoding == Encoding::top_k) t.rows.indices = t.indices.data();
  if (encoding == Encoding::logits) t.rows.logsumexp = t.logsumexp.data();
  if (optional && random.once_in(2)) t.rows.filled = t.filled.data();
}

inline void make_logits(Random& random, Problem& problem) {
  BlendedKL& p = problem.p;
  const int64_t offset = random.one_of({0, 0, 1, 3}) * !problem.aligned;
  p.stride = problem.stride_of(p.classes + random.one_of({0, 0, 1, 7}));
  problem.logits = Elements(p.dtype, offset + p.rows * p.stride);
  problem.logits.forbid(0, offset);
  const double scale = random.one_of({0.1, 1.0, 5.0}), shift = random.one_of({0.0, 0.0, 40.0, -40.0});
  const bool diverges = random.once_in(8);  // some rows have a NaN
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t start = offset + i * p.stride;
    Row row(p.classes);
    for (int64_t j = 0; j < p.classes; ++j)
      row[j] = problem.logits.set(start + j, problem.masked[j] ? -INFINITY : shift + scale * random.normal());
    if (diverges && random.once_in(3)) {
      const int64_t j = random.below(p.classes);
      row[j] = problem.logits.set(start + j, NAN);
    }
    problem.z.push_back(row);
    problem.logits.forbid(start + p.classes, p.stride - p.classes);
  }
  p.logits = problem.logits.at(offset);
}

// Labels, pairs of labels or probabilities. Labels stay below `bound`.
inline void make_target(Random& random, Problem& problem, int64_t bound) {
  BlendedKL& p = problem.p;
  p.ignore_index = random.one_of<int64_t>({-100, -100, 0, 3});
  const bool ignores = random.once_in(2);
  auto labels = [&](Guarded<int64_t>& out) {
    out = Guarded<int64_t>(p.rows);
    for (int64_t i = 0; i < p.rows; ++i) {
      int64_t y = random.below(bound);
      for (int64_t j = 0; j < bound && problem.masked[y]; ++j) y = (y + 1) % bound;
      out[i] = ignores && random.once_in(4) ? p.ignore_index : y;
    }
    return out.data();
  };
  const int kind = random.one_of({0, 0, 1, 2});
  if (kind == 2) {
    make_table(random, problem, Encoding::dense, p.rows, false, problem.given);
    p.probabilities = problem.given.rows;
    return;
  }
  p.target = labels(problem.target);
  if (kind == 0) return;
  p.target_b = labels(problem.target_b);
  problem.lam = Elements(problem.real, p.rows);
  for (int64_t i = 0; i < p.rows; ++i)
    problem.lam.set(i, random.one_of({0.0, 1.0, random.uniform(), random.uniform()}));
  p.lam = problem.lam.data();
}

inline Problem make_problem(unsigned seed, DType dtype, int64_t rows, int64_t classes, bool aligned = false) {
  Random random(seed);
  Problem problem;
  problem.aligned = aligned;
  BlendedKL& p = problem.p;
  p.dtype = dtype;
  p.rows = rows;
  p.classes = classes;
  problem.name = "problem " + std::to_string(seed) + ": dtype " + std::to_string(int(dtype)) + ", " +
                 std::to_string(rows) + " x " + std::to_string(classes);
  problem.real = dtype == DType::float64 ? DType::float64 : DType::float32;
  problem.masked.assign(classes, false);
  const bool masks = classes > 1 && random.once_in(4);
  const int64_t run = random.once_in(2) ? classes - 1 : 0;  // all but the last, so that whole chunks are -inf, or some
  for (int64_t j = 0; masks && j < classes; ++j)
    problem.masked[j] = j < run || (run == 0 && j > 0 && random.once_in(4));
  make_logits(random, problem);

  // A full table for many classes would take long to make: the labels use its first rows only.
  const int64_t table_rows = random.once_in(2) ? std::min<int64_t>(classes, 8) : 0;
  make_target(random, problem, table_rows == 0 ? classes : table_rows);
  if (random.once_in(2)) {
    problem.weight = Elements(problem.real, classes);
    for (int64_t j = 0; j < classes; ++j) problem.weight.set(j, random.once_in(8) ? 0 : 0.25 + random.uniform());
    p.weight = problem.weight.data();
  }
  // Smoothing puts mass on masked classes, which makes the loss infinite: not always.
  if (random.once_in(masks ? 4 : 2)) p.label_smoothing = random.one_of({0.1, 0.5, 1.0});

  auto encoding = [&] { return random.one_of({Encoding::dense, Encoding::top_k, Encoding::logits}); };
  if (table_rows > 0 && p.target != nullptr) {
    make_table(random, problem, encoding(), table_rows, true, problem.soft);
    p.soft = problem.soft.rows;
    p.alpha = random.one_of({0.0, 0.3, 0.8, 1.0});
  }
  p.temperature = random.one_of({1.0, 2.0, 3.0, 4.0, 0.5, 2.5, 8.0});
  if (random.once_in(2)) {
    const int64_t past_rows = 1 + random.below(4);
    make_table(random, problem, encoding(), past_rows, true, problem.past);
    p.past = problem.past.rows;
    problem.past_index = Guarded<int64_t>(rows);
    for (int64_t i = 0; i < rows; ++i) problem.past_index[i] = random.below(past_rows + 1) - 1;
    p.past_index = problem.past_index.data();
    p.past_weight = random.one_of({0.0, 0.5, 1.0, 2.0});
  }
  p.reduction = random.one_of({Reduction::none, Reduction::mean, Reduction::sum});
  if (random.once_in(2)) {
    p.upstream_stride = random.below(2);
    const int64_t n = p.upstream_stride == 0 ? 1 : rows;
    problem.upstream = Elements(problem.real, n);
    for (int64_t i = 0; i < n; ++i) problem.upstream.set(i, random.one_of({0.0, -1.0, 0.375, 1 + random.uniform()}));
    p.upstream = problem.upstream.data();
  }
  problem.make_outputs();
  return problem;
}
