// Barriers of a block and a cluster; operations of a warp. Only barriers order memory: shuffles and votes do not.
#include <algorithm>

#include "threads.h"

namespace cuda_on_cpu {

// Stricter than hardware, which lets a thread that has returned count as arrived, and any two __syncthreads match.
void sync_block(Site site) {
  const races::Unwatched unwatched;
  Block& block = block_of(*running);
  if (block.at_barrier == 0) block.barrier = site;
  if (!(block.barrier == site))
    throw Fault("__syncthreads in divergent code: " + describe(*running) + " is at " + describe(site) +
                ", others of its block wait at " + describe(block.barrier));
  if (++block.at_barrier < cluster.threads_per_block) {
    wait(&block, "__syncthreads", site);
  } else {
    block.at_barrier = 0;
    wake(&block, cluster.first_thread(running->block), cluster.threads_per_block);
    give_way();
  }
  ++running->clock.block_barriers;
}

void arrive_cluster(Site site) {
  const races::Unwatched unwatched;
  if (device.compute_capability_major < 9) throw Fault("this GPU has no clusters: " + describe(site));
  if (running->cluster_arrivals != running->cluster_waits)
    throw Fault(describe(*running) +
                " arrives again at the cluster's barrier without having waited: " + describe(site));
  ++running->cluster_arrivals;
  if (++cluster.at_barrier == cluster.size) {
    cluster.at_barrier = 0;
    ++cluster.phase;
    wake(&cluster, 0, cluster.size);
  }
  give_way();
}

void wait_cluster(Site site) {
  const races::Unwatched unwatched;
  if (running->cluster_arrivals == running->cluster_waits)
    throw Fault(describe(*running) + " waits at the cluster's barrier without having arrived: " + describe(site));
  if (cluster.phase < running->cluster_arrivals) wait(&cluster, "the cluster's barrier", site);
  ++running->cluster_waits;
}

unsigned lane() { return running->lane; }
unsigned block_rank_in_cluster() { return running->block; }
uint3 block_index_in_cluster() { return block_of(*running).index_in_cluster; }
dim3 cluster_dim() { return cluster.launch.cluster; }

namespace {

Thread& lane_of_warp(unsigned lane) { return cluster.threads[running->number - running->lane + lane]; }

// Whether all lanes of the mask are in the same operation, with the same mask.
bool all_joined(unsigned mask, Site site) {
  if ((cluster.warps[running->warp].joined & mask) != mask) return false;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const Thread& other = lane_of_warp(__builtin_ctz(left));
    if (other.mask != mask || !(other.site == site)) return false;
  }
  return true;
}

// Waits for the lanes of the mask; the last to come calls finish(), which fills in the results of all.
template <class Finish>
std::uint64_t join(const char* operation, unsigned mask, Site site, Finish finish) {
  const races::Unwatched unwatched;
  Thread& self = *running;
  Warp& warp = cluster.warps[self.warp];
  const auto fault = [&](const std::string& what) {
    return Fault(std::string(operation) + " at " + describe(site) + ", " + describe(self) + ": " + what);
  };
  if ((mask >> self.lane & 1) == 0) throw fault("the mask lacks the lane itself");
  if ((mask & ~warp.exist) != 0) throw fault("the mask names lanes that the block does not have");
  if ((mask & warp.returned) != 0) throw fault("the mask names lanes that have returned");
  self.mask = mask;
  self.site = site;
  warp.joined |= 1u << self.lane;
  if (!all_joined(mask, site)) {
    wait(&warp, operation, site);
    while ((warp.joined >> self.lane & 1) != 0) wait(&warp, operation, site);
    return self.result;
  }
  finish();
  warp.joined &= ~mask;
  wake(&warp, self.number - self.lane, unsigned(__builtin_popcount(warp.exist)));
  give_way();
  return self.result;
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
  ++running->clock.seen_of_lane[running->lane];
  join("__syncwarp", mask, site, [mask] {
    Clock together = {};
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const Clock& clock = lane_of_warp(__builtin_ctz(left)).clock;
      for (unsigned i = 0; i < kWarp; ++i)
        together.seen_of_lane[i] = std::max(together.seen_of_lane[i], clock.seen_of_lane[i]);
    }
    for (unsigned left = mask; left != 0; left &= left - 1)
      std::copy_n(together.seen_of_lane, kWarp, lane_of_warp(__builtin_ctz(left)).clock.seen_of_lane);
  });
}

std::uint64_t exchange(const char* operation, unsigned mask, std::uint64_t value, unsigned source, Site site) {
  if ((mask >> source & 1) == 0)
    throw Fault(std::string(operation) + " at " + describe(site) + ": " + describe(*running) + " reads lane " +
                std::to_string(source) + ", which is not in the mask");
  running->value = value;
  running->source = source;
  return join(operation, mask, site, [mask] {
    for (unsigned left = mask; left != 0; left &= left - 1) {
      Thread& reader = lane_of_warp(__builtin_ctz(left));
      reader.result = lane_of_warp(reader.source).value;
    }
  });
}

unsigned vote(const char* operation, unsigned mask, bool predicate, Site site) {
  running->value = predicate;
  return unsigned(join(operation, mask, site, [mask] {
    unsigned ballot = 0;
    for (unsigned left = mask; left != 0; left &= left - 1)
      ballot |= unsigned(lane_of_warp(__builtin_ctz(left)).value) << __builtin_ctz(left);
    for (unsigned left = mask; left != 0; left &= left - 1) lane_of_warp(__builtin_ctz(left)).result = ballot;
  }));
}

}  // namespace cuda_on_cpu
