// pool_rows and carry_rows on the CPU: which row goes where is decided in the order of the rows; threads copy them.
#include "kept_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/convert.h"
#include "cpu/parallel.h"
#include "softmax_statistics.h"

namespace toast {
namespace TOAST_ISA {

void softmax_statistics(const SoftmaxStatistics& problem);

namespace {

// Logits worth a thread of their own.
constexpr std::int64_t kGrain = 65536;
constexpr std::int64_t kConverted = 1024;  // elements that are converted at a time

// n elements of `in` from element `from` on to `out` from element `to` on, converted as torch does: by way of float,
// or of double where they are double.
void convert(DType in_dtype, const void* in, std::int64_t from, std::int64_t n, DType out_dtype, void* out,
             std::int64_t to) {
  if (in_dtype == out_dtype) {
    std::memcpy(static_cast<char*>(out) + to * size_of(out_dtype),
                static_cast<const char*>(in) + from * size_of(in_dtype), n * size_of(in_dtype));
    return;
  }
  const auto by_way_of = [&](auto zero) {
    using Real = decltype(zero);
    Real buffer[kConverted];
    with_dtype(out_dtype, [&](auto element) {
      for (std::int64_t k = 0; k < n; k += kConverted) {
        const std::int64_t some = std::min(kConverted, n - k);
        round_to(as_real(in_dtype, in, from + k, some, buffer), some, static_cast<decltype(element)*>(out) + to + k);
      }
    });
  };
  if (in_dtype == DType::float64)
    by_way_of(double{});
  else
    by_way_of(float{});
}

struct Move {
  std::int64_t row, to;
};

struct Candidate {
  double score;
  std::int64_t row, age;
};

bool harder(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

std::vector<Candidate> candidates(const CarryRows& p) {
  std::vector<Candidate> found;
  found.reserve(p.rows);
  for (std::int64_t i = 0; i < p.rows; ++i) {
    const bool labelled = p.labels == nullptr || p.labels[i] != p.ignore_index ||
                          (p.labels_b != nullptr && p.labels_b[i] != p.ignore_index);
    const double score = p.score_dtype == DType::float64 ? static_cast<const double*>(p.score)[i]
                                                         : static_cast<const float*>(p.score)[i];
    const std::int64_t age = i < p.new_rows || p.ages == nullptr ? 0 : p.ages[i - p.new_rows];
    if (labelled && std::isfinite(score) && age < p.max_age) found.push_back({score, i, age});
  }
  return found;
}

}  // namespace

std::int64_t pool_rows(const PoolRows& p) {
  for (std::int64_t i = 0; i < p.rows; ++i)
    if ((p.labels[i] < 0 || p.labels[i] >= p.num_classes) && p.labels[i] != p.ignore_index) return i;
  std::vector<Move> moves;
  moves.reserve(p.rows);
  for (std::int64_t i = 0; i < p.rows; ++i) {
    if (p.labels[i] == p.ignore_index) continue;
    const std::int64_t to = p.places != nullptr ? p.places[i] : p.counts[0]++;
    if (to < 0 || to >= p.capacity) continue;
    p.pool_labels[to] = p.labels[i];
    p.positions[to] = p.counts[1] + i;
    moves.push_back({i, to});
  }
  p.counts[1] += p.rows;
  const std::int64_t count = moves.size();
  const int threads = threads_for(count * p.width / kGrain, p.threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (std::int64_t k = 0; k < count; ++k)
    convert(p.dtype, p.logits, moves[k].row * p.stride, p.width, p.pool_dtype, p.pool, moves[k].to * p.width);
  return -1;
}

std::int64_t carry_rows(const CarryRows& p) {
  std::vector<Candidate> chosen = candidates(p);  // all ages are read before any is written: ages may be slot_ages
  const std::int64_t count = std::min<std::int64_t>(p.slots, chosen.size());
  std::partial_sort(chosen.begin(), chosen.begin() + count, chosen.end(), harder);
  for (std::int64_t j = 0; j < p.slots; ++j) {
    const bool filled = j < count;
    const std::int64_t row = filled ? chosen[j].row : 0;
    p.filled[j] = filled;
    p.index[j] = j < p.distilled[count] ? j : -1;
    p.slot_rows[j] = row;
    p.slot_ages[j] = filled ? chosen[j].age + 1 : 0;
    if (p.labels != nullptr) p.slot_labels[j] = filled ? p.labels[row] : p.ignore_index;
    if (p.labels_b != nullptr) p.slot_labels_b[j] = filled ? p.labels_b[row] : p.ignore_index;
    if (p.lam != nullptr) p.slot_lam[j] = filled ? p.lam[row] : 1;
  }
  const int threads = threads_for(count * p.classes / kGrain, p.threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (std::int64_t j = 0; j < count; ++j)
    convert(p.dtype, p.logits, chosen[j].row * p.stride, p.classes, p.dtype, p.slot_logits, j * p.classes);
  if (p.logsumexp != nullptr)
    softmax_statistics(
        {p.dtype, p.slot_logits, count, p.classes, p.classes, p.temperature, p.logsumexp, p.entropy, p.threads});
  return count;
}

}  // namespace TOAST_ISA
}  // namespace toast
