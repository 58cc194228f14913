// A grid, cluster after cluster.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "threads.h"

namespace cuda_on_cpu {

namespace {

std::uint64_t seed_from_environment() {
  const char* text = std::getenv("CUDA_ON_CPU_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

void (*kernel_to_run)(void*);
void* arguments_to_pass;

unsigned volume(dim3 extent) { return extent.x * extent.y * extent.z; }

// The index of element `number` of a box, x first.
uint3 index_in(dim3 box, unsigned number) { return {number % box.x, number / box.x % box.y, number / box.x / box.y}; }

void set_up(unsigned number) {
  const Launch& launch = cluster.launch;
  const dim3 clusters(launch.grid.x / launch.cluster.x, launch.grid.y / launch.cluster.y,
                      launch.grid.z / launch.cluster.z);
  const uint3 at = index_in(clusters, number);
  const unsigned blocks = volume(launch.cluster), threads = volume(launch.block);
  const unsigned warps = (threads + kWarp - 1) / kWarp;

  cluster.threads_per_block = threads;
  cluster.size = blocks * threads;
  cluster.at_barrier = cluster.phase = 0;
  cluster.warps.assign(std::size_t(blocks) * warps, {});
  cluster.blocks.assign(blocks, {});
  while (cluster.threads.size() < cluster.size) cluster.threads.emplace_back();

  for (unsigned b = 0; b < blocks; ++b) {
    Block& block = cluster.blocks[b];
    const uint3 in = block.index_in_cluster = index_in(launch.cluster, b);
    block.index = {at.x * launch.cluster.x + in.x, at.y * launch.cluster.y + in.y, at.z * launch.cluster.z + in.z};
    block.threads_left = threads;
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = cluster.threads[b * threads + i];
      thread.number = b * threads + i;
      thread.block = b;
      thread.warp = b * warps + i / kWarp;
      thread.lane = i % kWarp;
      thread.index = index_in(launch.block, i);
      thread.waits_at = nullptr;
      thread.operation = "its code, ready to go on";
      thread.site = {"", 0};
      thread.returned = false;
      thread.cluster_arrivals = thread.cluster_waits = 0;
      thread.clock = {};
      thread.copies.clear();
      thread.copy_groups = 0;
      cluster.warps[thread.warp].exist |= 1u << thread.lane;
    }
  }
}

}  // namespace

std::uint64_t seed = seed_from_environment();
Device device;

void run(const Launch& launch, void (*kernel)(void*), void* arguments) {
  kernel_to_run = kernel;
  arguments_to_pass = arguments;
  cluster.launch = launch;
  gridDim = launch.grid;
  blockDim = launch.block;
  draw = Random(seed);
  begin_launch_shared_memory();
  races::begin_launch();

  // Clusters run one after another: nothing says in which order.
  std::vector<unsigned> order(volume(launch.grid) / volume(launch.cluster));
  std::iota(order.begin(), order.end(), 0u);
  if (seed != 0)
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw.below(unsigned(i))]);
  for (unsigned number : order) {
    set_up(number);
    begin_shared_memory();
    races::begin_cluster();
    run_cluster([] { kernel_to_run(arguments_to_pass); });
  }
  races::end_launch();
}

}  // namespace cuda_on_cpu
