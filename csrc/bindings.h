// How Python hands problems to the modules: sizes, strides and where the tensors stand once, the tensors at each call,
// of which only the address is asked. toast_kernels/blended_kl/problem.py packs them in the same order.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "blended_kl.h"

namespace toast {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Where a tensor lies: what its data_ptr() returns. Null for None.
inline void* address(pybind11::handle tensor) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  if (tensor.is_none()) return nullptr;
  PyObject* result = PyObject_CallMethodNoArgs(tensor.ptr(), data_ptr);
  if (result == nullptr) throw pybind11::error_already_set();
  return PyLong_AsVoidPtr(pybind11::reinterpret_steal<pybind11::object>(result).ptr());
}

// The fields of a tuple, one after another; tensors and None as their addresses.
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
    field = static_cast<T*>(address(object()));
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
    for (const auto& [name, field, column] : f.value<std::vector<std::tuple<std::string, int, int>>>())
      places_.push_back({field, column, offset_of(name)});
    f.set(alpha_);
    f.set(past_weight_);
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

  // One of these problems: a Problem and its Outputs of the same file.
  BlendedKL at(const pybind11::tuple& problem, const pybind11::tuple& outputs) const {
    BlendedKL p = problem_;
    const int fields = int(problem.size());
    for (const Place& place : places_) {
      PyObject* x = place.field < fields ? PyTuple_GET_ITEM(problem.ptr(), place.field)
                                         : PyTuple_GET_ITEM(outputs.ptr(), place.field - fields);
      if (place.column >= 0) x = PyTuple_GET_ITEM(x, place.column);
      void* const lies_at = address(x);
      std::memcpy(reinterpret_cast<char*>(&p) + place.offset, &lies_at, sizeof lies_at);
    }
    if (p.alpha_on_device == nullptr) p.alpha = number(problem[alpha_]);
    if (p.past_weight_on_device == nullptr) p.past_weight = number(problem[past_weight_]);
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
        {"probabilities", offsetof(BlendedKL, probabilities.values)},
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
    const auto found = offsets.find(name);
    if (found == offsets.end()) throw std::invalid_argument("bindings.h has no place for the tensor " + name);
    return found->second;
  }

  static double number(pybind11::handle value) { return value.is_none() ? 0 : value.cast<double>(); }

  // A tensor: of which field of Problem or, counted on, of Outputs; of which of its table's, or -1; and where the
  // pointer to it lies in a BlendedKL.
  struct Place {
    int field, column;
    std::size_t offset;
  };

  BlendedKL problem_{};
  std::vector<Place> places_;
  std::size_t alpha_, past_weight_;  // fields of Problem
};

}  // namespace toast
