// Reading SoftRows a chunk at a time, whatever their encoding: probabilities cost nothing, being read where they lie; a
// list or logits are written out, if they are dense.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

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
      each_listed(0, classes, [&](std::int64_t, Real probability) { mass_ += probability; });
      const double unlisted = double(std::max<std::int64_t>(classes - rows.width, 1));
      tail_ = Real(std::max(0.0, 1 - mass_) / unlisted);
      mass_ += double(tail_) * double(classes - rows.width);
    }
    if (rows.logsumexp != nullptr) {
      // exp(z / T - logsumexp) = exp((z - shift) / T - remainder): the rounding of logits far from 0 stays out of it.
      const double shift = rows.logsumexp[row] * rows.temperature;
      shift_ = Real(shift);
      remainder_ = Real((shift - double(shift_)) / rows.temperature);
    }
  }

  bool is_list() const { return indices_ != nullptr; }
  // Whether it is a list so short that it is cheaper to add its classes one by one to the uniform tail.
  bool is_sparse(std::int64_t classes) const {
    return is_list() && logits_ == nullptr && rows_->width * kSparse <= classes;
  }
  Real tail() const { return tail_; }    // of a list: the probability of each class that is not on it
  double mass() const { return mass_; }  // of a list and its tail

  // Spreads the tail of a list over the classes whose logits are not -inf; `masked` of them are. Returns what that adds
  // to the row's entropy.
  double keep_off_masked(DType dtype, const void* logits, std::int64_t masked, std::int64_t classes) {
    dtype_ = dtype;
    logits_ = logits;
    double listed = 0;
    each_listed(0, classes, [&](std::int64_t j, Real probability) {
      listed += probability;
      masked -= is_masked(j);
    });
    const double rest = std::max(0.0, 1 - listed), unlisted = double(classes - rows_->width);
    const double sharing = unlisted - double(masked);
    tail_ = sharing > 0 ? Real(rest / sharing) : 0;
    mass_ = listed + double(tail_) * sharing;
    return masked == 0 || rest == 0 ? 0 : rest * std::log((sharing > 0 ? sharing : rest) / unlisted);
  }

  // Probabilities of the classes [begin, begin + n): where they lie, or written to buffer. To prefetch: those from
  // class next_class of row next_row on.
  Input<Real> chunk(std::int64_t begin, std::int64_t n, Real* buffer, std::int64_t next_row,
                    std::int64_t next_class) const {
    if (indices_ == nullptr && rows_->logsumexp == nullptr && Input<Real>::takes(rows_->dtype))
      return {rows_->dtype, element(start_ + begin), element(next_row * rows_->stride + next_class)};
    return in_buffer<Real>(chunk(begin, n, buffer));
  }
  const Real* chunk(std::int64_t begin, std::int64_t n, Real* buffer) const {
    if (indices_ != nullptr) {
      std::fill(buffer, buffer + n, tail_);
      for (std::int64_t j = 0; logits_ != nullptr && j < n; ++j)
        if (is_masked(begin + j)) buffer[j] = 0;
      each_listed(begin, begin + n, [&](std::int64_t j, Real probability) { buffer[j - begin] = probability; });
      return buffer;
    }
    const Real* values = as_real(rows_->dtype, rows_->values, start_ + begin, n, buffer);
    return rows_->logsumexp == nullptr ? values : softmax_chunk(values, n, buffer);
  }

  // Calls f(class, probability) for the classes of [begin, end) that it lists.
  template <class F>
  void each_listed(std::int64_t begin, std::int64_t end, F&& f) const {
    const std::int32_t* const all = indices_ + rows_->width;
    const std::int32_t* const first = begin == 0 ? indices_ : std::lower_bound(indices_, all, begin);
    Real some[kBatch];
    for (const std::int32_t* index = first; index < all && *index < end; index += kBatch) {
      const std::int64_t count = std::min<std::int64_t>(kBatch, all - index);
      const Real* values = as_real(rows_->dtype, rows_->values, start_ + (index - indices_), count, some);
      for (std::int64_t k = 0; k < count && index[k] < end; ++k) f(index[k], values[k]);
    }
  }

 private:
  static constexpr std::int64_t kBatch = 64, kSparse = 64;

  bool is_masked(std::int64_t j) const {
    Real buffer[1];
    return *as_real(dtype_, logits_, j, 1, buffer) == -std::numeric_limits<Real>::infinity();
  }

  const void* element(std::int64_t i) const {
    return static_cast<const char*>(rows_->values) + i * size_of(rows_->dtype);
  }

  const Real* softmax_chunk(const Real* logits, std::int64_t n, Real* buffer) const {
    using V = Vec<Real>;
    const V inverse = V::broadcast(Real(1 / rows_->temperature));
    const V shift = V::broadcast(shift_), remainder = V::broadcast(-remainder_);
    const auto softmax = [&](V z) { return exp(fma(z - shift, inverse, remainder)); };
    each_vec<V::lanes>(0, n, [&](std::int64_t j, int m) TOAST_INLINED {
      store_as(softmax(load_as<Real>(logits + j, m, Real(0))), buffer + j, m);
    });
    return buffer;
  }

  const SoftRows* rows_ = nullptr;
  std::int64_t start_ = 0;  // of the row in values
  const std::int32_t* indices_ = nullptr;
  Real tail_ = 0;
  double mass_ = 0;
  DType dtype_ = DType::float32;
  const void* logits_ = nullptr;    // of the loss's row, where the tail is kept off those of -inf
  Real shift_ = 0, remainder_ = 0;  // of logits: logsumexp times the temperature, in two terms
};

}  // namespace TOAST_ISA
}  // namespace toast
