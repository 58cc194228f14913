// toast_kernels._C: the kernels as Python functions over raw addresses, sizes and strides. No torch in here;
// toast_kernels/*/cpu.py own the tensors and keep them alive during a call.
#include <pybind11/pybind11.h>

#include "blended_kl.h"
#include "cpu/dispatch.h"
#include "medoids.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of toast_kernels";
  m.def("cpu_isa", [] { return toast::name(toast::cpu_isa()); });
}
