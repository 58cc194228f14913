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
template <class T>
struct RegisterOf {
  typedef T type __attribute__((vector_size(register_bytes)));
};
template <class T>
using Register = typename RegisterOf<T>::type;
template <class T>
constexpr int64_t register_lanes = register_bytes / sizeof(T);

template <class T>
TOAST_INLINE Register<T> load_register(const T* p) {
  Register<T> r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
template <class T>
TOAST_INLINE void store_register(const Register<T>& r, T* p) {
  std::memcpy(p, &r, sizeof r);
}

// In whole registers: GCC 12 keeps a vector that is wider than one on the stack, at a third of the speed.
struct Lanes {
  static constexpr int registers = 64 / register_bytes;
  Register<double> part[registers];

  TOAST_INLINE Lanes(double x = 0) {
#pragma GCC unroll 4
    for (Register<double>& p : part) p = x - Register<double>{};
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
    return map([&](int i)
                   TOAST_INLINED { return Register<double>(Register<int64_t>(a.part[i]) & 0x7fffffffffffffff); });
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
      const Register<double> power = Register<double>((Register<int64_t>(shifted.part[i]) + 1023) << 52);
      return Register<double>(Register<int64_t>(p.part[i] * power) & ~Register<int64_t>(x.part[i] < -708.0));
    });
  }
};

TOAST_INLINE Lanes load(const double* p) {
  return Lanes::map([&](int i) TOAST_INLINED { return load_register(p + i * register_lanes<double>); });
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

// Memory from a cache line's begin on, so that Lanes lie in one line each, and not zeroed: a vector of n elements has
// whatever was there.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  template <class U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U>
  void construct(U* p, const U& value) {
    ::new (static_cast<void*>(p)) U(value);
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};
template <class T>
using LineVector = std::vector<T, LineAllocator<T>>;
using LaneVector = LineVector<double>;

}  // namespace TOAST_ISA
}  // namespace toast
