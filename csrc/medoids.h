// Class medoids: of each class the row with the smallest sum of distances to the rows of its class.
//
//   E(i) = sum over j with label_j = label_i of d(x_i, x_j)          medoid of c = argmin of E over class c
//
// Costs within a relative 1e-12 are a tie and the lowest index wins. Fast formulas nominate: each gives a cost and a
// bound on its error. Where the bounds leave more than one row, E is summed in double in one fixed order and decides.
// No result depends on the number of threads. toast_kernels/medoids/README.md has the formulas and the proofs.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace toast {

// In the order of METRICS in toast_kernels/medoids/reference.py; a test holds them together.
enum class Metric : int { euclidean, sqeuclidean, cosine, cityblock, jeffreys };

// Any layout: element (i, k) lies at data[i * row_stride + k * column_stride].
struct Matrix {
  DType dtype;
  const void* data;
  std::int64_t rows, width, row_stride, column_stride;
};

struct Labels {
  const void* data;  // [N] int64 or int32
  bool wide;         // int64
  std::int64_t stride;
  const bool* mask;  // [N] or null
  std::int64_t mask_stride;
  std::int64_t ignore_index, classes;
};

struct ClassMedoids {
  Matrix x;
  Labels labels;
  Metric metric;
  std::int64_t* medoids;  // [classes] row numbers, -1 for a class without rows
  int threads;
};

// Returns -1, or the first row that is used (mask, ignore_index, all values finite) and whose label is out of range;
// medoids are not written then.
std::int64_t class_medoids_cpu(const ClassMedoids& problem);

}  // namespace toast
