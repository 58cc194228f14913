// pool_rows and carry_rows against a plain selection, in guarded memory, with 1 and 3 threads.
#include <array>
#include <cstring>
#include <iterator>
#include <vector>

#include "check.h"
#include "elements.h"
#include "kept_rows.h"
#include "random.h"

using std::int64_t;
using toast::DType;

namespace {

constexpr int64_t kIgnore = -7;
constexpr auto kDTypes = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// Random logits whose rows lie apart; what lies between them is forbidden.
Elements make_logits(Random& random, DType dtype, int64_t rows, int64_t classes, int64_t stride,
                     std::initializer_list<double> scales) {
  Elements logits(dtype, rows * stride);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < classes; ++j) logits.set(i * stride + j, random.one_of(scales) * random.normal());
    logits.forbid(i * stride + classes, stride - classes);
  }
  return logits;
}

void test_pool(unsigned seed, DType dtype, DType pool_dtype, int64_t rows, int64_t classes) {
  Random random(seed);
  check::current_case = "pool, seed " + std::to_string(seed);
  const int64_t stride = classes + random.one_of({0, 1, 7}), start = random.below(3);
  const int64_t num_classes = random.one_of({classes, classes + 5});  // more where the rows are features
  const int64_t capacity = 1 + start + random.below(rows + 2);
  const bool placed = random.once_in(2);
  Elements logits = make_logits(random, dtype, rows, classes, stride, {3, 1e-5, 1e4});
  Guarded<int64_t> labels(rows), places(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = random.once_in(4) ? kIgnore : random.below(num_classes);
  for (int64_t i = 0; i < rows; ++i) places[i] = capacity - i;  // the first beyond the pool, perhaps the last before it
  for (int threads : {1, 3}) {
    Elements pool(pool_dtype, capacity * classes), expected(pool_dtype, classes);
    Guarded<int64_t> pool_labels(capacity), positions(capacity), counts(2);
    counts[0] = start, counts[1] = 10;
    toast::PoolRows problem{dtype,
                            logits.data(),
                            rows,
                            classes,
                            stride,
                            labels.data(),
                            placed ? places.data() : nullptr,
                            num_classes,
                            kIgnore,
                            pool_dtype,
                            pool.data(),
                            pool_labels.data(),
                            positions.data(),
                            capacity,
                            counts.data(),
                            threads};
    if (rows > 0) {  // a wrong label: nothing is written
      const int64_t at = random.below(rows), label = labels[at];
      labels[at] = random.one_of({int64_t(-1), num_classes, num_classes + 1});
      CHECK(toast::pool_rows_cpu(problem) == at);
      CHECK(counts[0] == start && counts[1] == 10);
      labels[at] = label;
    }
    for (int64_t r = 0; r < capacity; ++r) CHECK(pool_labels[r] == -1 && std::isnan(pool.get(r * classes)));
    CHECK(toast::pool_rows_cpu(problem) == -1);
    CHECK(pool.intact() && pool_labels.intact() && positions.intact() && counts.intact());
    std::vector<int64_t> row_at(capacity, -1);
    int64_t next = start;
    for (int64_t i = 0; i < rows; ++i) {
      if (labels[i] == kIgnore) continue;
      const int64_t to = placed ? places[i] : next++;
      if (to >= 0 && to < capacity) row_at[to] = i;
    }
    CHECK(counts[0] == next && counts[1] == 10 + rows);
    for (int64_t r = 0; r < capacity; ++r) {
      const int64_t i = row_at[r];
      CHECK(pool_labels[r] == (i < 0 ? -1 : labels[i]));  // -1: as Guarded makes it
      CHECK(positions[r] == (i < 0 ? -1 : 10 + i));
      for (int64_t j = 0; j < classes; ++j) {
        if (i < 0) {
          CHECK(std::isnan(pool.get(r * classes + j)));
          continue;
        }
        const double z = logits.get(i * stride + j);
        const bool by_way_of_float = dtype == DType::float64 && pool_dtype != DType::float64;
        expected.set(j, by_way_of_float ? double(float(z)) : z);
        CHECK(pool.get(r * classes + j) == expected.get(j));
      }
    }
  }
}

// Every NaN stays one, a signalling one too whose set bits all are cut off.
void test_nan() {
  check::current_case = "pool of NaN";
  constexpr int64_t classes = 37;
  constexpr std::uint32_t nans[] = {0x7f800001, 0xff800001, 0x7f80ffff, 0x7fffffff, 0xffffffff, 0x7fc00000};
  Guarded<float> logits(classes);
  for (int64_t j = 0; j < classes; ++j) std::memcpy(&logits[j], &nans[j % std::size(nans)], sizeof(float));
  for (DType pool_dtype : kDTypes) {
    Elements pool(pool_dtype, classes);
    for (int64_t j = 0; j < classes; ++j) pool.set(j, 1);
    Guarded<int64_t> label(1), pool_label(1), position(1), counts(2);
    label[0] = counts[0] = counts[1] = 0;
    CHECK(toast::pool_rows_cpu({DType::float32, logits.data(), 1, classes, classes, label.data(), nullptr, classes,
                                kIgnore, pool_dtype, pool.data(), pool_label.data(), position.data(), 1, counts.data(),
                                1}) == -1);
    for (int64_t j = 0; j < classes; ++j) CHECK(std::isnan(pool.get(j)));
  }
}

void test_carry(unsigned seed, DType dtype, int64_t new_rows, int64_t others, int64_t slots, int64_t classes) {
  Random random(seed);
  check::current_case = "carry, seed " + std::to_string(seed);
  const int64_t rows = new_rows + others, stride = classes + random.one_of({0, 1, 7});
  const DType real = dtype == DType::float64 ? DType::float64 : DType::float32;
  Elements logits = make_logits(random, dtype, rows, classes, stride, {3});
  Elements score(random.one_of({DType::float64, DType::float32}), rows);
  Guarded<int64_t> labels(rows), labels_b(rows), ages(others), distilled(slots + 1);
  Guarded<float> lam(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const double drawn = std::round(4 * random.normal()) / 4;  // many are equal
    score.set(i, random.one_of({drawn, drawn, drawn, drawn, double(NAN), double(-INFINITY), double(INFINITY)}));
    labels[i] = random.once_in(3) ? kIgnore : random.below(classes);
    labels_b[i] = random.once_in(3) ? kIgnore : random.below(classes);
    lam[i] = float(random.uniform());
  }
  for (int64_t i = 0; i < others; ++i) ages[i] = 1 + random.below(3);
  for (int64_t c = 0; c <= slots; ++c) distilled[c] = c / 2;
  const bool has_labels = !random.once_in(4), triple = has_labels && random.once_in(2), statistics = !random.once_in(4);
  const bool has_ages = others > 0 || random.once_in(2);
  const int64_t max_age = 1 + random.below(3);

  // The hardest of what is left, again and again.
  std::vector<int64_t> chosen, chosen_ages;
  std::vector<bool> gone(rows);
  while (int64_t(chosen.size()) < slots) {
    int64_t best = -1;
    for (int64_t i = 0; i < rows; ++i) {
      const bool labelled = !has_labels || labels[i] != kIgnore || (triple && labels_b[i] != kIgnore);
      const int64_t age = i < new_rows ? 0 : ages[i - new_rows];
      if (!gone[i] && labelled && std::isfinite(score.get(i)) && age < max_age &&
          (best < 0 || score.get(i) > score.get(best)))
        best = i;
    }
    if (best < 0) break;
    gone[best] = true;
    chosen.push_back(best);
    chosen_ages.push_back(best < new_rows ? 0 : ages[best - new_rows]);
  }

  const int64_t count = chosen.size();
  for (int threads : {1, 3}) {
    Guarded<int64_t> slot_labels(slots), slot_labels_b(slots), index(slots), slot_ages(slots), slot_rows(slots);
    Guarded<float> slot_lam(slots);
    Guarded<bool> filled(slots);
    Elements slot_logits(dtype, slots * classes), entropy(real, slots);
    Guarded<double> logsumexp(slots);
    if (slots == others)  // as HardReplay has them: written where they are read
      for (int64_t i = 0; i < others; ++i) slot_ages[i] = ages[i];
    toast::CarryRows p{};
    p.dtype = dtype, p.logits = logits.data(), p.rows = rows, p.classes = classes, p.stride = stride;
    p.labels = has_labels ? labels.data() : nullptr, p.labels_b = triple ? labels_b.data() : nullptr;
    p.lam = triple ? lam.data() : nullptr, p.score_dtype = score.dtype(), p.score = score.data();
    p.new_rows = new_rows, p.ages = !has_ages ? nullptr : slots == others ? slot_ages.data() : ages.data();
    p.max_age = max_age, p.ignore_index = kIgnore, p.temperature = 3, p.slots = slots, p.distilled = distilled.data();
    p.slot_labels = slot_labels.data(), p.slot_labels_b = slot_labels_b.data(), p.slot_lam = slot_lam.data();
    p.slot_logits = slot_logits.data(), p.logsumexp = statistics ? logsumexp.data() : nullptr;
    p.entropy = entropy.data(), p.filled = filled.data(), p.index = index.data(), p.slot_ages = slot_ages.data();
    p.slot_rows = slot_rows.data(), p.threads = threads;
    CHECK(toast::carry_rows_cpu(p) == count);
    CHECK(slot_labels.intact() && slot_labels_b.intact() && index.intact() && slot_ages.intact() && slot_rows.intact());
    CHECK(slot_lam.intact() && filled.intact() && slot_logits.intact() && entropy.intact() && logsumexp.intact());
    for (int64_t j = 0; j < slots; ++j) {
      const bool is_filled = j < count;
      const int64_t row = is_filled ? chosen[j] : 0;
      CHECK(filled[j] == is_filled);
      CHECK(index[j] == (j < count / 2 ? j : -1));
      CHECK(slot_rows[j] == row);
      CHECK(slot_ages[j] == (is_filled ? chosen_ages[j] + 1 : 0));
      if (has_labels) CHECK(slot_labels[j] == (is_filled ? labels[row] : kIgnore));
      if (triple) CHECK(slot_labels_b[j] == (is_filled ? labels_b[row] : kIgnore));
      if (triple) CHECK(slot_lam[j] == (is_filled ? lam[row] : 1));
      CHECK(is_filled || std::isnan(slot_logits.get(j * classes)));  // as Elements makes it
      CHECK((is_filled && statistics) || (std::isnan(logsumexp[j]) && std::isnan(entropy.get(j))));
      if (!is_filled) continue;
      long double top = -INFINITY, sum = 0, dot = 0;
      for (int64_t k = 0; k < classes; ++k) {
        CHECK(slot_logits.get(j * classes + k) == logits.get(row * stride + k));
        top = std::max<long double>(top, logits.get(row * stride + k));
      }
      for (int64_t k = 0; k < classes; ++k) {
        const long double d = (logits.get(row * stride + k) - top) / 3;
        sum += std::exp(d);
        dot += std::exp(d) * d;
      }
      const double wanted = double(top / 3 + std::log(sum)), wanted_entropy = double(std::log(sum) - dot / sum);
      if (statistics) CHECK(std::fabs(logsumexp[j] - wanted) <= 0x1p-19 + 0x1p-50 * std::fabs(wanted));
      if (statistics) CHECK(std::fabs(entropy.get(j) - wanted_entropy) <= 0x1p-19 * (1 + wanted_entropy));
    }
  }
}

}  // namespace

int main() {
  check::start();
  unsigned cases = 0;
  for (DType dtype : kDTypes) {
    for (DType pool_dtype : kDTypes)
      for (int64_t classes : {1, 3, 17, 1023, 1025})
        for (int64_t rows : {0, 1, 4}) test_pool(cases++, dtype, pool_dtype, rows, classes);
    test_pool(cases++, dtype, DType::float16, 100, 2000);  // more than a thread's share
    for (int64_t classes : {1, 5, 33, 2049})
      for (auto [new_rows, others, slots] :
           {std::array<int64_t, 3>{1, 0, 1}, {8, 4, 4}, {8, 0, 4}, {6, 6, 6}, {3, 9, 2}, {20, 10, 10}})
        test_carry(cases++, dtype, new_rows, others, slots, classes);
    test_carry(cases++, dtype, 64, 32, 32, 6000);
  }
  test_nan();
  return check::finish(cases);
}
