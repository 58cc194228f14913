// A block's shared memory, declared alike for nvcc and for tools/cuda_on_cpu, where no macro could stand for __shared__
// alone: the threads of all blocks run in one process there, so that every block needs a copy of its own.
#pragma once

#include <cuda_runtime.h>

#if !defined(SMEM_STATIC)  // else tools/cuda_on_cpu/cuda_runtime.h has defined both

template <class T>
using SharedType = T;

// One variable a block, uninitialised: SMEM_STATIC(float[32], sums);
#define SMEM_STATIC(T, name) __shared__ SharedType<T> name

// unsigned char name[], as many bytes as the launch asked for; 16-byte aligned.
#define SMEM_DYNAMIC(name) extern __shared__ __align__(16) unsigned char name[]

#endif
