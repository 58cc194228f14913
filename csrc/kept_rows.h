// The rows of a training step that are kept: the new ones in a pool, and the hardest ones for the next step.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace toast {

struct PoolRows {
  DType dtype;
  const void* logits;  // [rows, width], rows contiguous
  std::int64_t rows, width, stride;
  const std::int64_t* labels;  // [rows]
  const std::int64_t* places;  // [rows]: which row of the pool each goes to, no two to the same, for threads write
                               // them; null: to the first free ones, in order
  std::int64_t num_classes, ignore_index;
  DType pool_dtype;
  void* pool;                             // [capacity, width]
  std::int64_t *pool_labels, *positions;  // [capacity]
  std::int64_t capacity;
  std::int64_t* counts;  // rows put one after the other into the pool so far, and all rows that came
  int threads = 1;
};

// Copies the rows whose label is not ignore_index: logits, converted to the pool's dtype, label, and position among
// all rows that came. What has no place in the pool is counted and not written. Returns -1, or the first row whose
// label is neither in [0, num_classes) nor ignore_index: then nothing is written or counted.
std::int64_t pool_rows_cpu(const PoolRows& problem);

struct CarryRows {
  DType dtype;
  const void* logits;  // [rows, classes], rows contiguous
  std::int64_t rows, classes, stride;
  const std::int64_t *labels, *labels_b;  // [rows] or null; without labels every row counts as labelled
  const float* lam;                       // [rows] or null
  DType score_dtype;                      // float64 or float32
  const void* score;                      // [rows]
  std::int64_t new_rows;
  const std::int64_t* ages;  // [rows - new_rows] of the rows after the new ones; may be slot_ages. Null: 0
  std::int64_t max_age, ignore_index;
  double temperature;
  std::int64_t slots;
  const std::int64_t* distilled;                // [slots + 1]: of so many chosen rows, how many are distilled
  std::int64_t *slot_labels, *slot_labels_b;    // [slots], null where labels are
  float* slot_lam;                              // [slots]
  void* slot_logits;                            // [slots, classes]
  double* logsumexp;                            // [slots], at the temperature; null: no statistics
  void* entropy;                                // [slots]: double for float64 logits, else float
  bool* filled;                                 // [slots]
  std::int64_t *index, *slot_ages, *slot_rows;  // [slots]
  int threads = 1;
};

// Slot j takes the j-th hardest row (of equal ones the first) of those whose age is below max_age, whose score is
// finite and that have a label. Slots for which there is none: filled = false, label ignore_index, index -1, age and
// row 0; their logits and statistics stay as they are. index is j for distilled rows, else -1. Returns how many slots
// have a row.
std::int64_t carry_rows_cpu(const CarryRows& problem);

}  // namespace toast
