// CUDA run on the CPU: its model of the GPU, under several orders of the threads. See test_cuda_on_cpu_bugs and
// _functions too.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "test_launch.h"

namespace cg = cooperative_groups;

namespace {

constexpr unsigned kAll = 0xffffffffu;

// --- Indices

__global__ void write_indices(uint3* threads, uint3* blocks, unsigned* ranks) {
  const dim3 block = blockDim;
  const unsigned number = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * block.y + threadIdx.y) * block.x + threadIdx.x;
  const unsigned i = number * block.x * block.y * block.z + thread;
  threads[i] = threadIdx;
  __syncthreads();
  blocks[i] = blockIdx;
  ranks[i] = 100 * cg::this_cluster().block_rank() + cg::this_cluster().num_blocks();
}

void indices() {
  const dim3 grid(4, 3, 2), block(5, 3, 3);
  const unsigned n = 24 * 45;
  std::vector<uint3> threads(n), blocks(n);
  std::vector<unsigned> ranks(n);
  CHECK(fault({grid, block, 2}, write_indices, threads.data(), blocks.data(), ranks.data()) == "");
  unsigned i = 0;
  for (unsigned bz = 0; bz < grid.z; ++bz)
    for (unsigned by = 0; by < grid.y; ++by)
      for (unsigned bx = 0; bx < grid.x; ++bx)
        for (unsigned tz = 0; tz < block.z; ++tz)
          for (unsigned ty = 0; ty < block.y; ++ty)
            for (unsigned tx = 0; tx < block.x; ++tx, ++i) {
              CHECK(threads[i].x == tx && threads[i].y == ty && threads[i].z == tz);
              CHECK(blocks[i].x == bx && blocks[i].y == by && blocks[i].z == bz);
              CHECK(ranks[i] == 100 * (bx % 2) + 2);
            }
}

// --- Shuffles and votes

constexpr unsigned kShuffles = 8;

__global__ void shuffle(int* out) {
  int* const mine = out + threadIdx.x * kShuffles;
  const int x = int(threadIdx.x);
  mine[0] = __shfl_sync(kAll, x, 5);
  mine[1] = __shfl_sync(kAll, x, 3, 8);
  mine[2] = __shfl_up_sync(kAll, x, 3);
  mine[3] = __shfl_up_sync(kAll, x, 3, 8);
  mine[4] = __shfl_down_sync(kAll, x, 5, 16);
  mine[5] = __shfl_xor_sync(kAll, x, 9);
  mine[6] = int(__shfl_xor_sync(kAll, double(x) / 4, 16) * 4);
  mine[7] = __shfl_xor_sync(kAll, x, 12, 8);
}

__global__ void vote(unsigned* out) {
  unsigned* const mine = out + threadIdx.x * 4;
  const unsigned lane = threadIdx.x % 32, half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  mine[0] = __ballot_sync(kAll, lane % 3 == 0);
  mine[1] = __ballot_sync(half, lane % 3 == 0);
  mine[2] = unsigned(__any_sync(half, lane == 20));
  mine[3] = unsigned(__all_sync(half, lane >= 16));
}

void warps() {
  constexpr int n = 96;
  std::vector<int> out(n * kShuffles);
  CHECK(fault({1, n}, shuffle, out.data()) == "");
  std::vector<unsigned> votes(n * 4);
  CHECK(fault({1, n}, vote, votes.data()) == "");
  unsigned thirds = 0;
  for (unsigned lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int i = 0; i < n; ++i) {
    const int lane = i % 32, base = i - lane, segment8 = i - i % 8;
    const int* const s = out.data() + i * int(kShuffles);
    CHECK(s[0] == base + 5);
    CHECK(s[1] == segment8 + 3);
    CHECK(s[2] == (lane >= 3 ? i - 3 : i));
    CHECK(s[3] == (i % 8 >= 3 ? i - 3 : i));
    CHECK(s[4] == (i % 16 + 5 < 16 ? i + 5 : i));
    CHECK(s[5] == base + (lane ^ 9));
    CHECK(s[6] == base + (lane ^ 16));
    CHECK(s[7] == ((lane ^ 12) < lane - lane % 8 + 8 ? base + (lane ^ 12) : i));  // only to earlier segments
    const unsigned* const v = votes.data() + i * 4;
    CHECK(v[0] == thirds);
    CHECK(v[1] == (thirds & (lane < 16 ? 0x0000ffffu : 0xffff0000u)));
    CHECK(v[2] == unsigned(lane >= 16));
    CHECK(v[3] == unsigned(lane >= 16));
  }
}

// --- Shared memory: what was not written is NaN, in every block; a variable's template instances differ

template <int value>
__device__ int* variable() {
  SMEM_STATIC(int, x);
  if (threadIdx.x == 0) x = value;
  __syncthreads();
  return &x;
}

__global__ void poisoned(int* wrong) {
  SMEM_STATIC(float[8], row);
  SMEM_DYNAMIC(bytes);
  const bool aligned = reinterpret_cast<std::uintptr_t>(bytes) % 16 == 0;
  const bool fresh = std::isnan(row[threadIdx.x]) && bytes[threadIdx.x] == 0xff;
  __syncthreads();
  row[threadIdx.x] = 1;
  bytes[threadIdx.x] = 1;
  const int *const one = variable<1>(), *const two = variable<2>();
  if (!aligned || !fresh || *one != 1 || *two != 2) atomicAdd(wrong, 1);
}

__global__ void too_much(int) {
  SMEM_STATIC(float[5000], row);
  row[0] = 0;
}

void shared_memory() {
  int wrong = 0;
  CHECK(fault({6, 8, 1, 8}, poisoned, &wrong) == "");
  CHECK(wrong == 0);
  CHECK(fault({1, 1, 1, 40000}, too_much, 0) == "");
  cuda_on_cpu::device.shared_memory_per_block = 50000;
  CHECK(fault({1, 1, 1, 40000}, too_much, 0).find("too much static shared memory") == 0);
  cuda_on_cpu::device = {};
}

// --- Clusters: arrival apart from waiting, and the same place in each block's shared memory

__global__ void pass_on(int* out) {
  const auto cluster = cg::this_cluster();
  SMEM_STATIC(int[32], numbers);
  SMEM_DYNAMIC(bytes);
  numbers[threadIdx.x] = int(100 * cluster.block_rank() + threadIdx.x);
  bytes[threadIdx.x] = static_cast<unsigned char>(cluster.block_rank());
  auto token = cluster.barrier_arrive();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  cluster.barrier_wait(std::move(token));
  const int* const theirs = cluster.map_shared_rank(numbers, int(next));
  out[blockIdx.x * 32 + threadIdx.x] = theirs[threadIdx.x] +
                                       1000 * cluster.map_shared_rank(bytes, int(next))[threadIdx.x] +
                                       100000 * int(cluster.query_shared_rank(theirs));
  cluster.sync();
}

void clusters() {
  for (int size : {1, 2, 8}) {
    std::vector<int> out(std::size_t(16) * 32);
    CHECK(fault({16, 32, unsigned(size), 32}, pass_on, out.data()) == "");
    for (int b = 0; b < 16; ++b)
      for (int i = 0; i < 32; ++i) CHECK(out[std::size_t(b * 32 + i)] == 101100 * ((b % size + 1) % size) + i);
  }
}

// --- Asynchronous copies, group by group

// Reads words before they are there too, if it may: a race.
__global__ void copy(const int* in, int* out, bool early) {
  SMEM_STATIC(int[3], words);
  for (int i = 0; i < 3; ++i) {
    cuda_on_cpu::copy_async(words + i, in + i, 4);
    cuda_on_cpu::commit_copies();
  }
  for (int i = 0; i < 3; ++i) {
    cuda_on_cpu::wait_for_copy_groups(unsigned(2 - i));
    for (int j = 0; j < (early ? 3 : i + 1); ++j) out[3 * i + j] = words[j];
  }
}

__global__ void copy_wrongly(const char* in, int how) {
  SMEM_STATIC(int4, to);
  char* const bytes = reinterpret_cast<char*>(&to);
  if (how == 0) cuda_on_cpu::copy_async(bytes, in + 4, 16);
  if (how == 1) cuda_on_cpu::copy_async(bytes, in, 12);
  if (how == 2) cuda_on_cpu::copy_async(const_cast<char*>(in), in, 16);
  if (how == 3) cuda_on_cpu::copy_async(bytes, in, 16);
}

void copies() {
  const int in[3] = {10, 11, 12};
  std::vector<int> out(9);
  CHECK(fault({1, 1}, copy, in, out.data(), !kRacesAreWatched) == "");
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j <= i; ++j) CHECK(out[std::size_t(3 * i + j)] == in[j]);
  if (!kRacesAreWatched && cuda_on_cpu::seed == 0)
    CHECK(out[1] == -1 && out[2] == -1 && out[5] == -1);  // as late as may be
  alignas(16) const char bytes[32] = {};
  CHECK(fault({1, 1}, copy_wrongly, bytes, 0).find("not aligned") != std::string::npos);
  CHECK(fault({1, 1}, copy_wrongly, bytes, 1).find("4, 8 or 16") != std::string::npos);
  CHECK(fault({1, 1}, copy_wrongly, bytes, 2).find("outside its shared memory") != std::string::npos);
  CHECK(fault({1, 1}, copy_wrongly, bytes, 3).find("without waiting") != std::string::npos);
}

// --- Atomics, and what a kernel throws

__global__ void count(int* sum, float* fsum, unsigned* largest) {
  atomicAdd(sum, int(threadIdx.x));
  atomicAdd(fsum, 0.5f);
  atomicMax(largest, blockIdx.x * blockDim.x + threadIdx.x);
}

__global__ void throws(unsigned thread) {
  __syncthreads();
  if (threadIdx.x == thread) throw std::domain_error("from a kernel");
  __syncthreads();
}

void atomics_and_exceptions() {
  int sum = 0;
  float fsum = 0;
  unsigned largest = 0;
  CHECK(fault({3, 40}, count, &sum, &fsum, &largest) == "");
  CHECK(sum == 3 * 40 * 39 / 2 && fsum == 60 && largest == 119);
  for (unsigned thread : {0u, 13u, 63u}) {
    bool caught = false;
    try {
      launch({2, 64}, throws, thread);
    } catch (const std::domain_error& error) {
      caught = error.what() == std::string("from a kernel");
    }
    CHECK(caught);
  }
}

// --- Launches that a GPU refuses

__global__ void nothing(int) {}
__global__ void nothing_more(int) {}

void refusals() {
  using cuda_on_cpu::device;
  CHECK(launch({1, 1024}, nothing, 0) == cudaSuccess);
  CHECK(launch({1, 1025}, nothing, 0) == cudaErrorInvalidConfiguration);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(launch({0, 32}, nothing, 0) == cudaErrorInvalidConfiguration);
  CHECK(launch({6, 32, 4}, nothing, 0) == cudaErrorInvalidConfiguration);

  const std::size_t kilobyte = 1024;
  CHECK(launch({1, 32, 1, 48 * kilobyte}, nothing, 0) == cudaSuccess);
  CHECK(launch({1, 32, 1, 48 * kilobyte + 1}, nothing, 0) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024) ==
        cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024) == cudaSuccess);
  CHECK(launch({1, 32, 1, 227 * kilobyte}, nothing, 0) == cudaSuccess);
  CHECK(launch({1, 32, 1, 227 * kilobyte}, nothing_more, 0) == cudaErrorInvalidValue);

  CHECK(launch({16, 32, 16}, nothing, 0) == cudaErrorInvalidClusterSize);
  CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess);
  CHECK(launch({16, 32, 16}, nothing, 0) == cudaSuccess);
  CHECK(launch({32, 32, 32}, nothing, 0) == cudaErrorInvalidClusterSize);

  device.compute_capability_major = 8;
  CHECK(launch({2, 32, 2}, nothing, 0) == cudaErrorNotSupported);
  CHECK(fault({1, 32, 1, 32}, pass_on, nullptr).find("no clusters") != std::string::npos);
  device = {};
}

void what_the_device_says() {
  int value = 0;
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess && value == 132);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && value == 9);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess && value == 232448);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 1) == cudaErrorInvalidValue);

  const auto blocks = [](int threads, int kilobytes) {
    int n = -1;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, nothing, threads, std::size_t(kilobytes) * 1024);
    return n;
  };
  CHECK(blocks(1024, 0) == 2 && blocks(32, 0) == 32);
  CHECK(blocks(256, 113) == 2 && blocks(256, 114) == 1 && blocks(256, 227) == 1);

  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {16, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = 16;
  config.blockDim = 256;
  config.dynamicSmemBytes = 200 * 1024;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CHECK(cudaOccupancyMaxActiveClusters(&value, nothing, &config) == cudaSuccess && value == 8);
  CHECK(cudaOccupancyMaxActiveClusters(&value, nothing_more, &config) != cudaSuccess);
  cudaGetLastError();
}

}  // namespace

int main() {
  constexpr unsigned kSeeds = 10;
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    cuda_on_cpu::seed = seed;
    check::current_case = "seed " + std::to_string(seed);
    indices();
    warps();
    shared_memory();
    clusters();
    copies();
    atomics_and_exceptions();
  }
  check::current_case = "the host's interface";
  refusals();
  what_the_device_says();
  return check::finish(kSeeds);
}
