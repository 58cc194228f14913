// The small kernels around the large one: what "mean" divides by, the sum of the rows' losses, and the scaling of a
// gradient. All add up in a fixed order.
#pragma once

#include "cuda/look_up.cuh"

namespace toast {

constexpr int kSumThreads = 256;
constexpr int kMostSumBlocks = 32;  // a warp adds their sums up

// Of all threads of a block, for each of them. `warps` is shared memory, with room for as many as the block has.
template <int n>
__device__ double block_sum(double x, double (&warps)[n]) {
  x = warp_sum(x);
  __syncthreads();  // the last sum has been read
  if (lane() == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(lane() < int(blockDim.x) / 32 ? warps[lane()] : 0.0);
}

// of_blocks[block]: the normalisers of the block's rows.
__global__ void __launch_bounds__(kSumThreads)
    normalisers_kernel(const __grid_constant__ BlendedKL p, Normalisers* of_blocks) {
  SMEM_STATIC(double[kSumThreads / 32], warps);
  Normalisers mine{0, 0};
  for (std::int64_t i = std::int64_t(blockIdx.x) * kSumThreads + threadIdx.x; i < p.rows;
       i += std::int64_t(gridDim.x) * kSumThreads) {
    const Normalisers row = normalisers_of(p, i);
    mine.of_class += row.of_class;
    mine.of_past += row.of_past;
  }
  mine = {block_sum(mine.of_class, warps), block_sum(mine.of_past, warps)};
  if (threadIdx.x == 0) of_blocks[blockIdx.x] = mine;
}

// The normalisers of all blocks' rows, by a whole warp.
__device__ inline Normalisers total_of(const Normalisers* of_blocks, int blocks) {
  const Normalisers mine = lane() < blocks ? of_blocks[lane()] : Normalisers{0, 0};
  return {warp_sum(mine.of_class), warp_sum(mine.of_past)};
}

// What reductions multiply the two terms by.
__device__ inline Terms<float> scales_of(const BlendedKL& p, const Normalisers* of_blocks, int blocks) {
  if (p.reduction != Reduction::mean) return {1, 1};
  const Normalisers total = total_of(of_blocks, blocks);
  const auto inverse = [](double x) { return x == 0 ? 0 : float(1 / x); };
  return {inverse(total.of_class), inverse(total.of_past)};
}

// Of nothing, the mean is NaN.
__global__ void __launch_bounds__(kSumThreads) loss_kernel(const double* row_losses, std::int64_t rows, bool mean,
                                                           const Normalisers* of_blocks, int blocks, float* loss) {
  SMEM_STATIC(double[kSumThreads / 32], warps);
  double mine = 0;
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) mine += row_losses[i];
  const double total = block_sum(mine, warps);
  if (threadIdx.x >= 32) return;
  const bool nothing = mean && total_of(of_blocks, blocks).of_class == 0;
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
