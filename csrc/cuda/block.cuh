// What a block does with the rows of its cluster: statistics of a row, one exchange of them behind one barrier of the
// block and one of the cluster, the loss, the gradient; and one row ahead, loads, and two rows ahead, labels and past.
#pragma once

#include "cuda/row_work.cuh"
#include "cuda/sums.cuh"

namespace toast {

// What the kernel is given.
struct Task {
  BlendedKL problem;
  Plan plan;
  int clusters;                    // of the grid: cluster k works on the rows k, k + clusters, ...
  const Normalisers* normalisers;  // [normaliser_blocks] from normalisers_kernel
  int normaliser_blocks;
  double* row_losses;  // [N], unless the reduction is "none"
  Base base_at_t;      // of rows with a past
};

template <class T, RowKind kind>
class Block {
  using Held = HeldRow<T, kind>;
  using Stats = Statistics<sums_of(kind)>;

 public:
  // Of a block, of three rows in turns: one is worked on, one is loaded meanwhile, one is looked up. A block that is
  // late still reads the statistics of the row before; two rows on no peer can be.
  struct Shared {
    Terms<float> scales;
    Row row[3];
    Stats warp[3][32];
    Stats block[3][kMostCluster];
    double sums[32];
  };

  __device__ Block(const Task& task, Shared& shared)
      : p_(task.problem),
        task_(task),
        shared_(shared),
        held_(p_, rank() * int(blockDim.x) + int(threadIdx.x), cluster() * int(blockDim.x)) {}

  __device__ void run() {
    const std::int64_t first = std::int64_t(blockIdx.x) / cluster(), step = task_.clusters;
    if (looks_up()) {
      const Terms<float> scales = scales_of(p_, task_.normalisers, task_.normaliser_blocks);
      if (lane() == 0) shared_.scales = scales;
      __syncwarp();
    }
#pragma unroll 1
    for (int k = 0; k < 2; ++k) look_up(first + k * step, k);
    __syncthreads();
    held_.load(held_.span(first), shared_.row[0]);
    sync_cluster();  // the other blocks run: their memory may be written to
    int now = 0;
    for (std::int64_t i = first; i < p_.rows; i += step) {
      const int next = now == 2 ? 0 : now + 1;
      const Row& row = shared_.row[now];
      const Base base = Held::has_past(row) ? task_.base_at_t : Base{kLog2e, 1, 1};
      Stats all;
      bool again = false;
      do {
        forget(i);  // so that no register keeps what follows from it
        give(i, row, base, now);
        look_up(i + 2 * step, 3 - now - next);
        all = take(base, now);
        if constexpr (Held::kMasses) {
          again = !(all.sum[kDot] > -kInf) && row.used && row.has_lists() && !row.masked;
          if (again) mask(i, shared_.row[now]);
        }
      } while (again);
      if (held_.thread == 0) write_loss(i, row, base, all);
      write_gradient(i, row, base, all, shared_.row[next]);
      forget(i);  // so that no register keeps what follows from it
      now = next;
    }
  }

 private:
  __device__ int cluster() const { return task_.plan.cluster; }
  __device__ int rank() const { return cluster() == 1 ? 0 : cluster_rank(); }
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int warps() { return int(blockDim.x) / 32; }
  // The last warp; the first merges statistics.
  __device__ static bool looks_up() { return warp() == warps() - 1; }

  __device__ void sync_cluster() const {
    if (cluster() == 1) return;
    cluster_arrive();
    cluster_wait();
  }
  __device__ void look_up(std::int64_t i, int turn) {
    if (looks_up() && i < p_.rows) make_row<kind>(p_, i, shared_.scales, shared_.row[turn]);
  }
  // The labels of row `next`, which is looked up next, and the logits that this one's labels and lists name.
  __device__ void prefetch_sparse_classes(std::int64_t next, const Row& row, const T* logits) const {
    if (threadIdx.x < 3 && next < p_.rows) {
      const std::int64_t* indices = threadIdx.x == 0 ? p_.target : threadIdx.x == 1 ? p_.target_b : p_.past_index;
      if (indices != nullptr) prefetch(indices + next);
    }
    if (threadIdx.x < 2 && row.label[threadIdx.x] >= 0) prefetch(logits + row.label[threadIdx.x]);
    if constexpr (Held::kMasses) row.for_each_listed([&](int, auto&, int, int j) { prefetch(logits + j); });
  }

  // --- The exchange
  // Gives this block's statistics of row i to all blocks of the cluster.
  __device__ void give(std::int64_t i, const Row& row, const Base& base, int turn) {
    prefetch_sparse_classes(i + 2 * std::int64_t(task_.clusters), row, held_.span(i).logits);
    const bool lists = rank() == 0;
    Stats mine;
    Held::with_past(row, [&](auto past) { mine = RowWork<T, kind, past>(held_, i, row, base).statistics(lists); });
    warp_sum(mine, p_.stats != nullptr);
    if (lane() == 0) shared_.warp[turn][warp()] = mine;
    __syncthreads();
    if (cluster() == 1) return;
    if (warp() == 0) {
      const Stats block = merged(shared_.warp[turn], warps(), base, p_.stats != nullptr);
      if (lane() < cluster()) in_block(shared_.block[turn], lane())[rank()] = block;
      __syncwarp();
    }
    cluster_arrive();
  }
  // The whole row's.
  __device__ Stats take(const Base& base, int turn) {
    if (cluster() == 1) return merged(shared_.warp[turn], warps(), base, p_.stats != nullptr);
    cluster_wait();
    return merged(shared_.block[turn], cluster(), base, p_.stats != nullptr);
  }

  // Gives logits of -inf no share of the lists' tails, before the statistics are taken anew. That is rare: each block
  // of the cluster reads the whole row.
  __device__ void mask(std::int64_t i, Row& row) {
    const Span<T> span = held_.span(i);
    double masked[kScaledRows] = {};  // that a list does not have
    for (int j = int(threadIdx.x); j < span.classes; j += int(blockDim.x))
      for (int k = 0; k < kScaledRows && span.logit(j) == -kInf; ++k)
        masked[k] += row.scaled[k].is_list() && row.scaled[k].place_of(j) < 0;
    for (double& count : masked) count = block_sum(count, shared_.sums);
    if (threadIdx.x == 0) {
      row.masked = true;
      for (int k = 0; k < kScaledRows; ++k) {
        if (!row.scaled[k].is_list()) continue;
        const float more = row.scaled[k].take_tail_from(masked[k], p_.classes);
        if (k == kPast) row.past_entropy += more;
      }
    }
    __syncthreads();
    sync_cluster();  // all blocks have taken the statistics
  }

  // --- What comes out
  // Statistics are of what falls on labels alone not; here it is added.
  __device__ static float class_mass(const Row& row, const Stats& all) {
    const float hard = row.hard[0] + row.hard[1];
    if constexpr (Held::kMasses) return all.sum[kClassMass] + hard;
    return hard;
  }

  __device__ void write_loss(std::int64_t i, const Row& row, const Base& base, const Stats& all) const {
    const Span<T> span = held_.span(i);
    float dot = 0, score_mass = 0, score_dot = 0, past = 0;
    // Logits of -inf alone have a sum of 0, and no mass on them is no loss.
    const auto times_log2 = [](float mass, float sum) { return mass == 0 && sum == 0 ? 0 : mass * log2f(sum); };
    if constexpr (Held::kMasses) {
      dot = all.sum[kDot];
      if (Held::has_past(row)) past = times_log2(all.sum[kPastMass], all.sum[kSumAtT]);
    }
    if constexpr (kind == RowKind::any) {
      score_mass = all.sum[kScoreMass];
      score_dot = all.sum[kScoreDot];
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (row.label[which] < 0) continue;
      const float x = base.x(span.logit(row.label[which]), origin_of(all.max));
      const float hard = row.hard[which], share = row.share[which];
      dot += hard == 0 ? 0 : hard * x;
      score_mass += share;
      score_dot += share == 0 ? 0 : share * x;
    }
    const float log2_sum = log2f(all.sum[kSum]);
    float loss = times_log2(class_mass(row, all), all.sum[kSum]) + base.t * (past - dot);
    loss = row.bad ? NAN : row.used ? kLn2 * loss - base.t * row.past_entropy : 0;
    if (p_.reduction == Reduction::none)
      static_cast<float*>(p_.loss)[i] = loss;
    else
      task_.row_losses[i] = loss;
    if (p_.stats == nullptr) return;

    const float cross_entropy = score_mass == 0 ? 0 : kLn2 * (score_mass * log2_sum - base.t * score_dot);
    float* stats = static_cast<float*>(p_.stats);
    stats[i] = row.bad ? NAN : row.used ? cross_entropy : 0;
    stats[p_.rows + i] = all.max + kLn2 * log2_sum;
    p_.argmax[i] = all.first & ~Stats::kNumber;
  }

  // And loads the next row.
  __device__ void write_gradient(std::int64_t i, const Row& row, const Base& base, const Stats& all,
                                 const Row& next_row) {
    forget(i);
    const std::int64_t next = i + task_.clusters;
    if (p_.gradient == nullptr) return held_.load(held_.span(next), next_row);
    Slope slope{row.bad ? NAN : row.upstream * class_mass(row, all) / all.sum[kSum], 0, origin_of(all.max)};
    if constexpr (Held::kMasses) slope.coef_e = row.upstream * all.sum[kPastMass] / all.sum[kSumAtT];
    if (!row.used) {  // then it is 0, whatever the logits hold
      held_.clear();
      slope = {};
    }
    Held::with_past(
        row, [&](auto past) { RowWork<T, kind, past>(held_, i, row, base).write_gradient(slope, next, next_row); });
  }

  const BlendedKL& p_;
  const Task& task_;
  Shared& shared_;
  Held held_;
};

}  // namespace toast
