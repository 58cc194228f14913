// The small kernels around the large one: what "mean" divides by, the sum of the rows' losses, and the scaling of a
// gradient. All add up in a fixed order.
#pragma once

#include "cuda/row.cuh"
#include "cuda/shared_memory.cuh"

namespace toast {

constexpr int kSumThreads = 256;
constexpr int kMostSumBlocks = 32;  // a warp adds their sums up

// What reductions multiply the two terms by.
struct Scales {
  float class_term, past_term;
};

__device__ inline double warp_sum(double x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// Of all threads of a block, for each of them. `warps` is shared memory, with room for as many as the block has.
template <int n>
__device__ double block_sum(double x, double (&warps)[n]) {
  x = warp_sum(x);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32;
  return warp_sum(lane < blockDim.x / 32 ? warps[lane] : 0.0);
}

// sums[2 * block], sums[2 * block + 1]: the normalisers of the block's rows.
__global__ void __launch_bounds__(kSumThreads) normalisers_kernel(const __grid_constant__ BlendedKL p, double* sums) {
  SMEM_STATIC(double[kSumThreads / 32], warps);
  Normalisers mine{0, 0};
  for (std::int64_t i = std::int64_t(blockIdx.x) * kSumThreads + threadIdx.x; i < p.rows;
       i += std::int64_t(gridDim.x) * kSumThreads) {
    const Normalisers row = normalisers_of(p, i);
    mine.weight += row.weight;
    mine.past_rows += row.past_rows;
  }
  const double weight = block_sum(mine.weight, warps), past_rows = block_sum(mine.past_rows, warps);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = weight;
    sums[2 * blockIdx.x + 1] = past_rows;
  }
}

// The normalisers of all blocks' rows, by a whole warp.
__device__ inline Normalisers total_of(const double* sums, int blocks) {
  const int lane = int(threadIdx.x) % 32;
  return {warp_sum(lane < blocks ? sums[2 * lane] : 0.0), warp_sum(lane < blocks ? sums[2 * lane + 1] : 0.0)};
}

__device__ inline Scales scales_of(const BlendedKL& p, const double* sums, int blocks) {
  if (p.reduction != Reduction::mean) return {1, 1};
  const Normalisers total = total_of(sums, blocks);
  const auto inverse = [](double x) { return x == 0 ? 0 : float(1 / x); };
  return {inverse(total.weight), inverse(total.past_rows)};
}

// Of nothing, the mean is NaN.
__global__ void __launch_bounds__(kSumThreads)
    loss_kernel(const double* row_losses, std::int64_t rows, bool mean, const double* sums, int blocks, float* loss) {
  SMEM_STATIC(double[kSumThreads / 32], warps);
  double mine = 0;
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) mine += row_losses[i];
  const double total = block_sum(mine, warps);
  if (threadIdx.x >= 32) return;
  const bool nothing = mean && total_of(sums, blocks).weight == 0;
  if (threadIdx.x == 0) *loss = nothing ? NAN : float(total);
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) scale_kernel(T* gradient, std::int64_t size, const float* upstream) {
  const float factor = *upstream;
  if (factor == 1) return;
  const std::int64_t thread = std::int64_t(blockIdx.x) * kSumThreads + threadIdx.x, threads = gridDim.x * kSumThreads;
  const std::int64_t whole = size / kWidth<T>;
  uint4* vectors = reinterpret_cast<uint4*>(gradient);
  for (std::int64_t i = thread; i < whole; i += threads) {
    float x[kWidth<T>];
    widen<T>(__ldcg(vectors + i), x);
    for (float& element : x) element *= factor;
    store_global_16(vectors + i, round_to<T>(x));
  }
  for (std::int64_t i = whole * kWidth<T> + thread; i < size; i += threads)
    round_to(widen(gradient[i]) * factor, gradient[i]);
}

}  // namespace toast
