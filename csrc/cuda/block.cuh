// What a block does with the rows of its cluster. It copies its slice of a row's logits into shared memory, while the
// row before is still worked on; builds its slice of the target row, where there is more to the target than labels;
// takes statistics, gives them to the other blocks and gets theirs; and writes its slice of the gradient from what it
// holds. Rows that no cluster can hold go through the same in pieces: forwards for the statistics, and backwards, from
// the last piece that is still there, for the gradient.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/row.cuh"
#include "cuda/statistics.cuh"
#include "cuda/sums.cuh"
#include "cuda/target.cuh"
#include "cuda/task.cuh"

namespace toast {

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

template <class T, bool TargetRow, bool PastTerm>
class Block {
 public:
  __device__ Block(const Task& task, Shared& shared, unsigned char* memory)
      : p_(task.problem), task_(task), shared_(shared), rank_(cluster_rank()) {
    const int most_places = task.plan.slice + kWidth<T>;
    logits_ = reinterpret_cast<T*>(memory);
    mass_ = reinterpret_cast<float*>(logits_ + task.plan.stages * most_places);
    if (makes_rows()) scales_ = scales_of(task);
  }

  // The loads run ahead of the work by one step where there are two stages. That a thread waits for its own copies is
  // enough: it sweeps over the places that it has copied itself, and who looks at others does so behind a barrier.
  __device__ void run() {
    const int ahead = task_.plan.stages - 1;
    Step loading{std::int64_t(blockIdx.x) / task_.plan.cluster, 0, 0}, working = loading;
    look_up(loading.row, loading.turn);
    cluster_arrive();
    cluster_wait();  // the other blocks run: their memory may be written to
    for (int load = 0; working.row < p_.rows; ++load) {
      if (loading.row < p_.rows) copy_logits(loading, stage_at(load & ahead));
      commit_copies();
      loading = after(loading);
      if (load < ahead) continue;
      if (ahead == 1)
        wait_for_copies<1>();
      else
        wait_for_copies<0>();
      work(working, stage_at((load - ahead) & ahead));
      working = after(working);
      __syncthreads();  // nobody works on it any more
    }
  }

 private:
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int lane() { return int(threadIdx.x) % 32; }
  // The last warp; the first merges statistics.
  __device__ static bool makes_rows() { return warp() == int(blockDim.x) / 32 - 1; }

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

  // Starts to copy the step's logits.
  __device__ void copy_logits(Step step, T* to) const {
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
            round_to(-kInf, to[k]);
      }
    }
  }

  // What there is to know of a row. Loads wait for each other here, so it is done one row ahead, and by one warp while
  // the others go on or wait for the cluster.
  __device__ void look_up(std::int64_t row, int turn) {
    if (makes_rows() && row < p_.rows)
      make_row<PastTerm>(p_, row, scales_.class_term, scales_.past_term, shared_.row[turn]);
  }

  __device__ void work(Step step, const T* logits) {
    const int last = task_.plan.pieces - 1;
    const Row& row = shared_.row[step.turn];
    const Slice slice = slice_of(step);
    const bool worked_on = row.used || p_.stats != nullptr;
    if (worked_on) {
      Masses masses{0, 0};
      if constexpr (TargetRow) masses = build_target<PastTerm>(p_, row, slice, mass_);
      if (step.number <= last) add_statistics(row, slice, logits, masses, step.number == 0);
      if (step.number > last) __syncthreads();  // the target row is written
    }
    if (step.number == last) finish_statistics(step, row, worked_on);
    if (step.number >= last && p_.gradient != nullptr) write_gradient(row, slice, logits);
  }

  // Calls f(place, logits, masses) for each 16 bytes of the slice. Beyond its ends there are logits of -inf, no mass.
  // Without the target row, which may not be written yet, the masses are not to be looked at.
  template <bool kMasses = TargetRow, class F>
  __device__ void for_each_vector(const Slice& slice, const T* logits, F&& f) const {
#pragma unroll 1
    for (int place = int(threadIdx.x) * kWidth<T>; place < slice.places; place += int(blockDim.x) * kWidth<T>) {
      float z[kWidth<T>], mass[kWidth<T>];
      widen<T>(load_shared_16(logits + place), z);
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
  __device__ void add_statistics(const Row& row, const Slice& slice, const T* logits, Masses masses, bool first_piece) {
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
        if constexpr (TargetRow) s.dot += mass[k] == 0 ? 0 : mass[k] * (z[k] - shift);  // 0 * -inf = 0
      }
    });
    if (threadIdx.x == 0) add_labels(row, slice, logits, shift, s);
    if (p_.stats != nullptr) look_closer(row, slice, logits, shift, s);

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

  // The labels' own mass, if their classes are in this slice.
  __device__ static void add_labels(const Row& row, const Slice& slice, const T* logits, float shift, Statistics& s) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (row.label[which] < 0 || !slice.has(slice.place_of(row.label[which]))) continue;
      const float d = widen(logits[slice.place_of(row.label[which])]) - shift;
      const float hard = row.hard[which], share = row.share[which];
      s.class_mass += hard;
      s.dot += hard == 0 ? 0 : hard * d;
      s.score_mass += share;
      s.score_dot += share == 0 ? 0 : share * d;
    }
  }

  // For the stats that the user sees: where the largest logit is, and the cross-entropy against given probabilities.
  __device__ void look_closer(const Row& row, const Slice& slice, const T* logits, float shift, Statistics& s) const {
    for_each_vector<false>(slice, logits, [&](int place, auto& z, auto&) {
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k) {
        const bool number = z[k] == z[k];
        if (slice.has(place + k) && (z[k] == s.max || !number))
          s.first = min(s.first, unsigned(slice.class_at(place + k)) | (number ? kNumber : 0));
      }
    });
    if constexpr (TargetRow) {
      if (p_.target != nullptr) return;
      for_each_probability<1>(row.scaled[kSoftA], slice, [&](int place, auto& probabilities) {
#pragma unroll
        for (const float& probability : probabilities) {
          const float d = widen(logits[place + (&probability - probabilities)]) - shift;
          s.score_mass += probability;
          s.score_dot += probability == 0 ? 0 : probability * d;
        }
      });
    }
  }

  // Gives this block's statistics to all blocks of the cluster and takes theirs. From then on every thread knows what
  // the gradient needs, and one of the cluster's writes the loss. Meanwhile the next row is looked up.
  __device__ void finish_statistics(Step step, const Row& row, bool worked_on) {
    // In turns, which skip rows that are not worked on: a block that is late still reads what it was given the last
    // time. Two are enough: a peer cannot write this turn again before this block has arrived at the next exchange.
    Statistics(&given)[kMostCluster] = shared_.block[exchange_];
    if (worked_on) {
      exchange_ = 1 - exchange_;
      if (warp() == 0) {
        __syncwarp();
        if (lane() < task_.plan.cluster) in_block(given, lane())[rank_] = shared_.pieces;
      }
      cluster_arrive();
    }
    look_up(step.row + task_.clusters, 1 - step.turn);
    Statistics total = no_statistics();
    if (worked_on) {
      cluster_wait();
      total = merged(given, task_.plan.cluster, task_.log2e_by_t);
    }
    shift_ = total.max == -kInf ? 0 : total.max;
    coef_p_ = row.bad ? NAN : row.upstream * total.class_mass / total.sum;
    coef_e_ = row.upstream * total.past_mass / total.sum_at_t;
    if (rank_ == 0 && threadIdx.x == 0) write_loss(row, total);
  }

  __device__ void write_loss(const Row& row, const Statistics& total) const {
    // Logits of -inf alone have a sum of 0, and no mass on them is no loss.
    const auto times_log = [](float mass, float sum) { return mass == 0 && sum == 0 ? 0 : mass * logf(sum); };
    float loss = times_log(total.class_mass, total.sum) - total.dot;
    if constexpr (PastTerm)
      loss += float(p_.temperature) * (times_log(total.past_mass, total.sum_at_t) - row.past_entropy);
    loss = row.bad ? NAN : row.used ? loss : 0;
    if (p_.reduction == Reduction::none)
      static_cast<float*>(p_.loss)[row.index] = loss;
    else
      task_.row_losses[row.index] = loss;
    if (p_.stats == nullptr) return;

    const float cross_entropy = total.score_mass == 0 ? 0 : total.score_mass * logf(total.sum) - total.score_dot;
    float* stats = static_cast<float*>(p_.stats);
    stats[row.index] = row.bad ? NAN : row.used ? cross_entropy : 0;
    stats[p_.rows + row.index] = shift_ + logf(total.sum);
    p_.argmax[row.index] = total.first & ~kNumber;
  }

  // gradient = coef_p p + coef_e e - upstream mass, and at a label's class less upstream times what falls on the label
  // alone.
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
        g[k] = coef_p_ * p[k];
        if constexpr (PastTerm) g[k] += coef_e_ * e[k];
        if constexpr (TargetRow) g[k] += of_mass * mass[k];
      }
#pragma unroll
      for (int which = 0; which < 2; ++which)
        if (unsigned(label[which] - place) < unsigned(kWidth<T>)) {  // seldom, so that few elements are compared
#pragma unroll
          for (int k = 0; k < kWidth<T>; ++k)
            if (place + k == label[which]) g[k] += of_hard[which];
        }
#pragma unroll
      for (float& element : g)
        if (!used) element = 0;  // whatever the logits hold
      if (aligned && slice.has(place) && slice.has(place + kWidth<T> - 1)) {
        store_global_16(to + place, round_to<T>(g));
      } else {
#pragma unroll
        for (int k = 0; k < kWidth<T>; ++k)
          if (slice.has(place + k)) round_to(g[k], to[place + k]);
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
  Scales scales_;                  // known to the warp that makes rows
  float shift_, coef_p_, coef_e_;  // of the row's gradient
};

}  // namespace toast
