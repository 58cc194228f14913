// The euclidean costs of a class of middle size, on one thread: centre, rounded rows, products and distance sums in one
// go, where calls from outside and threads that wait for each other would cost as much as the products.
#pragma once

#include "cpu/medoids/products.h"
#include "cpu/simd.h"

namespace toast {
namespace TOAST_ISA {

// Rows are packed in blocks of 32: element (i, k) of a block lies at [k * 32 + i], zeros after the last row. Both
// factors of a product are read so: vectors of one and single elements of the other.
constexpr int64_t block = 32;

// Rows and vectors of products that are held in registers: as many as leave room for the factors, and at least 8
// independent sums, which a fused multiply-add's latency of 4 at two a cycle asks for.
#if defined(__AVX512F__)
constexpr int held_rows = 8, held_vectors = 2;
#elif defined(__AVX2__)
constexpr int held_rows = 4, held_vectors = 1;  // a vector is two registers here
#else
constexpr int held_rows = 2, held_vectors = 1;
#endif

// held_rows of a block, from a on, times held_vectors of another, from b on; `columns` of the products are stored.
inline void multiply_held(const float* a, const float* b, int64_t width, float* out, int64_t stride, int64_t columns) {
  constexpr int lanes = Vec<float>::lanes;
  Vec<float> sum[held_rows][held_vectors];
#pragma GCC unroll 8
  for (int i = 0; i < held_rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < held_vectors; ++v) sum[i][v] = Vec<float>::broadcast(0);
  for (int64_t k = 0; k < width; ++k, a += block, b += block) {
    Vec<float> factor[held_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < held_vectors; ++v) factor[v] = Vec<float>::load(b + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < held_rows; ++i) {
      const Vec<float> element = Vec<float>::broadcast(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < held_vectors; ++v) sum[i][v] = fma(element, factor[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < held_rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < held_vectors; ++v) {
      float* p = out + i * stride + v * lanes;
      const int64_t left = columns - v * lanes;
      if (left >= lanes)
        sum[i][v].store(p);
      else if (left > 0)
        store_first(sum[i][v], p, int(left));
    }
}

// out [32, stride]: the products of a block's rows with the first `columns` rows of another.
inline void multiply_blocks(const float* a, const float* b, int64_t width, float* out, int64_t stride,
                            int64_t columns) {
  constexpr int64_t step = held_vectors * Vec<float>::lanes;
  for (int64_t j = 0; j < columns; j += step)
    for (int64_t i = 0; i < block; i += held_rows)
      multiply_held(a + i, b + j, width, out + i * stride + j, stride, columns - j);
}

// A class's rows as they enter the products, in blocks.
struct PackedRows {
  std::vector<float> blocks, squares, lengths;
  std::vector<double> errors;

  PackedRows(const ClassRows& c, const int64_t* positions, const double* mean, double scale)
      : blocks((c.n + block - 1) / block * block * c.x.width), squares(c.n), lengths(c.n), errors(c.n) {
    const int64_t width = c.x.width;
    std::vector<float> rows(block * width);
    for (int64_t first = 0; first < c.n; first += block) {
      const int64_t count = std::min(block, c.n - first);
      fill_panel<float>(
          c, positions + first, mean, scale,
          {DType::float32, rows.data(), squares.data() + first, lengths.data() + first, errors.data() + first, count},
          1);
      float* out = blocks.data() + first * width;
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < width; ++k) out[k * block + i] = rows[i * width + k];
    }
  }
};

// cost [n] and bound [n] on its error, added to. A block of rows at a time is multiplied with itself and the blocks
// after it, and the tile added up while it is in the cache.
inline void costs_from_products(const ClassRows& c, const int64_t* positions, const double* mean, double radius,
                                double* cost, double* bound) {
  const double scale = std::ldexp(0.5, -std::ilogb(radius));  // exact; brings the longest row to about 1
  const int64_t n = c.n, width = c.x.width;
  const PackedRows rows(c, positions, mean, scale);
  std::vector<float> products(block * n);
  for (int64_t i = 0; i < n; i += block) {
    const int64_t columns = n - i;
    for (int64_t j = i; j < n; j += block)
      multiply_blocks(rows.blocks.data() + i * width, rows.blocks.data() + j * width, width, products.data() + j - i,
                      columns, std::min(block, n - j));
    const float *squares = rows.squares.data() + i, *lengths = rows.lengths.data() + i;
    add_tile<float>({DType::float32, products.data(), std::min(block, columns), columns, width, positions + i, i,
                     squares, lengths, squares, lengths, cost + i, bound + i, cost + i, bound + i},
                    1);
  }
  double total_error = 0;
  for (double error : rows.errors) total_error += error;
  for (int64_t i = 0; i < n; ++i) {
    cost[i] /= scale;
    bound[i] = (bound[i] + n * rows.errors[i] + total_error) / scale;
  }
}

}  // namespace TOAST_ISA
}  // namespace toast
