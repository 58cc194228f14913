// Kernels with bugs planted in them: right if `right`. Each fills out[] with what can be told without it.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace cg = cooperative_groups;

constexpr unsigned kThreads = 64, kCluster = 4, kRounds = 4;

// out[i] = in[last - i], through shared memory.
template <bool right>
__global__ void reverse(const float* in, float* out) {
  SMEM_STATIC(float[kThreads], row);
  row[threadIdx.x] = in[threadIdx.x];
  if (right) __syncthreads();
  out[threadIdx.x] = row[kThreads - 1 - threadIdx.x];
}

// The same by one warp, with a barrier of the warp; a shuffle is none.
template <bool right>
__global__ void reverse_in_a_warp(const float* in, float* out) {
  SMEM_STATIC(float[32], row);
  row[threadIdx.x] = in[threadIdx.x];
  if (right)
    __syncwarp();
  else
    __shfl_xor_sync(0xffffffffu, 0, 1);
  out[threadIdx.x] = row[31 - threadIdx.x];
}

// The first warp writes, both read: its own reads, which the barrier does order, must not hide the other's.
template <bool right>
__global__ void first_warp_writes(float* out) {
  SMEM_STATIC(float[32], row);
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x < 32) row[lane] = float(lane);
  if (right)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = row[31 - lane];
}

// Row after row through the same buffer.
template <bool right>
__global__ void reverse_rows(const float* in, float* out) {
  SMEM_STATIC(float[kThreads], row);
  for (unsigned r = 0; r < kRounds; ++r) {
    row[threadIdx.x] = in[r * kThreads + threadIdx.x];
    __syncthreads();
    out[r * kThreads + threadIdx.x] = row[kThreads - 1 - threadIdx.x];
    if (right) __syncthreads();  // the next row overwrites this one
  }
}

// Each thread of a cluster reads what its like in the next block wrote.
template <bool right>
__global__ void neighbours(const float* in, float* out) {
  const auto cluster = cg::this_cluster();
  SMEM_STATIC(float[kThreads], row);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  cluster.sync();  // all blocks run
  row[threadIdx.x] = in[i];
  if (right)
    cluster.sync();
  else
    __syncthreads();
  out[i] = cluster.map_shared_rank(row, int((cluster.block_rank() + 1) % kCluster))[threadIdx.x];
  cluster.sync();
}

// The same, and a block leaves while others may still read its row.
template <bool right>
__global__ void leave(const float* in, float* out) {
  const auto cluster = cg::this_cluster();
  SMEM_STATIC(float[kThreads], row);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  const float* theirs = cluster.map_shared_rank(row, int((cluster.block_rank() + 1) % kCluster));
  row[threadIdx.x] = in[i];
  cluster.sync();
  out[i] = theirs[threadIdx.x];
  if (right) cluster.sync();
}

// Writes to a block that may not run yet.
template <bool right>
__global__ void greet(const float* in, float* out) {
  const auto cluster = cg::this_cluster();
  SMEM_STATIC(float[kThreads], row);
  if (right) cluster.sync();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x, next = (cluster.block_rank() + 1) % kCluster;
  cluster.map_shared_rank(row, int(next))[threadIdx.x] = in[(next + 1) % kCluster * kThreads + threadIdx.x];
  cluster.sync();
  out[i] = row[threadIdx.x];
}

__device__ void start_copy(float* to, const float* from) {
  if (threadIdx.x % 4 == 0) cuda_on_cpu::copy_async(to + threadIdx.x, from + threadIdx.x, 16);
  cuda_on_cpu::commit_copies();
}

// Rows by asynchronous copies, one ahead: waits for the row that is used, and not for the next.
enum class Wrong { nothing, no_wait, waits_for_too_few, no_barrier, overwrites };
template <Wrong wrong>
__global__ void copy_rows(const float* in, float* out) {
  SMEM_DYNAMIC(bytes);
  float* const stages = reinterpret_cast<float*>(bytes);
  start_copy(stages, in);
  for (unsigned r = 0; r < kRounds; ++r) {
    float* const row = stages + r % 2 * kThreads;
    if (r + 1 < kRounds) start_copy(stages + (r + 1) % 2 * kThreads, in + (r + 1) * kThreads);
    if (wrong != Wrong::no_wait)
      cuda_on_cpu::wait_for_copy_groups(r + 1 < kRounds || wrong == Wrong::waits_for_too_few);
    if (wrong != Wrong::no_barrier) __syncthreads();
    out[r * kThreads + threadIdx.x] = row[kThreads - 1 - threadIdx.x];
    if (wrong != Wrong::overwrites) __syncthreads();  // the row after the next goes where this one is
  }
  cuda_on_cpu::wait_for_copies();
}

// Some threads go to a barrier of their own.
template <bool right>
__global__ void diverge(const float* in, float* out) {
  if (right || threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  __syncthreads();
}

// Some threads return before the barrier.
template <bool right>
__global__ void return_early(const float* in, float* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (!right && threadIdx.x >= 48) return;
  __syncthreads();
}

// Half a warp shuffles, and names all of it.
template <bool right>
__global__ void half_a_warp(const float* in, float* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(right ? 0x0000ffffu : 0xffffffffu, 1.0f, 1);
}

// Only a block's first thread goes to the cluster's barrier.
template <bool right>
__global__ void first_thread_only(const float* in, float* out) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = in[(i + kThreads) % (kCluster * kThreads)];
  if (right || threadIdx.x == 0) cg::this_cluster().sync();
}

// All blocks write one element of global memory.
template <bool right>
__global__ void all_write(float* out) {
  if (threadIdx.x == 0) out[right ? blockIdx.x : 0] = float(blockIdx.x);
}

template <bool right>
__global__ void past_the_end(float* out) {
  SMEM_DYNAMIC(bytes);
  float* const row = reinterpret_cast<float*>(bytes);
  row[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x + (right ? 0 : 1)];
}

template <bool right>
__global__ void past_the_variable(float* out) {
  SMEM_STATIC(float[kThreads], row);
  SMEM_STATIC(float[kThreads], other);
  float* const address = row;  // whose bounds the compiler does not see
  other[threadIdx.x] = 1;
  address[threadIdx.x + (right ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x] + other[threadIdx.x];
}

template <bool right>
__global__ void copy_past_the_end(float* out) {
  SMEM_STATIC(float4, row);
  cuda_on_cpu::copy_async(&row, out + kThreads - (right ? 4 : 0), 16);
  cuda_on_cpu::wait_for_copies();
  out[0] = row.x;
}
