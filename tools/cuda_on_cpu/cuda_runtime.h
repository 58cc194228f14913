// Stands in for the toolkit's header of this name: the words of the language and the host's interface, as far as
// the kernels here use them.
#pragma once

#define CUDA_ON_CPU 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// There is no __shared__: every block has a copy of its own. The lambda is a type of its own for every variable.
#define SMEM_STATIC(T, name) auto& name = cuda_on_cpu::static_shared<T>([] {})
#define SMEM_DYNAMIC(name) unsigned char* const name = static_cast<unsigned char*>(cuda_on_cpu::dynamic_shared())

#include "device_functions.h"
#include "emulator.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};

enum cudaDeviceAttr {
  cudaDevAttrMaxRegistersPerBlock = 12,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
  cudaDevAttrClusterLaunch = 120,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();

namespace cuda_on_cpu {
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t max_active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);
cudaError_t max_active_blocks(int* blocks, const void* kernel, int threads, std::size_t dynamic_bytes);
// What is wrong with the configuration, if anything is; else the launch that it means.
cudaError_t check(const void* kernel, const cudaLaunchConfig_t* config, Launch* launch);
}  // namespace cuda_on_cpu

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_on_cpu::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel* kernel, const cudaLaunchConfig_t* config) {
  return cuda_on_cpu::max_active_clusters(clusters, reinterpret_cast<const void*>(kernel), config);
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          std::size_t dynamic_bytes) {
  return cuda_on_cpu::max_active_blocks(blocks, reinterpret_cast<const void*>(kernel), threads, dynamic_bytes);
}

// Runs the whole grid before it returns. Throws what the kernel throws, and Fault.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  cuda_on_cpu::Launch launch;
  const cudaError_t error = cuda_on_cpu::check(reinterpret_cast<const void*>(kernel), config, &launch);
  if (error != cudaSuccess) return error;
  using Call = cuda_on_cpu::Call<Parameters...>;
  Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  cuda_on_cpu::run(launch, &Call::make, &call);
  return cudaSuccess;
}
