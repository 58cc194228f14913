// toast_kernels._C: the kernels as Python functions over raw addresses, sizes and strides. No torch in here;
// toast_kernels/*/cpu.py own the tensors and keep them alive during a call.
#include <pybind11/pybind11.h>

#include "blended_kl.h"
#include "cpu/dispatch.h"
#include "medoids.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (dtype, values, rows, width, stride, indices, logsumexp, entropy, filled, temperature), or None
toast::SoftRows soft_rows(const py::object& described) {
  toast::SoftRows rows;
  if (described.is_none()) return rows;
  const auto fields = py::reinterpret_borrow<py::tuple>(described);
  auto address = [&](int i) { return fields[i].cast<std::uintptr_t>(); };
  rows.dtype = toast::DType(fields[0].cast<int>());
  rows.values = pointer<const void>(address(1));
  rows.rows = fields[2].cast<std::int64_t>();
  rows.width = fields[3].cast<std::int64_t>();
  rows.stride = fields[4].cast<std::int64_t>();
  rows.indices = pointer<const std::int32_t>(address(5));
  rows.logsumexp = pointer<const void>(address(6));
  rows.entropy = pointer<const void>(address(7));
  rows.filled = pointer<const bool>(address(8));
  rows.temperature = fields[9].cast<double>();
  return rows;
}

void blended_kl(int dtype, std::uintptr_t logits, std::int64_t rows, std::int64_t classes, std::int64_t stride,
                std::uintptr_t target, std::uintptr_t target_b, std::uintptr_t lam, const py::object& probabilities,
                std::uintptr_t weight, const py::object& soft, double alpha, const py::object& past,
                std::uintptr_t past_index, double past_weight, double temperature, std::int64_t ignore_index,
                double label_smoothing, int reduction, std::uintptr_t upstream, std::int64_t upstream_stride,
                std::uintptr_t loss, std::uintptr_t gradient, std::uintptr_t stats, std::uintptr_t argmax,
                int threads) {
  toast::BlendedKL p;
  p.dtype = toast::DType(dtype);
  p.logits = pointer<const void>(logits);
  p.rows = rows;
  p.classes = classes;
  p.stride = stride;
  p.target = pointer<const std::int64_t>(target);
  p.target_b = pointer<const std::int64_t>(target_b);
  p.lam = pointer<const void>(lam);
  p.probabilities = soft_rows(probabilities);
  p.weight = pointer<const void>(weight);
  p.soft = soft_rows(soft);
  p.alpha = alpha;
  p.past = soft_rows(past);
  p.past_index = pointer<const std::int64_t>(past_index);
  p.past_weight = past_weight;
  p.temperature = temperature;
  p.ignore_index = ignore_index;
  p.label_smoothing = label_smoothing;
  p.reduction = toast::Reduction(reduction);
  p.upstream = pointer<const void>(upstream);
  p.upstream_stride = upstream_stride;
  p.loss = pointer<void>(loss);
  p.gradient = pointer<void>(gradient);
  p.stats = pointer<void>(stats);
  p.argmax = pointer<std::int64_t>(argmax);
  p.threads = threads;
  py::gil_scoped_release release;
  toast::blended_kl_cpu(p);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of toast_kernels";
  m.def("cpu_isa", [] { return toast::name(toast::cpu_isa()); });
  m.def("blended_kl", &blended_kl);
}
