// How Python hands problems to the modules: sizes and strides once, addresses at each call.
// toast_kernels/blended_kl/problem.py packs them in the same order and keeps the tensors alive during a call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "blended_kl.h"

namespace toast {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The fields of a tuple, one after another.
class Fields {
 public:
  explicit Fields(const pybind11::object& tuple) : tuple_(pybind11::reinterpret_borrow<pybind11::tuple>(tuple)) {}

  pybind11::object object() { return tuple_[next_++]; }
  template <class T>
  T value() {
    return object().cast<T>();
  }
  template <class T>
  void set(T& field) {
    field = value<T>();
  }
  template <class T>
  void set(T*& field) {
    field = pointer<T>(value<std::uintptr_t>());
  }

 private:
  pybind11::tuple tuple_;
  std::size_t next_ = 0;
};

// The layout of a table of rows, or None where there is none.
inline SoftRows soft_rows(const pybind11::object& layout) {
  SoftRows rows;
  if (layout.is_none()) return rows;
  Fields f(layout);
  rows.dtype = DType(f.value<int>());
  f.set(rows.rows);
  f.set(rows.width);
  f.set(rows.stride);
  f.set(rows.temperature);
  return rows;
}

// What problems of one kind have in common: `layout` of toast_kernels/blended_kl/problem.py.
inline BlendedKL blended_kl_layout(const pybind11::args& layout) {
  BlendedKL p{};
  Fields f(layout);
  p.dtype = DType(f.value<int>());
  f.set(p.rows);
  f.set(p.classes);
  f.set(p.stride);
  p.probabilities = soft_rows(f.object());
  p.soft = soft_rows(f.object());
  p.past = soft_rows(f.object());
  f.set(p.temperature);
  f.set(p.ignore_index);
  f.set(p.label_smoothing);
  p.reduction = Reduction(f.value<int>());
  f.set(p.upstream_stride);
  return p;
}

inline void set_addresses(Fields& f, SoftRows& rows) {
  f.set(rows.values);
  f.set(rows.indices);
  f.set(rows.logsumexp);
  f.set(rows.entropy);
  f.set(rows.filled);
}

// And one such problem: `addresses` of the same file.
inline BlendedKL blended_kl_problem(BlendedKL p, const pybind11::tuple& addresses) {
  Fields f(addresses);
  f.set(p.logits);
  f.set(p.target);
  f.set(p.probabilities.values);
  f.set(p.target_b);
  f.set(p.lam);
  f.set(p.weight);
  set_addresses(f, p.soft);
  f.set(p.alpha);
  f.set(p.alpha_on_device);
  set_addresses(f, p.past);
  f.set(p.past_index);
  f.set(p.past_weight);
  f.set(p.past_weight_on_device);
  f.set(p.upstream);
  f.set(p.loss);
  f.set(p.gradient);
  f.set(p.stats);
  f.set(p.argmax);
  return p;
}

// Each module has the type for itself.
inline void define_blended_kl_layout(pybind11::module_& m) {
  pybind11::class_<BlendedKL>(m, "BlendedKL", pybind11::module_local()).def(pybind11::init(&blended_kl_layout));
}

}  // namespace toast
