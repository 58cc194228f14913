// Launches for the tests of kernels that run on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "sanitizers.h"

struct Shape {
  dim3 grid, block;
  unsigned cluster = 1;
  std::size_t dynamic_bytes = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(const Shape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.dynamic_bytes;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// What the emulator finds wrong with the kernel; "" if nothing.
template <class... Parameters, class... Arguments>
std::string fault(const Shape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  try {
    const cudaError_t error = launch(shape, kernel, std::forward<Arguments>(arguments)...);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
  } catch (const cuda_on_cpu::Fault& fault) {
    return fault.what();
  }
}
