// Of each row z of logits, without writing softmax(z / T):
//
//   logsumexp(z / T)     and the entropy     - sum_j p_j log p_j,  p = softmax(z / T),  0 log 0 = 0
#pragma once

#include <cstdint>

#include "dtype.h"

namespace toast {

struct SoftmaxStatistics {
  DType dtype;
  const void* logits;  // [rows, classes], rows contiguous
  std::int64_t rows, classes, stride;
  double temperature;
  double* logsumexp;  // [rows]
  void* entropy;      // [rows]: double for float64 logits, else float
  int threads = 1;
};

// A row with a NaN or +inf is NaN in both; one of -inf alone has logsumexp -inf and entropy NaN. The result does not
// depend on the number of threads.
void softmax_statistics_cpu(const SoftmaxStatistics& problem);

}  // namespace toast
