// How Python describes a problem to the modules: raw addresses, sizes and strides. toast_kernels/blended_kl/native.py
// says the same in the same order, owns the tensors and keeps them alive during a call.
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

inline SoftRows soft_rows(const pybind11::object& described) {
  SoftRows rows;
  if (described.is_none()) return rows;
  Fields f(described);
  rows.dtype = DType(f.value<int>());
  f.set(rows.values);
  f.set(rows.rows);
  f.set(rows.width);
  f.set(rows.stride);
  f.set(rows.indices);
  f.set(rows.logsumexp);
  f.set(rows.entropy);
  f.set(rows.filled);
  f.set(rows.temperature);
  return rows;
}

inline BlendedKL blended_kl_problem(const pybind11::tuple& described) {
  BlendedKL p{};
  Fields f(described);
  p.dtype = DType(f.value<int>());
  f.set(p.logits);
  f.set(p.rows);
  f.set(p.classes);
  f.set(p.stride);
  f.set(p.target);
  f.set(p.target_b);
  f.set(p.lam);
  p.probabilities = soft_rows(f.object());
  f.set(p.weight);
  p.soft = soft_rows(f.object());
  f.set(p.alpha);
  f.set(p.alpha_on_device);
  p.past = soft_rows(f.object());
  f.set(p.past_index);
  f.set(p.past_weight);
  f.set(p.past_weight_on_device);
  f.set(p.temperature);
  f.set(p.ignore_index);
  f.set(p.label_smoothing);
  p.reduction = Reduction(f.value<int>());
  f.set(p.upstream);
  f.set(p.upstream_stride);
  f.set(p.loss);
  f.set(p.gradient);
  f.set(p.stats);
  f.set(p.argmax);
  return p;
}

}  // namespace toast
