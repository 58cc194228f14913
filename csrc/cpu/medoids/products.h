// Matrix products of packed rows: as quick as a BLAS for what the medoids need of one, a tile of A B^T at a time.
#pragma once

#include "cpu/medoids/lanes.h"

namespace toast {
namespace TOAST_ISA {

// Rows are packed in blocks of 48: element (i, k) of a block lies at [k * block + i]. Both factors of a product are
// read so: registers of one and single elements of the other. Every instruction set's held_rows and registers
// divide 48.
constexpr int64_t block = 48;
constexpr int64_t whole_blocks(int64_t rows) { return (rows + block - 1) / block * block; }

// Rows and registers of products that are held at once: as many as leave room for the factors, and at least 8 sums,
// which a fused multiply-add's latency of 4 at two a cycle asks for.
#if defined(__AVX512F__)
constexpr int held_rows = 8, held_registers = 3;
TOAST_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
TOAST_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__AVX2__)
constexpr int held_rows = 6, held_registers = 2;
TOAST_INLINE Register<float> fma(Register<float> a, Register<float> b, Register<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
TOAST_INLINE Register<double> fma(Register<double> a, Register<double> b, Register<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
#else
constexpr int held_rows = 4, held_registers = 2;
template <class R>
TOAST_INLINE R fma(R a, R b, R c) {
  return a * b + c;
}
#endif

// held_rows of a block, from a on, times registers of another, from b on, over `depth` elements; added to out
// [held_rows, stride] or, first, written there. Meanwhile it prefetches: from `prefetch` on, prefetch_step elements at
// each of them.
template <int registers, class Real>
void multiply_held(const Real* a, const Real* b, int64_t depth, Real* out, int64_t stride, bool first,
                   const Real* prefetch, int64_t prefetch_step) {
  constexpr int64_t lanes = register_lanes<Real>;
  Register<Real> sum[held_rows][registers] = {};
  for (int64_t k = 0; k < depth; ++k, a += block, b += block, prefetch += prefetch_step) {
    __builtin_prefetch(prefetch);
    Register<Real> factor[registers];
#pragma GCC unroll 4
    for (int v = 0; v < registers; ++v) factor[v] = load_register(b + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < held_rows; ++i) {
      const Register<Real> element = a[i] - Register<Real>{};
#pragma GCC unroll 4
      for (int v = 0; v < registers; ++v) sum[i][v] = fma(element, factor[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < held_rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < registers; ++v) {
      Real* p = out + i * stride + v * lanes;
      store_register(first ? sum[i][v] : sum[i][v] + load_register(p), p);
    }
}

// out [rows, stride]: the products of some packed rows, from the begin of a block on, with `columns` others, in whole
// registers. Row i is only needed in columns after i + diagonal; some before it are left unwritten.
template <class Real>
void multiply(const Real* a, int64_t rows, const Real* b, int64_t columns, int64_t width, int64_t diagonal, Real* out,
              int64_t stride) {
  constexpr int64_t depth = 384;  // columns of x at a time: what a tile reads of them stays in a level 2 cache
  constexpr int64_t lanes = register_lanes<Real>, step = held_registers * lanes;
  static_assert(block % held_rows == 0 && block % step == 0 && held_registers <= 3);
  for (int64_t i = 0; i < (width == 0 ? rows : 0); ++i)
    std::fill(out + i * stride, out + i * stride + whole_blocks(columns), Real(0));
  // While a block of columns is multiplied the next is brought into the cache.
  const int64_t prefetch_step = step * held_rows / whole_blocks(rows);
  for (int64_t k = 0; k < width; k += depth) {
    const int64_t count = std::min(depth, width - k);
    for (int64_t j = 0; j < columns; j += step) {
      const Real* right = b + (j - j % block) * width + k * block;
      const Real* prefetch = right + (j + block < columns ? block * width : 0) + j % block * count;
      right += j % block;
      for (int64_t i = 0; i < std::min(rows, j + step - diagonal); i += held_rows) {
        // The first and the end of the registers with columns that row i, or one after it, is needed in.
        const int64_t first = std::max<int64_t>(0, i + diagonal + 1 - j) / lanes;
        const int64_t end = std::min<int64_t>(held_registers, (columns - j + lanes - 1) / lanes);
        const auto multiply_some = [&](auto registers) {
          multiply_held<registers.value>(a + (i - i % block) * width + k * block + i % block, right + first * lanes,
                                         count, out + i * stride + j + first * lanes, stride, k == 0, prefetch,
                                         prefetch_step);
        };
        if (end - first == held_registers)
          multiply_some(std::integral_constant<int, held_registers>());
        else if (end - first == 2)
          multiply_some(std::integral_constant<int, 2>());
        else if (end - first == 1)
          multiply_some(std::integral_constant<int, 1>());
        prefetch += count * prefetch_step;
      }
    }
  }
}

}  // namespace TOAST_ISA
}  // namespace toast
