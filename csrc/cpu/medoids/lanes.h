// Lanes: 8 doubles with the same arithmetic on every instruction set, so that every build adds in the same order and
// gives the same bits: no fused multiply-adds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "cpu/simd.h"

namespace toast {
namespace TOAST_ISA {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif
typedef double Register __attribute__((vector_size(register_bytes)));
typedef int64_t RegisterBits __attribute__((vector_size(register_bytes)));

// In whole registers: GCC 12 keeps a vector that is wider than one on the stack, at a third of the speed.
struct Lanes {
  static constexpr int registers = 64 / register_bytes;
  Register part[registers];

  TOAST_INLINE Lanes(double x = 0) {
#pragma GCC unroll 4
    for (Register& p : part) p = x - Register{};
  }
  template <class F>
  TOAST_INLINE static Lanes map(F&& f) {
    Lanes v;
#pragma GCC unroll 4
    for (int i = 0; i < registers; ++i) v.part[i] = f(i);
    return v;
  }
  TOAST_INLINE friend Lanes operator+(const Lanes& a, const Lanes& b) {
    return map([&](int i) TOAST_INLINED { return a.part[i] + b.part[i]; });
  }
  TOAST_INLINE friend Lanes operator-(const Lanes& a, const Lanes& b) {
    return map([&](int i) TOAST_INLINED { return a.part[i] - b.part[i]; });
  }
  TOAST_INLINE friend Lanes operator*(const Lanes& a, const Lanes& b) {
    return map([&](int i) TOAST_INLINED { return a.part[i] * b.part[i]; });
  }
  TOAST_INLINE Lanes& operator+=(const Lanes& b) { return *this = *this + b; }

  TOAST_INLINE friend Lanes max(const Lanes& a, const Lanes& b) {
    return map([&](int i) TOAST_INLINED { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
  }
  TOAST_INLINE friend Lanes absolute(const Lanes& a) {
    return map([&](int i) TOAST_INLINED { return Register(RegisterBits(a.part[i]) & 0x7fffffffffffffff); });
  }
  // exp for x <= 0; 0 below -708. 2^n from the bits of n + 1.5 * 2^52, then Taylor's series of degree 13 on
  // |r| <= ln 2 / 2, whose next term is below 5e-18; in pairs, then pairs of pairs: a processor looks too few
  // instructions ahead to hide 26 that wait for each other.
  TOAST_INLINE friend Lanes exp(const Lanes& x) {
    const Lanes shifted = x * 1.4426950408889634 + 0x1.8p52;
    const Lanes n = shifted - 0x1.8p52;
    const Lanes r = (x - n * 0x1.62e42fefap-1) - n * 0x1.cf79abc9e3b3ap-40;
    const Lanes r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
    const Lanes to_3 = (r + 1) + (r * (1. / 6) + 0.5) * r2;
    const Lanes to_7 = (r * (1. / 120) + 1. / 24) + (r * (1. / 5040) + 1. / 720) * r2;
    const Lanes to_11 = (r * (1. / 362880) + 1. / 40320) + (r * (1. / 39916800) + 1. / 3628800) * r2;
    const Lanes to_13 = r * (1. / 6227020800) + 1. / 479001600;
    const Lanes p = (to_3 + to_7 * r4) + (to_11 + to_13 * r4) * r8;
    return map([&](int i) TOAST_INLINED {
      const Register power = Register((RegisterBits(shifted.part[i]) + 1023) << 52);
      return Register(RegisterBits(p.part[i] * power) & ~RegisterBits(x.part[i] < -708.0));
    });
  }
};

TOAST_INLINE Lanes load(const double* p) {
  return Lanes::map([&](int i) TOAST_INLINED {
    Register r;
    std::memcpy(&r, p + i * (register_bytes / 8), sizeof r);
    return r;
  });
}
TOAST_INLINE void store(const Lanes& v, double* p) { std::memcpy(p, v.part, sizeof v.part); }
inline double largest_lane(const Lanes& v) {
  double x[8];
  store(v, x);
  return *std::max_element(x, x + 8);
}
inline double add_lanes(const Lanes& v) {
  double x[8];
  store(v, x);
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// Doubles from a cache line's begin on: Lanes of theirs lie in one line each.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};
using LaneVector = std::vector<double, LineAllocator<double>>;

}  // namespace TOAST_ISA
}  // namespace toast
