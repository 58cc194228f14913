// The cluster that is running: its threads, warps and blocks. Inside of the emulator; kernels and tests do not see it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "emulator.h"
#include "fibers.h"
#include "races.h"

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, group;
  bool completed;
  std::uint64_t issued;  // as races::accesses() counts
};

struct Thread {
  Fiber fiber;
  unsigned number, block, warp, lane;  // of the cluster's threads, blocks and warps; of its warp's lanes
  uint3 index;

  // Where it waits, until somebody wakes all who wait there.
  const void* waits_at;
  const char* operation;
  Site site;
  bool returned;

  // What it brings to an operation of its warp, and takes away.
  unsigned mask, source;
  std::uint64_t value, result;

  unsigned cluster_arrivals, cluster_waits;
  Clock clock;

  std::vector<Copy> copies;  // that it has not waited for
  unsigned copy_groups;
};

struct Warp {
  unsigned exist, returned, joined;  // lanes: that the block has, that have returned, that are in a warp's operation
};

struct Block {
  uint3 index, index_in_cluster;
  unsigned threads_left;
  unsigned at_barrier;
  Site barrier;  // where the first of them waits
  bool started;
};

struct Cluster {
  Launch launch;
  unsigned threads_per_block;
  std::deque<Thread> threads;  // block by block; beyond `size` threads of earlier, larger launches, for their stacks
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  unsigned size;
  unsigned at_barrier, phase;

  unsigned first_thread(unsigned block) const { return block * threads_per_block; }
};

extern Cluster cluster;
extern Thread* running;

inline Block& block_of(const Thread& thread) { return cluster.blocks[thread.block]; }
std::string describe(const Thread& thread);
std::string describe(Site site);

// --- The scheduler
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  unsigned below(unsigned n) {  // SplitMix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return unsigned(((z ^ (z >> 31)) >> 32) * n >> 32);
  }

 private:
  std::uint64_t state_;
};
extern Random draw;

// The running thread waits until it is woken; others run.
void wait(const void* at, const char* operation, Site site);
// Makes ready who waits there, among n threads of the cluster from `first` on.
void wake(const void* at, unsigned first, unsigned n);
// Lets a thread of higher priority, if one is ready, run first.
void give_way();
// Runs the cluster's threads until all have returned; throws what one of them threw, and Fault if none can go on.
void run_cluster(void (*body)());

// --- Shared memory
void begin_launch_shared_memory();
void begin_shared_memory();                // of all blocks of the cluster that is to run
void open_shared_memory(unsigned block);   // as its first thread starts
void close_shared_memory(unsigned block);  // as its last thread returns
void* dynamic_shared_of(unsigned block);
int shared_memory_owner(const void* address);  // the block whose it is, or -1
void complete_a_copy();                        // or not: of the running thread, at random

}  // namespace cuda_on_cpu
