// Launches by the host, of blocks alone and of clusters of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

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

// `count` clusters of `cluster` blocks. The configuration has room for the cluster's attribute, to which it points.
class Grid {
 public:
  Grid(std::int64_t count, int cluster, int threads, cudaStream_t stream)
      : config_{dim3(unsigned(count * cluster)), dim3(unsigned(threads)), 0, stream, &size_, cluster > 1} {
    size_.id = cudaLaunchAttributeClusterDimension;
    size_.val.clusterDim = {unsigned(cluster), 1, 1};
  }
  Grid(const Grid&) = delete;

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Arguments... arguments) const {
    check(cudaLaunchKernelEx(&config_, kernel, Parameters(arguments)...));
  }

  // How many such clusters run at a time; 0 where the GPU has none as large.
  template <class Kernel>
  int at_once(Kernel* kernel) const {
    int count = 0;
    if (config_.numAttrs != 0) {
      const cudaError_t error = cudaOccupancyMaxActiveClusters(&count, kernel, &config_);
      if (error == cudaErrorInvalidClusterSize) return cudaGetLastError(), 0;  // which forgets it
      check(error);
      return count;
    }
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, int(config_.blockDim.x), 0));
    return count * attribute(cudaDevAttrMultiProcessorCount);
  }

 private:
  cudaLaunchConfig_t config_;
  cudaLaunchAttribute size_{};
};

}  // namespace toast
