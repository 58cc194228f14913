// What the kernel is given.
#pragma once

#include "cuda/blended_kl.h"

namespace toast {

constexpr int kMostCluster = 16, kPortableCluster = 8;  // blocks; more than the latter not every GPU can do
constexpr int kStaticShared = 4096;                     // bytes that a plan leaves for what is not slices

struct Task {
  BlendedKL problem;
  Plan plan;
  int clusters;               // of the grid: cluster k works on the rows k, k + clusters, ...
  const double* normalisers;  // [normaliser_blocks, 2] from normalisers_kernel
  int normaliser_blocks;
  double* row_losses;  // [N], unless the reduction is "none"
  int power;           // T where it is a small integer, else 0
  float log2e_by_t;
};

}  // namespace toast
