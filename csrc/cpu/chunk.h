// The chunks that rows of logits are worked on in, and their maxima.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/convert.h"

namespace toast {
namespace TOAST_ISA {

constexpr std::int64_t kChunk = 2048;  // classes; a fixed size, so that results do not depend on the threads

template <class Real>
Real chunk_max(const Input<Real>& z, std::int64_t n) {
  using V = Vec<Real>;
  constexpr int lanes = V::lanes;
  constexpr Real lowest = -std::numeric_limits<Real>::infinity();
  V m0 = V::broadcast(lowest), m1 = m0, m2 = m0, m3 = m0;
  std::int64_t j = 0;
  for (; j + 4 * lanes <= n; j += 4 * lanes) {
    m0 = max(z.load(j), m0);
    m1 = max(z.load(j + lanes), m1);
    m2 = max(z.load(j + 2 * lanes), m2);
    m3 = max(z.load(j + 3 * lanes), m3);
  }
  each_vec<lanes>(j, n, [&](std::int64_t i, int m) TOAST_INLINED { m0 = max(z.load(i, m, lowest), m0); });
  return lane_max(max(max(m0, m1), max(m2, m3)));
}

}  // namespace TOAST_ISA
}  // namespace toast
