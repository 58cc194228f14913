// The blended soft-target KL loss and its gradient in one go.
//
// N rows, C classes, logits z, class soft targets S, past predictions Q at temperature T:
//
// clang-format off
//   target mass   t_i = (1 - alpha) ((1 - eps) w[y_i] onehot(y_i) + eps / C w) + alpha w[y_i] S[y_i]
//   class term    a_i = - sum_j t_ij log softmax(z_i)_j
//   past term     b_i = T^2 sum_j q_j (log q_j - log softmax(z_i / T)_j),  q = Q[r_i]; 0 without a past
//
//   loss = sum_i a_i / W + lambda sum_i b_i / P
//   d loss / d z_i = (sum_j t_ij softmax(z_i) - t_i) / W + lambda T (sum_j q_j softmax(z_i / T) - q) / P
//
//   W = sum_i w[y_i], P = rows with a past ("mean"; else W = P = 1)
// clang-format on
//
// With probabilities p, t_i = w ((1 - eps) p_i + eps / C) and W = N. With (y_a, y_b, lam), t_i is lam t_i(y_a) + (1 -
// lam) t_i(y_b), and W likewise; an ignored label of the two has t_i = 0 and no weight. A class whose soft target is
// not filled takes alpha = 0. 0 log 0 = 0 and 0 * -inf = 0. A row whose labels are all ignored has loss 0 and gradient
// 0, whatever its logits hold. Row i has a past where it is not ignored, r_i is not -1 and Q[r_i] is filled. A "mean"
// with W = 0 is NaN, and the class term has no gradient; with P = 0 the past term is 0.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace toast {

// Rows of probabilities in one of three encodings.
struct SoftRows {
  DType dtype = DType::float32;
  const void* values = nullptr;  // [rows, width]: probabilities of all classes | of k of them | logits
  std::int64_t stride = 0;       // elements from one row of values to the next
  std::int64_t rows = 0;
  std::int64_t width = 0;                 // C | k | C
  const std::int32_t* indices = nullptr;  // [rows, k] ascending; what they leave of 1 is spread over the others, but
                                          // not those whose logit is -inf; over none, it is dropped
  const double* logsumexp = nullptr;      // [rows]: values are logits, row = softmax(values / temperature)
  const void* entropy = nullptr;          // [rows] - sum q log q; read for past rows only
  const bool* filled = nullptr;           // [rows]; null: all are
  double temperature = 1;
};

enum class Reduction : int { none, mean, sum };

// Real is double for float64 logits and float for all others: the type that is computed in.
struct BlendedKL {
  DType dtype;
  const void* logits;  // [N, C], rows contiguous
  std::int64_t rows, classes, stride;

  const std::int64_t* target = nullptr;    // [N]
  const std::int64_t* target_b = nullptr;  // [N], with
  const void* lam = nullptr;               // [N] Real
  SoftRows probabilities;                  // instead of target: row i is row i's target
  const void* weight = nullptr;            // [C] Real

  SoftRows soft;
  double alpha = 0;
  const float* alpha_on_device = nullptr;  // [] instead of alpha, where the kernel runs on a GPU
  SoftRows past;
  const std::int64_t* past_index = nullptr;  // [N]
  double past_weight = 0;                    // lambda
  const float* past_weight_on_device = nullptr;

  double temperature = 1;
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;  // eps
  Reduction reduction = Reduction::mean;

  const void* upstream = nullptr;  // Real: the gradient is multiplied by it before it is rounded; null is 1
  std::int64_t upstream_stride = 0;

  void* loss;            // Real: [N] for Reduction::none, else [1]
  void* gradient;        // [N, C] of dtype, contiguous, or null
  void* stats;           // [2, N] Real: cross-entropy against the labels alone, logsumexp; or null
  std::int64_t* argmax;  // [N], or null with stats

  int threads = 1;
  // On a CPU: a gradient of so many bytes or more is written with non-temporal stores; negative: half of the last-level
  // cache.
  std::int64_t non_temporal_from = -1;
};

// Throws std::out_of_range, before anything is written, for a target or past_index that is out of range. The
// result does not depend on the number of threads.
void blended_kl_cpu(const BlendedKL& problem);

}  // namespace toast
