// blended_kl on an NVIDIA GPU that has clusters of blocks, sm_90 and later. All pointers of the problem point into its
// memory; work is queued on a stream, and nothing waits for it. A label or past_index that is out of range makes the
// loss and the gradient of its row NaN.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../blended_kl.h"

namespace toast {

// What a row's target consists of, and with it what the threads of a cluster hold of a row in registers.
enum class RowKind : int {
  labels,  // labels alone: the logits are held
  lists,   // and smoothing or top-k rows: the logits
  past,    // and a past row of C values, of the logits' type: it is held too
  dense,   // and a soft target of C probabilities: it is held too
  any,     // whatever else there is: nothing is held, and everything read three times, element by element
};
// The fastest kind that can work on rows of this problem, whatever their length.
RowKind row_kind(const BlendedKL& problem);

// Vectors of 16 bytes of the logits that a thread holds, and as many of what lies beside them; how many threads of a
// block then share a multiprocessor's registers, and how many each has.
constexpr int vectors_of(RowKind kind) {
  constexpr int vectors[] = {8, 16, 8, 4, 0};
  return vectors[int(kind)];
}
constexpr int threads_of(RowKind kind) { return kind == RowKind::labels ? 1024 : 512; }
constexpr int registers_of(RowKind kind) { return 65536 / threads_of(kind); }

// What a GPU has room for.
struct Limits {
  int registers;  // of a block
  int cluster;    // blocks
};

// How a row is spread over a cluster of blocks.
struct Plan {
  RowKind kind;
  int threads;  // of a block; a multiple of 32
  int cluster;  // blocks
};
constexpr int kMostCluster = 16;
Plan plan(RowKind kind, DType dtype, std::int64_t classes, const Limits& limits);

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
