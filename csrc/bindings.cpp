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

std::int64_t pool_rows(int dtype, std::uintptr_t logits, std::int64_t rows, std::int64_t classes, std::int64_t stride,
                       std::uintptr_t labels, std::uintptr_t places, std::int64_t ignore_index, int pool_dtype,
                       std::uintptr_t pool, std::uintptr_t pool_labels, std::uintptr_t positions, std::int64_t capacity,
                       std::uintptr_t counts, int threads) {
  py::gil_scoped_release release;
  return toast::pool_rows_cpu({toast::DType(dtype), pointer<const void>(logits), rows, classes, stride,
                               pointer<const std::int64_t>(labels), pointer<const std::int64_t>(places), ignore_index,
                               toast::DType(pool_dtype), pointer<void>(pool), pointer<std::int64_t>(pool_labels),
                               pointer<std::int64_t>(positions), capacity, pointer<std::int64_t>(counts), threads});
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

const toast::MedoidKernels& medoid_kernels() {
  static const toast::MedoidKernels kernels = [] {
    toast::MedoidKernels k;
    toast::get_medoid_kernels_cpu(k);
    return k;
  }();
  return kernels;
}

// (dtype, data, rows, width, row stride, column stride)
using MatrixFields = std::tuple<int, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
toast::Matrix matrix(const MatrixFields& f) {
  return {toast::DType(std::get<0>(f)),
          pointer<const void>(std::get<1>(f)),
          std::get<2>(f),
          std::get<3>(f),
          std::get<4>(f),
          std::get<5>(f)};
}

// (matrix, row numbers, n)
using ClassFields = std::tuple<MatrixFields, std::uintptr_t, std::int64_t>;
toast::ClassRows class_rows(const ClassFields& f) {
  return {matrix(std::get<0>(f)), pointer<const std::int64_t>(std::get<1>(f)), std::get<2>(f)};
}

// (positions, cost, bound, count)
using CandidateFields = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t>;
toast::Candidates candidates(const CandidateFields& f) {
  return {pointer<std::int64_t>(std::get<0>(f)), pointer<double>(std::get<1>(f)), pointer<double>(std::get<2>(f)),
          std::get<3>(f)};
}

std::int64_t medoids_group(const MatrixFields& x, std::uintptr_t labels, bool wide, std::int64_t stride,
                           std::uintptr_t mask, std::int64_t mask_stride, std::int64_t ignore_index,
                           std::int64_t classes, std::uintptr_t offsets, std::uintptr_t order, int threads) {
  py::gil_scoped_release release;
  return medoid_kernels().group_by_class(
      matrix(x),
      {pointer<const void>(labels), wide, stride, pointer<const bool>(mask), mask_stride, ignore_index, classes},
      pointer<std::int64_t>(offsets), pointer<std::int64_t>(order), threads);
}

void medoids_all(const MatrixFields& x, int metric, std::uintptr_t offsets, std::uintptr_t order, std::int64_t classes,
                 std::uintptr_t medoids, int threads) {
  py::gil_scoped_release release;
  medoid_kernels().all_classes(matrix(x), toast::Metric(metric), pointer<const std::int64_t>(offsets),
                               pointer<const std::int64_t>(order), classes, pointer<std::int64_t>(medoids), threads);
}

double medoids_centre(const ClassFields& c, std::uintptr_t mean, int threads) {
  py::gil_scoped_release release;
  return medoid_kernels().centre(class_rows(c), pointer<double>(mean), threads);
}

void medoids_panel(const ClassFields& c, std::uintptr_t positions, std::uintptr_t mean, double scale, int dtype,
                   std::uintptr_t rows, std::uintptr_t squares, std::uintptr_t lengths, std::uintptr_t errors,
                   std::int64_t count, int threads) {
  py::gil_scoped_release release;
  medoid_kernels().panel(class_rows(c), pointer<const std::int64_t>(positions), pointer<const double>(mean), scale,
                         {toast::DType(dtype), pointer<void>(rows), pointer<void>(squares), pointer<void>(lengths),
                          pointer<double>(errors), count},
                         threads);
}

void medoids_tile(int dtype, std::uintptr_t products, std::int64_t rows, std::int64_t columns, std::int64_t width,
                  std::uintptr_t row_positions, std::int64_t first_column, std::uintptr_t row_squares,
                  std::uintptr_t row_lengths, std::uintptr_t column_squares, std::uintptr_t column_lengths,
                  std::uintptr_t row_cost, std::uintptr_t row_bound, std::uintptr_t column_cost,
                  std::uintptr_t column_bound, int threads) {
  py::gil_scoped_release release;
  medoid_kernels().distance_sums(
      {toast::DType(dtype), pointer<const void>(products), rows, columns, width,
       pointer<const std::int64_t>(row_positions), first_column, pointer<const void>(row_squares),
       pointer<const void>(row_lengths), pointer<const void>(column_squares), pointer<const void>(column_lengths),
       pointer<double>(row_cost), pointer<double>(row_bound), pointer<double>(column_cost),
       pointer<double>(column_bound)},
      threads);
}

std::int64_t medoids_narrow(const ClassFields& c, int metric, const CandidateFields& all, int threads) {
  py::gil_scoped_release release;
  return medoid_kernels().narrow(class_rows(c), toast::Metric(metric), candidates(all), threads);
}

std::int64_t medoids_decide(const ClassFields& c, int metric, const CandidateFields& all, int threads) {
  py::gil_scoped_release release;
  return medoid_kernels().decide(class_rows(c), toast::Metric(metric), candidates(all), threads);
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
  m.def("medoids_group", &medoids_group);
  m.def("medoids_all", &medoids_all);
  m.def("medoids_centre", &medoids_centre);
  m.def("medoids_panel", &medoids_panel);
  m.def("medoids_tile", &medoids_tile);
  m.def("medoids_narrow", &medoids_narrow);
  m.def("medoids_decide", &medoids_decide);
}
