// Reading SoftRows a chunk at a time, whatever their encoding.
#pragma once

#include <algorithm>

#include "blended_kl.h"
#include "cpu/convert.h"

namespace toast {
namespace TOAST_ISA {

// One row of a SoftRows.
template <class Real>
class SoftRow {
 public:
  SoftRow() = default;
  SoftRow(const SoftRows& rows, std::int64_t row, std::int64_t classes) : rows_(&rows), start_(row * rows.stride) {
    if (rows.indices != nullptr) {
      indices_ = rows.indices + row * rows.width;
      Real listed[kBatch];
      double mass = 0;
      for (std::int64_t i = 0; i < rows.width; i += kBatch) {
        const std::int64_t n = std::min(kBatch, rows.width - i);
        const Real* values = as_real(rows.dtype, rows.values, start_ + i, n, listed);
        for (std::int64_t j = 0; j < n; ++j) mass += values[j];
      }
      tail_ = Real(std::max(0.0, 1 - mass) / double(std::max<std::int64_t>(classes - rows.width, 1)));
    }
    if (rows.logsumexp != nullptr) {
      // exp(z / T - logsumexp) = exp((z - shift) / T - remainder): the rounding of logits far from 0 stays out of it.
      const double shift = rows.logsumexp[row] * rows.temperature;
      shift_ = Real(shift);
      remainder_ = Real((shift - double(shift_)) / rows.temperature);
    }
  }

  // Probabilities of the classes [begin, begin + n): where they lie, or written to buffer.
  const Real* chunk(std::int64_t begin, std::int64_t n, Real* buffer) const {
    if (indices_ != nullptr) return top_k_chunk(begin, n, buffer);
    const Real* values = as_real(rows_->dtype, rows_->values, start_ + begin, n, buffer);
    return rows_->logsumexp == nullptr ? values : softmax_chunk(values, n, buffer);
  }

 private:
  static constexpr std::int64_t kBatch = 64;

  const Real* top_k_chunk(std::int64_t begin, std::int64_t n, Real* buffer) const {
    std::fill(buffer, buffer + n, tail_);
    const std::int32_t* end = indices_ + rows_->width;
    const std::int32_t* first = std::lower_bound(indices_, end, begin);
    const std::int32_t* last = std::lower_bound(first, end, begin + n);
    Real listed[kBatch];
    for (const std::int32_t* index = first; index < last; index += kBatch) {
      const std::int64_t count = std::min<std::int64_t>(kBatch, last - index);
      const Real* values = as_real(rows_->dtype, rows_->values, start_ + (index - indices_), count, listed);
      for (std::int64_t j = 0; j < count; ++j) buffer[index[j] - begin] = values[j];
    }
    return buffer;
  }

  const Real* softmax_chunk(const Real* logits, std::int64_t n, Real* buffer) const {
    using V = Vec<Real>;
    const V inverse = V::broadcast(Real(1 / rows_->temperature));
    const V shift = V::broadcast(shift_), remainder = V::broadcast(-remainder_);
    const auto softmax = [&](V z) { return exp(fma(z - shift, inverse, remainder)); };
    std::int64_t j = 0;
    for (; j + V::lanes <= n; j += V::lanes) softmax(V::load(logits + j)).store(buffer + j);
    if (const int rest = int(n - j)) store_first(softmax(load_first(logits + j, rest, Real(0))), buffer + j, rest);
    return buffer;
  }

  const SoftRows* rows_ = nullptr;
  std::int64_t start_ = 0;  // of the row in values
  const std::int32_t* indices_ = nullptr;
  Real tail_ = 0;                   // of a top-k row: probability of each class that it does not list
  Real shift_ = 0, remainder_ = 0;  // of logits: logsumexp times the temperature, in two terms
};

}  // namespace TOAST_ISA
}  // namespace toast
