// blended_kl on an NVIDIA GPU. All pointers of the problem point into its memory; work is queued on a stream, and
// nothing waits for it. A label or past_index that is out of range makes the loss and the gradient of its row NaN.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../blended_kl.h"

namespace toast {

// What a GPU has room for.
struct Limits {
  int shared_per_block;           // bytes, of which
  int shared_per_multiprocessor;  // the blocks that run there at a time get this together
  int largest_cluster;            // blocks; 1 before sm_90
};
Limits limits_of_current_device();

// How a row is spread over the shared memory of a cluster of blocks.
struct Plan {
  int threads;  // of a block; a multiple of 32, up to kMostThreads
  int cluster;  // blocks of a cluster: 1, 2, 4, 8 or 16
  int stages;   // 2: the next logits are on their way while these are worked on
  int pieces;   // 1: the cluster holds the whole row, which is read once; else all pieces but the last are read
                // twice
  int slice;    // classes of a piece that a block holds; a multiple of 16 bytes
  int shared;   // bytes of dynamic shared memory
};
constexpr int kMostThreads = 256;
Plan plan(const BlendedKL& problem, const Limits& limits);
// Bytes that a block needs to hold this many classes.
std::int64_t shared_bytes(const BlendedKL& problem, std::int64_t slice, int stages);
// Whether there is more to the target than labels.
bool has_target_row(const BlendedKL& problem);

// Doubles of workspace for a problem of this many rows.
std::int64_t workspace_size(std::int64_t rows);

// Not of float64 logits. `threads` of the problem means nothing here. Throws std::runtime_error with CUDA's own words
// where a launch fails.
void blended_kl_cuda(const BlendedKL& problem, double* workspace, cudaStream_t stream);
// As planned, in a grid of `clusters`; the result does not depend on their number.
void blended_kl_cuda(const BlendedKL& problem, const Plan& plan, int clusters, double* workspace, cudaStream_t stream);

// Multiplies the gradient [size] by a number on the device, in place; only looks at it where that is 1.
constexpr int kMostScaleBlocks = 2048;
void scale_cuda(DType dtype, void* gradient, std::int64_t size, const float* upstream, cudaStream_t stream,
                int most_blocks = kMostScaleBlocks);

}  // namespace toast
