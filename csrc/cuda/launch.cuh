// Launches by the host: of blocks alone, and of clusters of blocks as a plan has them.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/task.cuh"

namespace toast {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline int current_device() {
  int device;
  check(cudaGetDevice(&device));
  return device;
}

inline int attribute(cudaDeviceAttr which) {
  int value;
  check(cudaDeviceGetAttribute(&value, which, current_device()));
  return value;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, cudaStream_t stream,
            Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// A kernel that is launched by a plan.
using Kernel = void (*)(Task);

// Lets a kernel have what any plan for this GPU may ask for; unasked, CUDA gives less.
inline void allow(Kernel kernel, const Limits& limits) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             limits.shared_per_block - kStaticShared));
  if (limits.largest_cluster > kPortableCluster)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

// The configuration has room for the cluster's attribute, to which it points.
class Clusters {
 public:
  Clusters(const Plan& plan, int count, cudaStream_t stream) {
    config_.gridDim = dim3(unsigned(count * plan.cluster));
    config_.blockDim = dim3(unsigned(plan.threads));
    config_.dynamicSmemBytes = std::size_t(plan.shared);
    config_.stream = stream;
    if (plan.cluster == 1) return;
    size_.id = cudaLaunchAttributeClusterDimension;
    size_.val.clusterDim.x = unsigned(plan.cluster);
    size_.val.clusterDim.y = size_.val.clusterDim.z = 1;
    config_.attrs = &size_;
    config_.numAttrs = 1;
  }
  Clusters(const Clusters&) = delete;

  void launch(Kernel kernel, const Task& task) const { check(cudaLaunchKernelEx(&config_, kernel, task)); }

  // How many such clusters run at a time; 0: this GPU runs none of this size.
  int at_once(Kernel kernel) const {
    int count = 0;
    if (config_.numAttrs == 0) {
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, int(config_.blockDim.x),
                                                          config_.dynamicSmemBytes));
      return count * attribute(cudaDevAttrMultiProcessorCount);
    }
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&count, kernel, &config_);
    if (error == cudaErrorInvalidClusterSize) {
      cudaGetLastError();  // what is answered here is not to be found by who looks for errors next
      return 0;
    }
    check(error);
    return count;
  }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute size_{};
};

}  // namespace toast
