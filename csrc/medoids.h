// Class medoids: of each class the row with the smallest sum of distances to the rows of its class.
//
//   E(i) = sum over j with label_j = label_i of d(x_i, x_j)          medoid of c = argmin of E over class c
//
// Costs within a relative 1e-12 are a tie and the lowest index wins. Fast formulas nominate: each gives a cost and a
// bound on its error. Where the bounds leave more than one row, E is summed in double in one fixed order and decides.
// No result depends on the number of threads. toast_kernels/medoids/README.md has the formulas and the proofs.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace toast {

// In the order of METRICS in toast_kernels/medoids/reference.py; a test holds them together.
enum class Metric : int { euclidean, sqeuclidean, cosine, cityblock, jeffreys };

// Any layout: element (i, k) lies at data[i * row_stride + k * column_stride].
struct Matrix {
  DType dtype;
  const void* data;
  std::int64_t rows, width, row_stride, column_stride;
};

// One class: its rows' numbers in x, ascending.
struct ClassRows {
  Matrix x;
  const std::int64_t* rows;  // [n]
  std::int64_t n;
};

struct Labels {
  const void* data;  // [N] int64 or int32
  bool wide;         // int64
  std::int64_t stride;
  const bool* mask;  // [N] or null
  std::int64_t mask_stride;
  std::int64_t ignore_index, classes;
};

constexpr std::int64_t needs_products = -2;

// A matrix product's view of some rows of a class: (x - mean) * scale rounded to float32 or float64 (dtype), with what
// the error bounds need: squared norms of the rounded rows, their lengths (padded, so that underflow is covered too),
// and the length of what rounding took off.
struct Panel {
  DType dtype;
  void* rows;      // [count, D]
  void* squares;   // [count]
  void* lengths;   // [count]
  double* errors;  // [count]
  std::int64_t count;
};

// A tile of products between two panels. Pairs of a row with itself are left out; with column sums (a pass over the
// upper triangle), so is every pair below the diagonal.
struct Tile {
  DType dtype;
  const void* products;  // [rows, columns] contiguous
  std::int64_t rows, columns, width;
  const std::int64_t* row_positions;  // [rows] in the class
  std::int64_t first_column;          // position of column 0; columns are consecutive
  const void *row_squares, *row_lengths, *column_squares, *column_lengths;
  double *row_cost, *row_bound, *column_cost, *column_bound;  // added to; column_* null for a rectangular pass
};

// Rows that may still win, by position in the class, each with a cost and a bound on its error.
struct Candidates {
  std::int64_t* positions;  // ascending
  double *cost, *bound;
  std::int64_t count;
};

struct MedoidKernels {
  // Rows that are used (mask, ignore_index, all values finite) by class, then by number: class c has
  // order[offsets[c]] to order[offsets[c + 1] - 1]. Returns -1, or the first used row whose label is out of range.
  std::int64_t (*group_by_class)(const Matrix& x, const Labels& labels, std::int64_t* offsets /* [K + 1] */,
                                 std::int64_t* order /* [N] */, int threads);

  // The medoid of every class, -1 for an empty one, needs_products for a euclidean class so large that its products are
  // better made outside, on all threads, or with so many rows left that they need products in float64: centre, then
  // panels, products and distance sums, then narrow and decide.
  void (*all_classes)(const Matrix& x, Metric metric, const std::int64_t* offsets, const std::int64_t* order,
                      std::int64_t classes, std::int64_t* medoids /* [K] */, int threads);

  // The class mean [D]; returns the largest distance of a row from it.
  double (*centre)(const ClassRows& c, double* mean, int threads);

  // The rows at these positions of the class.
  void (*panel)(const ClassRows& c, const std::int64_t* positions, const double* mean, double scale, const Panel& out,
                int threads);

  // Distances from the products, and the bound on each one's error, added up by rows and by columns.
  void (*distance_sums)(const Tile& tile, int threads);

  // Drops the candidates that cannot win and all but the first of equal rows, in place; returns how many are left.
  std::int64_t (*narrow)(const ClassRows& c, Metric metric, const Candidates& candidates, int threads);

  // The winner's row number in x.
  std::int64_t (*decide)(const ClassRows& c, Metric metric, const Candidates& candidates, int threads);
};

void get_medoid_kernels_cpu(MedoidKernels& kernels);

}  // namespace toast
