// CUDA's execution model on one thread of a CPU: what the toolkit's headers beside this one are made of, and what a
// test sets. Start with README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#include "vector_types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_cpu {

// A kernel that is wrong, such as one whose threads wait for each other for ever. Thrown by the launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The address; a GPU faults at one that is no multiple of what it reads there at once.
inline const void* aligned(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) throw Fault("a misaligned address is read");
  return address;
}

// The order in which threads run. 0: by their index. Else: by random priorities, which change now and then.
// Starts as the environment's CUDA_ON_CPU_SEED, or 0.
extern std::uint64_t seed;

// The GPU that is played; a test may change it. As made: an H200. One with another number is another GPU, which the
// host's code asks again.
struct Device {
  int number = 0;
  int compute_capability_major = 9, compute_capability_minor = 0;
  int multiprocessors = 132;
  int shared_memory_per_block = 227 * 1024;           // with the kernel's consent, cudaFuncSetAttribute
  int shared_memory_per_multiprocessor = 228 * 1024;  // of which each block takes shared_memory_reserved too
  int shared_memory_reserved = 1024;
  int registers_per_block = 65536;  // not counted
  int threads_per_multiprocessor = 2048;
  int multiprocessors_per_gpc = 16;  // a cluster lies within one graphics processing cluster
};
extern Device device;

// How often threads were switched to, in all launches.
extern std::uint64_t resumes;

// Where in the source a thread is.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// --- Shared memory. A variable has the same offset in every block.
void* static_shared(const void* variable, std::size_t bytes, std::size_t alignment);
void* dynamic_shared();
void* map_shared_rank(const void* address, unsigned rank);
unsigned query_shared_rank(const void* address);

template <class T, class Variable>
T& static_shared(Variable) {
  static_assert(std::is_trivially_default_constructible<T>::value, "shared memory is not initialised");
  static const char variable = 0;
  return *static_cast<T*>(static_shared(&variable, sizeof(T), alignof(T)));
}

// --- Asynchronous copies to shared memory, as cp.async makes them: of 4, 8 or 16 bytes, aligned. The destination reads
// as 0xFF until the copy completes: when the thread that issued it waits for it, or at a random moment before.
void copy_async(void* to, const void* from, unsigned bytes);
void commit_copies();                        // what this thread has issued since the last commit is a group
void wait_for_copy_groups(unsigned newest);  // all groups of this thread but the newest so many have completed
void wait_for_copies();                      // all copies of this thread, committed or not

// --- Barriers and exchanges.
void sync_block(Site);
void sync_warp(unsigned mask, Site);
void arrive_cluster(Site);
void wait_cluster(Site);

// The value that lane `source` of the warp gives. All lanes in the mask take part.
std::uint64_t exchange(const char* operation, unsigned mask, std::uint64_t value, unsigned source, Site);
// The lanes of the mask for which the predicate holds.
unsigned vote(const char* operation, unsigned mask, bool predicate, Site);
unsigned lane();

// --- The running thread's cluster.
uint3 block_index_in_cluster();
unsigned block_rank_in_cluster();
dim3 cluster_dim();

// --- Launches.
struct Launch {
  dim3 grid, block, cluster;
  std::size_t dynamic_bytes;
};
void run(const Launch&, void (*kernel)(void* arguments), void* arguments);

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;

  static void make(void* self) { static_cast<Call*>(self)->make(std::index_sequence_for<Parameters...>()); }

  // The arguments lie in constant memory: to read them is no race.
  template <std::size_t... I>
  __attribute__((no_sanitize("thread"))) void make(std::index_sequence<I...>) {
    kernel(std::get<I>(arguments)...);
  }
};

}  // namespace cuda_on_cpu
