// blended_kl on an NVIDIA GPU. A cluster of thread blocks works on a row: each block holds its slice of the logits, and
// of the target row where there is one, in shared memory between the statistics and the gradient, so that the row is
// read once. The blocks' statistics meet in distributed shared memory. A row that no cluster can hold is worked on in
// pieces: forwards for the statistics, and backwards, from the last piece that is still there, for the gradient.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/blended_kl.h"
#include "cuda/shared_memory.cuh"
#include "cuda/statistics.cuh"
#include "cuda/sums.cuh"
#include "cuda/target.cuh"
#include "cuda/task.cuh"

namespace toast {
namespace {

// Of a block, besides its slices.
struct Shared {
  Row row[2];  // in turns
  float warp_max[kMostThreads / 32];
  Statistics warp[kMostThreads / 32];
  Statistics pieces;                  // so far
  Statistics block[2][kMostCluster];  // from each block of the cluster, in turns
};
static_assert(sizeof(Shared) <= kStaticShared, "the plan has to leave room for it");

// One load of a slice and what it is for: the pieces in order, for the statistics, then from the last but one to the
// first, for the gradient. The gradient of the last is worked out while it is there.
struct Step {
  std::int64_t row;
  int number;
  int turn;  // 0 and 1 for every other row
};

template <class T, bool Target, bool PastTerm>
class Block {
 public:
  __device__ Block(const Task& task, Shared& shared, unsigned char* memory)
      : p_(task.problem), task_(task), shared_(shared), rank_(cluster_rank()) {
    const int most_places = task.plan.slice + kWidth<T>;
    logits_ = reinterpret_cast<T*>(memory);
    mass_ = reinterpret_cast<float*>(logits_ + task.plan.stages * most_places);
    if (warp() == 0) scales_ = scales_of(task);
  }

  // The loads run ahead of the work by one step where there are two stages.
  __device__ void run() {
    const int ahead = task_.plan.stages - 1;
    cluster_barrier();  // the other blocks run: their memory may be written to
    Step loading{std::int64_t(blockIdx.x) / task_.plan.cluster, 0, 0}, working = loading;
    for (int load = 0; working.row < p_.rows; ++load) {
      if (loading.row < p_.rows) fetch(loading, stage_at(load & ahead));
      commit_copies();
      loading = after(loading);
      if (load < ahead) continue;
      if (ahead == 1)
        wait_for_copies<1>();
      else
        wait_for_copies<0>();
      __syncthreads();  // what is to be worked on is here
      work(working, stage_at((load - ahead) & ahead));
      working = after(working);
      __syncthreads();  // nobody works on it any more
    }
  }

 private:
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int lane() { return int(threadIdx.x) % 32; }

  __device__ Step after(Step step) const {
    const int loads = p_.gradient == nullptr ? task_.plan.pieces : 2 * task_.plan.pieces - 1;
    if (step.number + 1 < loads) return {step.row, step.number + 1, step.turn};
    return {step.row + task_.clusters, 0, 1 - step.turn};
  }

  __device__ Slice slice_of(Step step) const {
    const int pieces = task_.plan.pieces, size = task_.plan.slice;
    const int piece = step.number < pieces ? step.number : 2 * pieces - 2 - step.number;
    Slice slice;
    slice.begin = (std::int64_t(piece) * task_.plan.cluster + rank_) * size;
    slice.n = int(max(std::int64_t(0), min(p_.classes - slice.begin, std::int64_t(size))));
    slice.lead = int(reinterpret_cast<std::uintptr_t>(logits_row(step.row)) / sizeof(T) % kWidth<T>);
    slice.places = (slice.lead + slice.n + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
    return slice;
  }

  __device__ const T* logits_row(std::int64_t row) const { return static_cast<const T*>(p_.logits) + row * p_.stride; }

  __device__ T* stage_at(int stage) const { return logits_ + stage * (task_.plan.slice + kWidth<T>); }

  __device__ void work(Step step, const T* logits) {
    const int last = task_.plan.pieces - 1;
    const Row& row = shared_.row[step.turn];
    const Slice slice = slice_of(step);
    const bool worked_on = row.used || p_.stats != nullptr;
    if (worked_on) {
      Masses masses{0, 0};
      if constexpr (Target) masses = build_target<PastTerm>(p_, row, slice, mass_);
      if (step.number <= last) learn(row, slice, logits, masses, step.number == 0);
      if (step.number > last) __syncthreads();  // the target row is written
    }
    if (step.number == last) finish_statistics(row, worked_on);
    if (step.number >= last && p_.gradient != nullptr) write_gradient(row, slice, logits);
  }

  // Starts to copy the step's logits; with the first of a row, one warp works out what there is to know of the row.
  __device__ void fetch(Step step, T* to) {
    const Slice slice = slice_of(step);
    const T* from = logits_row(step.row) + slice.begin - slice.lead;
#pragma unroll 1
    for (int place = int(threadIdx.x) * kWidth<T>; place < slice.places; place += int(blockDim.x) * kWidth<T>) {
      if (slice.has(place) && slice.has(place + kWidth<T> - 1)) {
        copy_async_16(to + place, from + place);
      } else {
        for (int k = place; k < place + kWidth<T>; ++k)
          if (slice.has(k))
            to[k] = from[k];
          else
            narrow(-kInf, to[k]);
      }
    }
    if (step.number == 0 && warp() == 0)
      make_row<PastTerm>(p_, step.row, scales_.class_term, scales_.past_term, shared_.row[step.turn]);
  }

  // Calls f(place, logits, masses) for each 16 bytes of the slice. Beyond its ends there are logits of -inf, no mass.
  // Without the target row, which may not be written yet, the masses are not to be looked at.
  template <bool kMasses = Target, class F>
  __device__ void for_each_vector(const Slice& slice, const T* logits, F&& f) const {
#pragma unroll 1
    for (int place = int(threadIdx.x) * kWidth<T>; place < slice.places; place += int(blockDim.x) * kWidth<T>) {
      float z[kWidth<T>], mass[kWidth<T>];
      widen<T>(*reinterpret_cast<const uint4*>(logits + place), z);
      if constexpr (kMasses) load(mass_ + place, mass);
      f(place, z, mass);
    }
  }

  // exp(z - shift) and exp((z - shift) / T). Where T is a small integer, one exponential gives both.
  __device__ void exponentials(const float (&z)[kWidth<T>], float shift, float (&p)[kWidth<T>],
                               float (&e)[kWidth<T>]) const {
#pragma unroll
    for (int k = 0; k < kWidth<T>; ++k) {
      const float d = z[k] - shift;
      e[k] = PastTerm ? exp2_approx(d * task_.log2e_by_t) : 0;
      p[k] = PastTerm && task_.power != 0 ? e[k] : exp2_approx(d * kLog2e);
    }
    if constexpr (PastTerm)
      for (int i = 1; i < task_.power; ++i)
#pragma unroll
        for (int k = 0; k < kWidth<T>; ++k) p[k] *= e[k];
  }

  // The statistics of a slice, added to those of the pieces before it.
  __device__ void learn(const Row& row, const Slice& slice, const T* logits, Masses masses, bool first_piece) {
    float top = -kInf;
    for_each_vector<false>(slice, logits, [&](int, auto& z, auto&) {
#pragma unroll
      for (float x : z) top = fmaxf(top, x);
    });
    top = warp_max(top);
    if (lane() == 0) shared_.warp_max[warp()] = top;
    __syncthreads();  // and the target row is written
    top = warp_max(lane() < int(blockDim.x) / 32 ? shared_.warp_max[lane()] : -kInf);

    const float shift = top == -kInf ? 0 : top;
    Statistics s = no_statistics();
    s.max = top;
    s.class_mass = masses.of_class;
    s.past_mass = masses.of_past;
    for_each_vector(slice, logits, [&](int, auto& z, auto& mass) {
      float p[kWidth<T>], e[kWidth<T>];
      exponentials(z, shift, p, e);
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k) {
        s.sum += p[k];
        if constexpr (PastTerm) s.sum_at_t += e[k];
        if constexpr (Target) s.dot += mass[k] == 0 ? 0 : mass[k] * (z[k] - shift);  // 0 * -inf = 0
      }
    });
    if (p_.stats != nullptr) look_closer(row, slice, logits, s, shift);

    s = warp_sum(s);
    if (lane() == 0) shared_.warp[warp()] = s;
    __syncthreads();
    if (warp() == 0) {
      const Statistics piece = merged(shared_.warp, int(blockDim.x) / 32, task_.log2e_by_t);
      if (lane() == 0) {
        if (first_piece) {
          shared_.pieces = piece;
        } else {
          const float both = fmaxf(shared_.pieces.max, piece.max);
          shared_.pieces =
              relative_to(both, shared_.pieces, task_.log2e_by_t) + relative_to(both, piece, task_.log2e_by_t);
        }
      }
    }
  }

  // For the stats that the user sees: where the largest logit is, and the cross-entropy against given probabilities.
  __device__ void look_closer(const Row& row, const Slice& slice, const T* logits, Statistics& s, float shift) {
    for_each_vector<false>(slice, logits, [&](int place, auto& z, auto&) {
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k) {
        const bool number = z[k] == z[k];
        if (slice.has(place + k) && (z[k] == s.max || !number))
          s.first = min(s.first, unsigned(slice.class_at(place + k)) | (number ? kNumber : 0));
      }
    });
    if constexpr (Target) {
      if (p_.target != nullptr) return;
      for_each_share<1>(row.part[kSoftA], slice, [&](int place, auto& shares) {
#pragma unroll
        for (const float& share : shares) {
          const float d = widen(logits[place + (&share - shares)]) - shift;
          s.score_mass += share;
          s.score_dot += share == 0 ? 0 : share * d;
        }
      });
    }
  }

  // Gives this block's statistics to all blocks of the cluster and takes theirs. From then on every thread knows what
  // the gradient needs, and one of the cluster's writes the loss.
  __device__ void finish_statistics(const Row& row, bool worked_on) {
    Statistics total = no_statistics();
    if (worked_on) {
      const int blocks = task_.plan.cluster;
      // In turns: a block that is late still reads what it was given the last time.
      Statistics(&given)[kMostCluster] = shared_.block[exchange_];
      exchange_ = 1 - exchange_;
      if (warp() == 0) {
        __syncwarp();
        if (lane() < blocks) in_block(given, lane())[rank_] = shared_.pieces;
      }
      cluster_barrier();
      total = merged(given, blocks, task_.log2e_by_t);
    }
    shift_ = total.max == -kInf ? 0 : total.max;
    const float class_mass = total.class_mass + row.hard[0] + row.hard[1];
    of_p_ = row.bad ? kInf - kInf : row.upstream * class_mass / total.sum;
    of_e_ = row.upstream * total.past_mass / total.sum_at_t;
    if (rank_ == 0 && threadIdx.x == 0) write_loss(row, total, class_mass);
  }

  __device__ void write_loss(const Row& row, const Statistics& total, float class_mass) const {
    const float log_sum = logf(total.sum), nan = kInf - kInf;
    // Logits of -inf alone have a sum of 0, and no mass on them is no loss.
    const auto times_log = [&](float mass, float sum) { return mass == 0 && sum == 0 ? 0 : mass * logf(sum); };
    float loss = times_log(class_mass, total.sum) - total.dot;
#pragma unroll
    for (int which = 0; which < 2; ++which)
      if (row.hard[which] != 0) loss -= row.hard[which] * (row.z[which] - shift_);
    if constexpr (PastTerm)
      loss += float(p_.temperature) * (times_log(total.past_mass, total.sum_at_t) - row.past_entropy);
    loss = row.bad ? nan : row.used ? loss : 0;
    if (p_.reduction == Reduction::none)
      static_cast<float*>(p_.loss)[row.index] = loss;
    else
      task_.row_losses[row.index] = loss;
    if (p_.stats == nullptr) return;

    float cross_entropy = p_.target == nullptr ? total.score_mass * log_sum - total.score_dot : 0;
#pragma unroll
    for (int which = 0; which < 2; ++which)
      if (row.share[which] != 0) cross_entropy += row.share[which] * (log_sum + (shift_ - row.z[which]));
    float* stats = static_cast<float*>(p_.stats);
    stats[row.index] = row.bad ? nan : row.used ? cross_entropy : 0;
    stats[p_.rows + row.index] = shift_ + log_sum;
    p_.argmax[row.index] = total.first & ~kNumber;
  }

  __device__ void write_gradient(const Row& row, const Slice& slice, const T* logits) const {
    T* to = static_cast<T*>(p_.gradient) + row.index * p_.classes + slice.begin - slice.lead;
    const bool aligned = reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
    int label[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) label[which] = row.label[which] < 0 ? -1 : slice.place_of(row.label[which]);
    const bool used = row.used;
    const float of_mass = -row.upstream, of_hard[2] = {of_mass * row.hard[0], of_mass * row.hard[1]};
    for_each_vector(slice, logits, [&](int place, auto& z, auto& mass) {
      float p[kWidth<T>], e[kWidth<T>], g[kWidth<T>];
      exponentials(z, shift_, p, e);
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k) {
        g[k] = of_p_ * p[k];
        if constexpr (PastTerm) g[k] += of_e_ * e[k];
        if constexpr (Target) g[k] += of_mass * mass[k];
#pragma unroll
        for (int which = 0; which < 2; ++which)
          if (place + k == label[which]) g[k] += of_hard[which];
        if (!used) g[k] = 0;  // whatever the logits hold
      }
      if (aligned && slice.has(place) && slice.has(place + kWidth<T> - 1)) {
        *reinterpret_cast<uint4*>(to + place) = narrow<T>(g);
      } else {
#pragma unroll
        for (int k = 0; k < kWidth<T>; ++k)
          if (slice.has(place + k)) narrow(g[k], to[place + k]);
      }
    });
  }

  const BlendedKL& p_;
  const Task& task_;
  Shared& shared_;
  const int rank_;
  T* logits_;
  float* mass_;
  int exchange_ = 0;
  Scales scales_;              // known to the first warp, which needs them
  float shift_, of_p_, of_e_;  // of the row's gradient
};

template <class T, bool Target, bool PastTerm>
__global__ void __launch_bounds__(kMostThreads, 2) blended_kl_kernel(const __grid_constant__ Task task) {
  SMEM_DYNAMIC(memory);
  SMEM_STATIC(Shared, shared);
  Block<T, Target, PastTerm>(task, shared, memory).run();
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr which) {
  int device, value;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, which, device));
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

using Kernel = void (*)(Task);

template <class T>
Kernel kernel_of(const BlendedKL& p) {
  if (p.past.values != nullptr) return blended_kl_kernel<T, true, true>;
  return has_target_row(p) ? blended_kl_kernel<T, true, false> : blended_kl_kernel<T, false, false>;
}

Kernel kernel_for(const BlendedKL& p) {
  switch (p.dtype) {
    case DType::bfloat16:
      return kernel_of<__nv_bfloat16>(p);
    case DType::float16:
      return kernel_of<__half>(p);
    default:
      return kernel_of<float>(p);
  }
}

// A launch by a plan, with room for the cluster's attribute.
struct Configuration {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};

  Configuration(const Plan& plan, int clusters, cudaStream_t stream) {
    config.gridDim = dim3(unsigned(clusters * plan.cluster));
    config.blockDim = dim3(unsigned(plan.threads));
    config.dynamicSmemBytes = std::size_t(plan.shared);
    config.stream = stream;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(plan.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    if (plan.cluster > 1) {
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
  }
  Configuration(const Configuration&) = delete;
};

void allow(Kernel kernel, const Plan& plan) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared));
  if (plan.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

// How many clusters run at a time; 0: this GPU runs none of this size.
int clusters_at_once(const BlendedKL& problem, const Plan& plan) {
  const Kernel kernel = kernel_for(problem);
  allow(kernel, plan);
  int count = 0;
  if (plan.cluster == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, plan.threads, plan.shared));
    return count * attribute(cudaDevAttrMultiProcessorCount);
  }
  const Configuration c(plan, 1, nullptr);
  check(cudaOccupancyMaxActiveClusters(&count, kernel, &c.config));
  return count;
}

}  // namespace

Limits limits_of_current_device() {
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrComputeCapabilityMajor) < 9 ? 1 : kMostCluster};
}

std::int64_t workspace_size(std::int64_t rows) { return rows + 2 * kMostSumBlocks; }

void blended_kl_cuda(const BlendedKL& p, double* workspace, cudaStream_t stream) {
  Limits limits = limits_of_current_device();
  Plan plan = toast::plan(p, limits);
  int clusters = clusters_at_once(p, plan);
  while (clusters == 0 && plan.cluster > 1) {
    limits.largest_cluster = plan.cluster / 2;
    plan = toast::plan(p, limits);
    clusters = clusters_at_once(p, plan);
  }
  blended_kl_cuda(p, plan, int(std::min<std::int64_t>(clusters, p.rows)), workspace, stream);
}

void blended_kl_cuda(const BlendedKL& p, const Plan& plan, int clusters, double* workspace, cudaStream_t stream) {
  const double t = p.temperature;
  const int parts = int(std::min<std::int64_t>((p.rows + kSumThreads - 1) / kSumThreads, kMostSumBlocks));
  double* normalisers = workspace;
  double* row_losses = workspace + 2 * kMostSumBlocks;
  const Task task{
      p, plan, clusters, normalisers, parts, row_losses, t <= 4 && t == std::floor(t) ? int(t) : 0, float(kLog2e / t)};
  if (p.reduction == Reduction::mean && parts > 0)
    launch(normalisers_kernel, parts, kSumThreads, stream, p, normalisers);
  if (p.rows > 0) {
    allow(kernel_for(p), plan);
    const Configuration c(plan, clusters, stream);
    check(cudaLaunchKernelEx(&c.config, kernel_for(p), task));
  }
  if (p.reduction != Reduction::none)
    launch(loss_kernel, 1, kSumThreads, stream, row_losses, p.rows, p.reduction == Reduction::mean, normalisers, parts,
           static_cast<float*>(p.loss));
}

void scale_cuda(DType dtype, void* gradient, std::int64_t size, const float* upstream, cudaStream_t stream) {
  if (size == 0) return;
  const auto scale = [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t blocks = std::min<std::int64_t>(size / (kSumThreads * kWidth<T>)+1, 2048);
    launch(scale_kernel<T>, blocks, kSumThreads, stream, static_cast<T*>(gradient), size, upstream);
  };
  switch (dtype) {
    case DType::bfloat16:
      return scale(__nv_bfloat16{});
    case DType::float16:
      return scale(__half{});
    default:
      return scale(float{});
  }
}

}  // namespace toast
