// toast_kernels._cuda: the CUDA kernels as Python functions over raw addresses. A module of its own, so that one that
// cannot be loaded leaves the kernels for CPUs alone. Built with tools/cuda_on_cpu it is _cuda_on_cpu.
#include "bindings.h"

#include "cuda/blended_kl.h"

namespace py = pybind11;

namespace {

void blended_kl(const toast::BlendedKLLayout& layout, const py::tuple& problem, const py::tuple& outputs,
                std::uintptr_t workspace, std::uintptr_t stream) {
  const toast::BlendedKL p = layout.at(problem, outputs);
  py::gil_scoped_release release;
  toast::blended_kl_cuda(p, toast::pointer<double>(workspace), toast::pointer<CUstream_st>(stream));
}

void scale(int dtype, std::uintptr_t gradient, std::int64_t size, std::uintptr_t upstream, std::uintptr_t stream) {
  py::gil_scoped_release release;
  toast::scale_cuda(toast::DType(dtype), toast::pointer<void>(gradient), size, toast::pointer<const float>(upstream),
                    toast::pointer<CUstream_st>(stream));
}

// (kind, threads, cluster): how rows are spread on a GPU that need not be there.
py::tuple plan(int kind, int dtype, std::int64_t classes) {
  const toast::Plan plan =
      toast::plan(toast::RowKind(kind), toast::DType(dtype), classes, {65536, toast::kMostCluster});
  return py::make_tuple(int(plan.kind), plan.threads, plan.cluster);
}

}  // namespace

#if defined(CUDA_ON_CPU)
PYBIND11_MODULE(_cuda_on_cpu, m) {
  m.attr("on_cpu") = true;
  m.def("set_registers", [](int of_a_block) {
    cuda_on_cpu::device.number = of_a_block;
    cuda_on_cpu::device.registers_per_block = of_a_block;
  });
#else
PYBIND11_MODULE(_cuda, m) {
  m.attr("on_cpu") = false;
#endif
  m.doc() = "CUDA kernels of toast_kernels";
  m.def("workspace_size", &toast::workspace_size);
  m.def("plan", &plan);
  toast::BlendedKLLayout::define(m);
  m.def("blended_kl", &blended_kl);
  m.def("scale", &scale);
}
