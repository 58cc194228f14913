// blended_kl on an NVIDIA GPU: up to three kernels, one behind the other on a stream.
//
//   normalisers_kernel   what "mean" divides by; it must be known before a gradient is written (sums.cuh)
//   blended_kl_kernel    the rows' losses and the gradient; a cluster of blocks works on a row (block.cuh)
//   loss_kernel          the sum of the rows' losses (sums.cuh)
//
// How many blocks a cluster has, and how much of a row each holds, is planned on the host (plan.cpp).
#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "cuda/shared_memory.cuh"

namespace toast {
namespace {

// Where shared memory has room for them, two blocks find registers on a multiprocessor, and three without a target row.
template <class T, bool TargetRow, bool PastTerm>
__global__ void __launch_bounds__(kMostThreads, TargetRow ? 2 : 3)
    blended_kl_kernel(const __grid_constant__ Task task) {
  SMEM_DYNAMIC(memory);
  SMEM_STATIC(Shared, shared);
  Block<T, TargetRow, PastTerm>(task, shared, memory).run();
}

template <class T>
Kernel kernel_of(const BlendedKL& p) {
  if (p.past.values != nullptr) return blended_kl_kernel<T, true, true>;
  return has_target_row(p) ? blended_kl_kernel<T, true, false> : blended_kl_kernel<T, false, false>;
}

Kernel kernel_for(const BlendedKL& p) {
  switch (p.dtype) {
    case DType::bfloat16:
      return kernel_of<__nv_bfloat16>(p);
    case DType::float16:
      return kernel_of<__half>(p);
    default:
      return kernel_of<float>(p);
  }
}

// The plan for rows like the problem's on the current GPU, and how many of its clusters run there at a time.
struct Fit {
  Plan plan;
  int clusters;
};

Fit find_fit(const BlendedKL& p) {
  Limits limits = limits_of_current_device();
  const Kernel kernel = kernel_for(p);
  allow(kernel, limits);
  for (;;) {
    const Plan plan = toast::plan(p, limits);
    const int clusters = Clusters(plan, 1, nullptr).at_once(kernel);
    if (clusters > 0 || plan.cluster == 1) return {plan, clusters};
    limits.largest_cluster = plan.cluster / 2;
  }
}

// Found once for all rows that are alike, so that a call asks CUDA nothing but what the current device is.
Fit fit(const BlendedKL& p) {
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, std::int64_t, bool, bool>, Fit> found;
  const auto alike = std::make_tuple(current_device(), p.dtype, p.classes, has_target_row(p), p.past.values != nullptr);
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = found.find(alike); known != found.end()) return known->second;
  return found[alike] = find_fit(p);
}

// What may be launched while a CUDA graph is captured, and nothing else.
void launch_all(const BlendedKL& p, const Plan& plan, int clusters, double* workspace, cudaStream_t stream) {
  const double t = p.temperature;
  const int power = t <= 4 && t == std::floor(t) ? int(t) : 0;
  const int normaliser_blocks = int(std::min<std::int64_t>((p.rows + kSumThreads - 1) / kSumThreads, kMostSumBlocks));
  double* normalisers = workspace;
  double* row_losses = workspace + 2 * kMostSumBlocks;
  if (p.reduction == Reduction::mean && normaliser_blocks > 0)
    launch(normalisers_kernel, normaliser_blocks, kSumThreads, stream, p, normalisers);
  if (p.rows > 0)
    Clusters(plan, clusters, stream)
        .launch(kernel_for(p),
                {p, plan, clusters, normalisers, normaliser_blocks, row_losses, power, float(kLog2e / t)});
  if (p.reduction != Reduction::none)
    launch(loss_kernel, 1, kSumThreads, stream, row_losses, p.rows, p.reduction == Reduction::mean, normalisers,
           normaliser_blocks, static_cast<float*>(p.loss));
}

}  // namespace

Limits limits_of_current_device() {
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrComputeCapabilityMajor) < 9 ? 1 : kMostCluster};
}

std::int64_t workspace_size(std::int64_t rows) { return rows + 2 * kMostSumBlocks; }

void blended_kl_cuda(const BlendedKL& p, double* workspace, cudaStream_t stream) {
  const auto [plan, clusters] = fit(p);
  launch_all(p, plan, int(std::min<std::int64_t>(clusters, p.rows)), workspace, stream);
}

void blended_kl_cuda(const BlendedKL& p, const Plan& plan, int clusters, double* workspace, cudaStream_t stream) {
  allow(kernel_for(p), limits_of_current_device());
  launch_all(p, plan, clusters, workspace, stream);
}

void scale_cuda(DType dtype, void* gradient, std::int64_t size, const float* upstream, cudaStream_t stream,
                int most_blocks) {
  if (size == 0) return;
  const auto scale = [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t by_a_block = kSumThreads * kWidth<T>;
    const std::int64_t blocks = std::min<std::int64_t>(size / by_a_block + 1, most_blocks);
    launch(scale_kernel<T>, blocks, kSumThreads, stream, static_cast<T*>(gradient), size, upstream);
  };
  switch (dtype) {
    case DType::bfloat16:
      return scale(__nv_bfloat16{});
    case DType::float16:
      return scale(__half{});
    default:
      return scale(float{});
  }
}

}  // namespace toast
