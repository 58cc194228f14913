// Stands in for the toolkit's header of this name: thread blocks and clusters.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

using cuda_on_cpu::Site;

class thread_block {
 public:
  static void sync(Site site = Site::here()) { cuda_on_cpu::sync_block(site); }
  static unsigned thread_rank() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 dim_threads() { return blockDim; }
};

class cluster_group {
 public:
  struct arrival_token {};

  static void sync(Site site = Site::here()) {
    cuda_on_cpu::arrive_cluster(site);
    cuda_on_cpu::wait_cluster(site);
  }
  static arrival_token barrier_arrive(Site site = Site::here()) {
    cuda_on_cpu::arrive_cluster(site);
    return {};
  }
  static void barrier_wait(Site site = Site::here()) { cuda_on_cpu::wait_cluster(site); }
  static void barrier_wait(arrival_token&&, Site site = Site::here()) { cuda_on_cpu::wait_cluster(site); }

  template <class T>
  static T* map_shared_rank(T* address, int rank) {
    return static_cast<T*>(cuda_on_cpu::map_shared_rank(address, unsigned(rank)));
  }
  static unsigned query_shared_rank(const void* address) { return cuda_on_cpu::query_shared_rank(address); }

  static unsigned block_rank() { return cuda_on_cpu::block_rank_in_cluster(); }
  static unsigned num_blocks() { return dim_blocks().x * dim_blocks().y * dim_blocks().z; }
  static dim3 dim_blocks() { return cuda_on_cpu::cluster_dim(); }
  static dim3 block_index() {
    const uint3 index = cuda_on_cpu::block_index_in_cluster();
    return {index.x, index.y, index.z};
  }
  static unsigned thread_rank() { return block_rank() * thread_block::num_threads() + thread_block::thread_rank(); }
  static unsigned num_threads() { return num_blocks() * thread_block::num_threads(); }
};

inline thread_block this_thread_block() { return {}; }
inline cluster_group this_cluster() { return {}; }

template <class Group>
void sync(const Group& group, Site site = Site::here()) {
  group.sync(site);
}

}  // namespace cooperative_groups
