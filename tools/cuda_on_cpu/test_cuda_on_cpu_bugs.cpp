// Bugs planted in small kernels: CUDA run on the CPU must show each, and find nothing in the same kernels without them.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_launch.h"

namespace cg = cooperative_groups;

namespace {

constexpr unsigned kSeeds = CUDA_ON_CPU_ASAN ? 6 : 20;  // it takes a tenth of a second to die of AddressSanitizer
constexpr unsigned kThreads = 64, kCluster = 4, kRounds = 4;

// --- Kernels that are right if `right`. Each fills out[] with what can be told without it.

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

// --- How they are run

using Kernel = void (*)(const float*, float*);

const Shape kBlock = {1, kThreads, 1, 2 * kThreads * sizeof(float)};
const Shape kOneCluster = {kCluster, kThreads, kCluster};

std::vector<float> numbers(std::size_t n) {
  std::vector<float> result(n);
  for (std::size_t i = 0; i < n; ++i) result[i] = float(i);
  return result;
}

// Element i of the result: each row reversed, or the next block's row.
float expected(const Shape& shape, unsigned threads, unsigned i) {
  const unsigned n = shape.cluster * threads;
  return shape.cluster > 1 ? float((i + threads) % n) : float(i / threads * threads + threads - 1 - i % threads);
}

// The kernel's fault, "a wrong result", or "".
std::string finding(Kernel kernel, const Shape& shape, unsigned rows) {
  const unsigned threads = shape.block.x, n = shape.grid.x * threads * rows;
  const std::vector<float> in = numbers(n);
  std::vector<float> out(n, -1.0f);
  const std::string found = fault(shape, kernel, in.data(), out.data());
  if (!found.empty()) return found;
  for (unsigned i = 0; i < n; ++i)
    if (!(out[i] == expected(shape, threads, i))) return "a wrong result";
  return "";
}

// What AddressSanitizer writes as it ends the process, or what `run` returns.
std::string in_a_process(const std::function<std::string()>& run) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const std::string found = run();
    if (write(STDERR_FILENO, found.data(), found.size()) < 0) _exit(1);
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, std::size_t(n));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return text;
}

long cases = 0;

enum class Seen {
  at_times,        // a race: under some schedules, and under every one where races are watched
  in_every_order,  // by what the threads do, or AddressSanitizer
};

// The wrong kernel must be caught under every seed, or half of them, and what is said must contain `by`; the right one
// under none.
void check_bug(const char* name, Seen seen, const std::string& by, const std::function<std::string(bool right)>& run) {
  const bool always = seen == Seen::in_every_order || kRacesAreWatched;
  unsigned caught = 0;
  for (unsigned seed = 0; seed < kSeeds; ++seed, ++cases) {
    cuda_on_cpu::seed = seed;
    check::current_case = std::string(name) + ", seed " + std::to_string(seed);
    const std::string nothing = run(true), found = run(false);
    CHECK_SAYING(nothing.empty(), nothing);
    caught += !found.empty();
    if (always) CHECK_SAYING(found.find(by) != std::string::npos, found);
  }
  std::printf("%-44s caught under %2u of %u seeds\n", name, caught, kSeeds);
  check::current_case = name;
  CHECK_SAYING(caught >= (always ? kSeeds : kSeeds / 2), std::to_string(caught) + " seeds");
}

void check_bug(const char* name, Seen seen, const std::string& by, Kernel right, Kernel wrong, const Shape& shape,
               unsigned rows = 1) {
  check_bug(name, seen, by, [=](bool r) { return finding(r ? right : wrong, shape, rows); });
}

void race(const char* name, Kernel right, Kernel wrong, const Shape& shape, unsigned rows = 1) {
  check_bug(name, Seen::at_times, "data race", right, wrong, shape, rows);
}

void hang(const char* name, const std::string& by, Kernel right, Kernel wrong, const Shape& shape) {
  check_bug(name, Seen::in_every_order, by, right, wrong, shape);
}

void races() {
  race("no __syncthreads", reverse<true>, reverse<false>, kBlock);
  if (kRacesAreWatched) race("a shuffle for a barrier", reverse_in_a_warp<true>, reverse_in_a_warp<false>, {1, 32});
  race("a buffer overwritten while it is read", reverse_rows<true>, reverse_rows<false>, kBlock, kRounds);
  race("a block's barrier for a cluster's", neighbours<true>, neighbours<false>, kOneCluster);
  race("no barrier after a copy", copy_rows<Wrong::nothing>, copy_rows<Wrong::no_barrier>, kBlock, kRounds);
  race("a copy over what is being read", copy_rows<Wrong::nothing>, copy_rows<Wrong::overwrites>, kBlock, kRounds);
  const auto race_alone = [](const char* name, const Shape& shape, void (*right)(float*), void (*wrong)(float*)) {
    check_bug(name, Seen::at_times, "data race", [=](bool r) {
      std::vector<float> out(kThreads);
      return fault(shape, r ? right : wrong, out.data());
    });
  };
  if (kRacesAreWatched) {
    race_alone("two blocks write one element", {kCluster, 32}, all_write<true>, all_write<false>);
    race_alone("a warp's barrier for a block's", {1, kThreads}, first_warp_writes<true>, first_warp_writes<false>);
  }
}

void copies() {
  // The row that is missing is 0xFF, in the order that completes copies last (seed 0) at the latest.
  const char* by = kRacesAreWatched ? "data race" : "a wrong result";
  check_bug("a copy not waited for", Seen::at_times, by, copy_rows<Wrong::nothing>, copy_rows<Wrong::no_wait>, kBlock,
            kRounds);
  check_bug("waiting for the copy before", Seen::at_times, by, copy_rows<Wrong::nothing>,
            copy_rows<Wrong::waits_for_too_few>, kBlock, kRounds);
}

void hangs() {
  hang("a barrier in divergent code", "in divergent code", diverge<true>, diverge<false>, kBlock);
  hang("a thread returns before the barrier", "thread 48 to 63 returned", return_early<true>, return_early<false>,
       kBlock);
  hang("half a warp at a shuffle of all", "__shfl_xor_sync at", half_a_warp<true>, half_a_warp<false>, kBlock);
  hang("one thread at the cluster's barrier", "the cluster's barrier at", first_thread_only<true>,
       first_thread_only<false>, kOneCluster);
}

void lifetimes() {
  if (CUDA_ON_CPU_ASAN) {
    const auto outside = [](const char* name, const char* by, void (*right)(float*), void (*wrong)(float*)) {
      check_bug(name, Seen::in_every_order, by, [=](bool r) {
        return in_a_process([=] {
          std::vector<float> out(kThreads);
          return fault({1, kThreads, 1, kThreads * sizeof(float)}, r ? right : wrong, out.data());
        });
      });
    };
    outside("past the end of dynamic shared memory", "use-after-poison", past_the_end<true>, past_the_end<false>);
    outside("past a variable in shared memory", "use-after-poison", past_the_variable<true>, past_the_variable<false>);
    outside("a copy from past the end", "heap-buffer-overflow", copy_past_the_end<true>, copy_past_the_end<false>);
  }
  check_bug("a write to a block that may not run yet", Seen::at_times, "may not have started", [](bool right) {
    return in_a_process([=] { return finding(right ? greet<true> : greet<false>, kOneCluster, 1); });
  });
  check_bug("a block leaves while others read it", Seen::at_times, "have returned", [](bool right) {
    return in_a_process([=] { return finding(right ? leave<true> : leave<false>, kOneCluster, 1); });
  });
}

}  // namespace

// A process that is to die need not say where.
extern "C" const char* __asan_default_options() { return "symbolize=0:print_legend=0"; }

int main() {
  races();
  copies();
  hangs();
  lifetimes();
  return check::finish(cases);
}
