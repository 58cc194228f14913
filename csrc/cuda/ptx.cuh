// What CUDA C++ has no name for, and what sm_80 lacks: single instructions and the cluster behind plain functions.
// Compiled for a CPU (see tests/cuda_on_cpu), each says in C++ what it does.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cmath>

namespace toast {

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

// --- 16 bytes at once, at addresses that are multiples of 16. Left alone, the compiler makes an access of each element
// of them, and those of a warp are in each other's way at the banks of shared memory. It does not see what these
// access: a barrier or a wait for copies must stand between them and other accesses to the same place.
#if defined(__CUDACC__)
__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
#endif

__device__ inline uint4 load_shared_16(const void* shared) {
#if defined(__CUDACC__)
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared_address(shared)));
  return x;
#else
  return *static_cast<const uint4*>(shared);
#endif
}

__device__ inline void store_shared_16(void* shared, const uint4& x) {
#if defined(__CUDACC__)
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared)), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w));
#else
  *static_cast<uint4*>(shared) = x;
#endif
}

__device__ inline void store_global_16(void* global, const uint4& x) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
#else
  *static_cast<uint4*>(global) = x;
#endif
}

// Starts an asynchronous copy to shared memory, which does not pass through registers.
__device__ inline void copy_async_16(void* shared, const void* global) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
  cuda_on_cpu::copy_async(shared, global, 16);
#endif
}

// What this thread has started since the last commit is a group.
__device__ inline void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_on_cpu::commit_copies();
#endif
}

// Waits for all of this thread's groups but the newest so many. A barrier then shows them to the other threads.
template <int newest>
__device__ void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
#else
  cuda_on_cpu::wait_for_copy_groups(newest);
#endif
}

// Clusters of thread blocks came with sm_90; before, every block is a cluster of its own.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__device__ inline int cluster_rank() { return 0; }
__device__ inline void cluster_arrive() {}
__device__ inline void cluster_wait() { __syncthreads(); }
template <class T>
__device__ T& in_block(T& shared, int) {
  return shared;
}
#else
__device__ inline int cluster_rank() { return int(cooperative_groups::this_cluster().block_rank()); }
// The cluster's barrier, split: a thread may work between its own arrival and that of all others.
__device__ inline void cluster_arrive() { cooperative_groups::this_cluster().barrier_arrive(); }
__device__ inline void cluster_wait() { cooperative_groups::this_cluster().barrier_wait(); }
// The same variable in the shared memory of the cluster's block `rank`.
template <class T>
__device__ T& in_block(T& shared, int rank) {
  return *cooperative_groups::this_cluster().map_shared_rank(&shared, rank);
}
#endif

}  // namespace toast
