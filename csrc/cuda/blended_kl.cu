// blended_kl on an NVIDIA GPU: up to three kernels, one behind the other on a stream.
//
//   normalisers_kernel   what "mean" divides by; it must be known before a gradient is written (sums.cuh)
//   blended_kl_kernel    the rows' losses and the gradient; a cluster of blocks works on a row (block.cuh)
//   loss_kernel          the sum of the rows' losses (sums.cuh)
//
// What is held of a row, and by how many threads and blocks, is planned on the host (plan.cpp).
#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace toast {
namespace {

template <class T, RowKind kind>
__global__ void __launch_bounds__(threads_of(kind), 1) blended_kl_kernel(const __grid_constant__ Task task) {
  using Rows = Block<T, kind>;
  SMEM_STATIC(typename Rows::Shared, shared);
  Rows(task, shared).run();
}

using Kernel = void (*)(Task);

// Returns f(an element of logits).
template <class F>
auto with_logit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16:
      return f(__nv_bfloat16{});
    case DType::float16:
      return f(__half{});
    default:
      return f(float{});
  }
}

Kernel kernel_for(DType dtype, const Plan& plan) {
  const Kernel kernel = with_logit(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr Kernel kernels[] = {blended_kl_kernel<T, RowKind::labels>, blended_kl_kernel<T, RowKind::lists>,
                                  blended_kl_kernel<T, RowKind::past>, blended_kl_kernel<T, RowKind::dense>,
                                  blended_kl_kernel<T, RowKind::any>};
    return kernels[int(plan.kind)];
  });
  // Unasked, CUDA gives clusters of 8 blocks and no more.
  if (plan.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  return kernel;
}

// How many clusters run at a time on the current GPU, 0 where it has no room for one; found once for all plans that are
// alike.
int most_clusters(DType dtype, const Plan& plan) {
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, RowKind, int, int>, int> found;
  const auto alike = std::make_tuple(current_device(), dtype, plan.kind, plan.threads, plan.cluster);
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = found.find(alike); known != found.end()) return known->second;
  return found[alike] = Grid(1, plan.cluster, plan.threads, nullptr).at_once(kernel_for(dtype, plan));
}

}  // namespace

std::int64_t workspace_size(std::int64_t rows) { return rows + 2 * kMostSumBlocks; }

void blended_kl_cuda(const BlendedKL& p, double* workspace, cudaStream_t stream) {
  Limits limits{attribute(cudaDevAttrMaxRegistersPerBlock), kMostCluster};
  Plan plan;
  int clusters;
  do {  // a part of a GPU (MIG) and a small one have no room for the largest clusters
    plan = toast::plan(row_kind(p), p.dtype, p.classes, limits);
    clusters = most_clusters(p.dtype, plan);
  } while (clusters == 0 && (limits.cluster /= 2) > 0);
  blended_kl_cuda(p, plan, std::max(clusters, 1), workspace, stream);
}

void blended_kl_cuda(const BlendedKL& p, const Plan& plan, int clusters, double* workspace, cudaStream_t stream) {
  const double t = p.temperature;
  const Base base_at_t{float(kLog2e / t), float(t), t <= 4 && t == std::floor(t) ? int(t) : 0};
  const int normaliser_blocks = int(std::min<std::int64_t>((p.rows + kSumThreads - 1) / kSumThreads, kMostSumBlocks));
  auto* normalisers = reinterpret_cast<Normalisers*>(workspace);
  double* row_losses = workspace + 2 * kMostSumBlocks;
  clusters = int(std::min<std::int64_t>(clusters, p.rows));
  const Task task{p, plan, clusters, normalisers, normaliser_blocks, row_losses, base_at_t};
  const bool mean = p.reduction == Reduction::mean;
  if (mean && normaliser_blocks > 0)
    Grid(normaliser_blocks, 1, kSumThreads, stream).launch(normalisers_kernel, p, normalisers);
  if (p.rows > 0) Grid(clusters, plan.cluster, plan.threads, stream).launch(kernel_for(p.dtype, plan), task);
  if (p.reduction != Reduction::none)
    Grid(1, 1, kSumThreads, stream)
        .launch(loss_kernel, row_losses, p.rows, mean, normalisers, normaliser_blocks, static_cast<float*>(p.loss));
}

void scale_cuda(DType dtype, void* gradient, std::int64_t size, const float* upstream, cudaStream_t stream,
                int most_blocks) {
  if (size == 0) return;
  with_logit(dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t blocks = std::min<std::int64_t>(size / (kSumThreads * kWidth<T>)+1, most_blocks);
    Grid(blocks, 1, kSumThreads, stream).launch(scale_kernel<T>, static_cast<T*>(gradient), size, upstream);
  });
}

}  // namespace toast
