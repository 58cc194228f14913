// The host's interface: what a launch may ask for, and what a device says of itself.
#include <algorithm>
#include <cstring>
#include <map>

#include "cuda_runtime.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kThreadsPerBlock = 1024;
constexpr unsigned kPortableClusterSize = 8, kClusterSize = 16;
constexpr int kBlocksPerMultiprocessor = 32;
constexpr std::size_t kDynamicBytes = 48 * 1024;  // without a kernel's consent to more

struct Consent {
  std::size_t dynamic_bytes = kDynamicBytes;
  bool non_portable_cluster_size = false;
};
// A kernel's on the current device.
Consent& consent_of(const void* kernel) {
  static std::map<std::pair<int, const void*>, Consent> consents;
  return consents[{device.number, kernel}];
}

cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t cluster_of(const cudaLaunchConfig_t& config, dim3* cluster) {
  *cluster = dim3(1, 1, 1);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) return cudaErrorInvalidValue;
    const auto& dim = config.attrs[i].val.clusterDim;
    *cluster = dim3(dim.x, dim.y, dim.z);
  }
  return cudaSuccess;
}

cudaError_t checked(const void* kernel, const cudaLaunchConfig_t& config, Launch* launch) {
  dim3 cluster;
  if (const cudaError_t error = cluster_of(config, &cluster)) return error;
  const Consent& consent = consent_of(kernel);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t(cluster.x) * cluster.y * cluster.z;

  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    return cudaErrorInvalidConfiguration;
  if (threads == 0 || threads > kThreadsPerBlock || block.z > 64) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > consent.dynamic_bytes) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaErrorInvalidClusterSize;
  if (blocks > 1) {
    if (device.compute_capability_major < 9) return cudaErrorNotSupported;
    if (blocks > (consent.non_portable_cluster_size ? kClusterSize : kPortableClusterSize))
      return cudaErrorInvalidClusterSize;
  }
  if (grid.x % cluster.x != 0 || grid.y % cluster.y != 0 || grid.z % cluster.z != 0)
    return cudaErrorInvalidConfiguration;
  *launch = {grid, block, cluster, config.dynamicSmemBytes};
  return cudaSuccess;
}

int blocks_per_multiprocessor(int threads, std::size_t dynamic_bytes) {
  const int by_memory = int(std::size_t(device.shared_memory_per_multiprocessor) /
                            (dynamic_bytes + std::size_t(device.shared_memory_reserved)));
  return std::min({by_memory, device.threads_per_multiprocessor / threads, kBlocksPerMultiprocessor});
}

}  // namespace

cudaError_t check(const void* kernel, const cudaLaunchConfig_t* config, Launch* launch) {
  return failed(checked(kernel, *config, launch));
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || value > device.shared_memory_per_block) return failed(cudaErrorInvalidValue);
      consent_of(kernel).dynamic_bytes = std::size_t(value);
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      if (device.compute_capability_major < 9) return failed(cudaErrorNotSupported);
      consent_of(kernel).non_portable_cluster_size = value != 0;
      return cudaSuccess;
  }
  return failed(cudaErrorInvalidValue);
}

cudaError_t max_active_blocks(int* blocks, const void* kernel, int threads, std::size_t dynamic_bytes) {
  if (threads < 1 || threads > int(kThreadsPerBlock)) return failed(cudaErrorInvalidValue);
  *blocks = dynamic_bytes > consent_of(kernel).dynamic_bytes ? 0 : blocks_per_multiprocessor(threads, dynamic_bytes);
  return cudaSuccess;
}

// Registers are not counted, and all graphics processing clusters (GPCs) are equally large.
cudaError_t max_active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  Launch launch;
  if (const cudaError_t error = checked(kernel, *config, &launch)) return failed(error);
  const int threads = int(launch.block.x * launch.block.y * launch.block.z);
  const int size = int(launch.cluster.x * launch.cluster.y * launch.cluster.z);
  const int blocks = blocks_per_multiprocessor(threads, launch.dynamic_bytes);
  *clusters =
      device.multiprocessors / device.multiprocessors_per_gpc * (blocks * device.multiprocessors_per_gpc / size);
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::device;
using cuda_on_cpu::last_error;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* number) {
  *number = device.number;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) { return number == device.number ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number != device.number) return cudaErrorInvalidValue;
  switch (attribute) {
    case cudaDevAttrMaxRegistersPerBlock:
      *value = device.registers_per_block;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.compute_capability_major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.compute_capability_minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_memory_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_memory_per_block;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = device.shared_memory_reserved;
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = device.compute_capability_major >= 9;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
