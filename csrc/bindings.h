// How Python hands problems to the modules: sizes and strides once, addresses at each call.
// toast_kernels/blended_kl/problem.py packs them in the same order and keeps the tensors alive during a call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

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
class BlendedKLLayout {
 public:
  explicit BlendedKLLayout(const pybind11::args& layout) {
    Fields f(layout);
    for (const auto& name : f.value<std::vector<std::string>>()) offsets_.push_back(offset_of(name));
    problem_.dtype = DType(f.value<int>());
    f.set(problem_.rows);
    f.set(problem_.classes);
    f.set(problem_.stride);
    problem_.probabilities = soft_rows(f.object());
    problem_.soft = soft_rows(f.object());
    problem_.past = soft_rows(f.object());
    f.set(problem_.temperature);
    f.set(problem_.ignore_index);
    f.set(problem_.label_smoothing);
    problem_.reduction = Reduction(f.value<int>());
    f.set(problem_.upstream_stride);
  }

  // One of these problems: `addresses` of the same file.
  BlendedKL at(const pybind11::list& addresses, double alpha, double past_weight) const {
    BlendedKL p = problem_;
    p.alpha = alpha;
    p.past_weight = past_weight;
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      void* address = pointer<void>(addresses[i].cast<std::uintptr_t>());
      std::memcpy(reinterpret_cast<char*>(&p) + offsets_[i], &address, sizeof address);
    }
    return p;
  }

  // Each module has the type for itself.
  static void define(pybind11::module_& m) {
    pybind11::class_<BlendedKLLayout>(m, "BlendedKL", pybind11::module_local()).def(pybind11::init<pybind11::args>());
  }

 private:
  // Where the pointer to a tensor lies in a BlendedKL.
  static std::size_t offset_of(const std::string& name) {
    static const std::map<std::string, std::size_t> offsets = {
        {"logits", offsetof(BlendedKL, logits)},
        {"target", offsetof(BlendedKL, target)},
        {"probabilities_values", offsetof(BlendedKL, probabilities.values)},
        {"target_b", offsetof(BlendedKL, target_b)},
        {"lam", offsetof(BlendedKL, lam)},
        {"weight", offsetof(BlendedKL, weight)},
        {"soft_values", offsetof(BlendedKL, soft.values)},
        {"soft_indices", offsetof(BlendedKL, soft.indices)},
        {"soft_logsumexp", offsetof(BlendedKL, soft.logsumexp)},
        {"soft_entropy", offsetof(BlendedKL, soft.entropy)},
        {"soft_filled", offsetof(BlendedKL, soft.filled)},
        {"alpha", offsetof(BlendedKL, alpha_on_device)},
        {"past_values", offsetof(BlendedKL, past.values)},
        {"past_indices", offsetof(BlendedKL, past.indices)},
        {"past_logsumexp", offsetof(BlendedKL, past.logsumexp)},
        {"past_entropy", offsetof(BlendedKL, past.entropy)},
        {"past_filled", offsetof(BlendedKL, past.filled)},
        {"past_index", offsetof(BlendedKL, past_index)},
        {"past_weight", offsetof(BlendedKL, past_weight_on_device)},
        {"upstream", offsetof(BlendedKL, upstream)},
        {"loss", offsetof(BlendedKL, loss)},
        {"gradient", offsetof(BlendedKL, gradient)},
        {"stats", offsetof(BlendedKL, stats)},
        {"argmax", offsetof(BlendedKL, argmax)},
    };
    return offsets.at(name);
  }

  BlendedKL problem_{};
  std::vector<std::size_t> offsets_;  // of the pointers that addresses are given for
};

}  // namespace toast
