// Elements of any DType to and from double, written from the formats' definitions and not from the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dtype.h"
#include "guarded.h"

// The bits of x in a 16-bit format with this many bits of significand (the hidden one counted), nearest even.
inline std::uint16_t half_bits(double x, int significand, int bias) {
  const int stored = significand - 1, infinity = (2 * bias + 1) << stored;
  if (x != x) return std::uint16_t(infinity | 1 << (stored - 1));
  const int sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isinf(x)) return std::uint16_t(sign | infinity);
  const int exponent = x == 0 ? 1 - bias : std::max(std::ilogb(x), 1 - bias);
  const int bits = ((exponent + bias - 1) << stored) + int(std::nearbyint(std::ldexp(std::fabs(x), stored - exponent)));
  return std::uint16_t(sign | std::min(bits, infinity));
}

inline double half_value(std::uint16_t bits, int significand, int bias) {
  const int stored = significand - 1, exponent = (bits & 0x7fff) >> stored, fraction = bits & ((1 << stored) - 1);
  double magnitude;
  if (exponent == 2 * bias + 1)
    magnitude = fraction == 0 ? INFINITY : NAN;
  else
    magnitude = std::ldexp(exponent == 0 ? fraction : fraction + (1 << stored), std::max(exponent, 1) - bias - stored);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Guarded elements of a type that is known at run time.
class Elements {
 public:
  Elements() = default;
  Elements(toast::DType dtype, std::int64_t n) : dtype_(dtype), bytes_(n * toast::size_of(dtype)) {}

  toast::DType dtype() const { return dtype_; }
  void* data() { return bytes_.data(); }
  void* at(std::int64_t i) { return bytes_.data() + i * toast::size_of(dtype_); }
  std::int64_t index_of(const void* address) {
    return (static_cast<const unsigned char*>(address) - bytes_.data()) / toast::size_of(dtype_);
  }
  std::int64_t size() const { return bytes() / toast::size_of(dtype_); }
  std::int64_t bytes() const { return bytes_.size(); }
  bool intact() { return bytes_.intact(); }
  void forbid(std::int64_t begin, std::int64_t n) {
    bytes_.forbid(begin * toast::size_of(dtype_), n * toast::size_of(dtype_));
  }

  double get(std::int64_t i) {
    switch (dtype_) {
      case toast::DType::float64:
        return *static_cast<double*>(at(i));
      case toast::DType::float32:
        return *static_cast<float*>(at(i));
      case toast::DType::bfloat16:
        return half_value(*static_cast<std::uint16_t*>(at(i)), 8, 127);
      default:
        return half_value(*static_cast<std::uint16_t*>(at(i)), 11, 15);
    }
  }

  // Stores x, rounded, and returns what was stored.
  double set(std::int64_t i, double x) {
    switch (dtype_) {
      case toast::DType::float64:
        return *static_cast<double*>(at(i)) = x;
      case toast::DType::float32:
        return *static_cast<float*>(at(i)) = float(x);
      case toast::DType::bfloat16:
        *static_cast<std::uint16_t*>(at(i)) = half_bits(x, 8, 127);
        return get(i);
      default:
        *static_cast<std::uint16_t*>(at(i)) = half_bits(x, 11, 15);
        return get(i);
    }
  }

  // Half the distance between neighbouring values near x: what rounding to this type may add to an error.
  double half_step(double x) const {
    if (!std::isfinite(x)) return 0;
    constexpr int significand[] = {53, 24, 8, 11}, lowest[] = {-1022, -126, -126, -14};
    const int type = int(dtype_), exponent = x == 0 ? lowest[type] : std::max(std::ilogb(x), lowest[type]);
    return std::ldexp(0.5, exponent - significand[type] + 1);
  }

 private:
  toast::DType dtype_ = toast::DType::float32;
  Guarded<unsigned char> bytes_;
};
