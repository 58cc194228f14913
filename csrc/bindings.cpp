// toast_kernels._C: the kernels for CPUs as Python functions over addresses, sizes and strides. No torch in here: of a
// tensor nothing is asked but its data_ptr().
#include "bindings.h"

#include "cpu/dispatch.h"
#include "kept_rows.h"
#include "medoids.h"
#include "softmax_statistics.h"

namespace py = pybind11;

namespace {

using toast::pointer;

void blended_kl(const toast::BlendedKLLayout& layout, const py::tuple& problem, const py::tuple& outputs, int threads) {
  toast::BlendedKL p = layout.at(problem, outputs);
  p.threads = threads;
  py::gil_scoped_release release;
  toast::blended_kl_cpu(p);
}

void softmax_statistics(int dtype, std::uintptr_t logits, std::int64_t rows, std::int64_t classes, std::int64_t stride,
                        double temperature, std::uintptr_t logsumexp, std::uintptr_t entropy, int threads) {
  py::gil_scoped_release release;
  toast::softmax_statistics_cpu({toast::DType(dtype), pointer<const void>(logits), rows, classes, stride, temperature,
                                 pointer<double>(logsumexp), pointer<void>(entropy), threads});
}

std::int64_t pool_rows(int dtype, std::uintptr_t logits, std::int64_t rows, std::int64_t width, std::int64_t stride,
                       std::uintptr_t labels, std::uintptr_t places, std::int64_t num_classes,
                       std::int64_t ignore_index, int pool_dtype, std::uintptr_t pool, std::uintptr_t pool_labels,
                       std::uintptr_t positions, std::int64_t capacity, std::uintptr_t counts, int threads) {
  py::gil_scoped_release release;
  return toast::pool_rows_cpu({toast::DType(dtype), pointer<const void>(logits), rows, width, stride,
                               pointer<const std::int64_t>(labels), pointer<const std::int64_t>(places), num_classes,
                               ignore_index, toast::DType(pool_dtype), pointer<void>(pool),
                               pointer<std::int64_t>(pool_labels), pointer<std::int64_t>(positions), capacity,
                               pointer<std::int64_t>(counts), threads});
}

std::int64_t carry_rows(const py::tuple& batch, const py::tuple& settings, const py::tuple& slots, int threads) {
  toast::CarryRows p{};
  toast::Fields b(batch), s(settings), out(slots);
  p.dtype = toast::DType(b.value<int>());
  b.set(p.logits), b.set(p.rows), b.set(p.classes), b.set(p.stride);
  b.set(p.labels), b.set(p.labels_b), b.set(p.lam);
  p.score_dtype = toast::DType(b.value<int>());
  b.set(p.score), b.set(p.new_rows), b.set(p.ages);
  s.set(p.max_age), s.set(p.ignore_index), s.set(p.temperature);
  out.set(p.slots), out.set(p.distilled), out.set(p.slot_labels), out.set(p.slot_labels_b), out.set(p.slot_lam);
  out.set(p.slot_logits), out.set(p.logsumexp), out.set(p.entropy), out.set(p.filled);
  out.set(p.index), out.set(p.slot_ages), out.set(p.slot_rows);
  p.threads = threads;
  py::gil_scoped_release release;
  return toast::carry_rows_cpu(p);
}

// matrix: (dtype, x, rows, width, row stride, column stride); labels: (labels, are they int64, stride, mask or None,
// its stride, ignore_index, classes).
std::int64_t class_medoids(const py::tuple& matrix, const py::tuple& labels, int metric, const py::object& medoids,
                           int threads) {
  toast::ClassMedoids p{};
  toast::Fields m(matrix), l(labels);
  p.x.dtype = toast::DType(m.value<int>());
  m.set(p.x.data), m.set(p.x.rows), m.set(p.x.width), m.set(p.x.row_stride), m.set(p.x.column_stride);
  l.set(p.labels.data), l.set(p.labels.wide), l.set(p.labels.stride), l.set(p.labels.mask);
  l.set(p.labels.mask_stride), l.set(p.labels.ignore_index), l.set(p.labels.classes);
  p.metric = toast::Metric(metric);
  p.medoids = static_cast<std::int64_t*>(toast::address(medoids));
  p.threads = threads;
  py::gil_scoped_release release;
  return toast::class_medoids_cpu(p);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of toast_kernels";
  m.def("cpu_isa", [] { return toast::name(toast::cpu_isa()); });
  toast::BlendedKLLayout::define(m);
  m.def("blended_kl", &blended_kl);
  m.def("softmax_statistics", &softmax_statistics);
  m.def("pool_rows", &pool_rows);
  m.def("carry_rows", &carry_rows);
  m.def("class_medoids", &class_medoids);
}
