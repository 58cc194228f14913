// What CUDA C++ has no name for: single instructions, and the cluster, behind plain functions.
// Compiled for a CPU (see tools/cuda_on_cpu), each says in C++ what it does.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

// One variable of a block in its shared memory, uninitialised: SMEM_STATIC(float[32], sums). No macro could stand for
// __shared__ alone in tools/cuda_on_cpu, which has a copy for each of the blocks that run in one process.
#if !defined(SMEM_STATIC)
template <class T>
using SharedType = T;
#define SMEM_STATIC(T, name) __shared__ SharedType<T> name
#endif

namespace toast {

// Of a lambda: its body becomes a part of each call's function.
#define TOAST_INLINED __attribute__((always_inline))

// 2^x to 2 units in the last place; 0 for -inf.
__device__ inline float exp2_approx(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// 16 bytes at an address that is a multiple of 16, which no thread writes to; they are read once.
__device__ inline uint4 load_global_16(const void* global) {
#if defined(__CUDACC__)
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(global));
  return x;
#else
  return *static_cast<const uint4*>(cuda_on_cpu::aligned(global, 16));
#endif
}

__device__ inline void store_global_16(uint4* global, const uint4& x) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
#else
  *global = x;
#endif
}

// Asks for what a thread of this multiprocessor will read.
__device__ inline void prefetch([[maybe_unused]] const void* global) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
#endif
}

// The compiler forgets what it knows of x, so that no sweep keeps what it made of it for the next one.
template <class T>
__device__ void forget([[maybe_unused]] T& x) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) == 16)
    asm volatile("" : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w));
  else if constexpr (sizeof(T) == 8)
    asm volatile("" : "+l"(x));
  else
    asm volatile("" : "+r"(x));
#endif
}

// --- A warp
constexpr unsigned kAllLanes = 0xffffffff;
__device__ inline int lane() { return int(threadIdx.x) % 32; }
// Of all lanes, for each of them; in the same order.
template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

// --- A cluster of thread blocks
__device__ inline int cluster_rank() { return int(cooperative_groups::this_cluster().block_rank()); }
// The cluster's barrier, split: a thread may work between its own arrival and that of all others.
__device__ inline void cluster_arrive() { cooperative_groups::this_cluster().barrier_arrive(); }
__device__ inline void cluster_wait() { cooperative_groups::this_cluster().barrier_wait(); }
// The same variable in the shared memory of the cluster's block `rank`.
template <class T>
__device__ T& in_block(T& shared, int rank) {
  return *cooperative_groups::this_cluster().map_shared_rank(&shared, rank);
}

}  // namespace toast
