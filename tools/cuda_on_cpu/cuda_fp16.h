// Stands in for the toolkit's header of this name: storage and conversions; of arithmetic only the maximum.
#pragma once

#include "device_functions.h"

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) {
  const unsigned sign = unsigned(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x0400) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 0x1p-24f));
  return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
}

// To nearest, ties to even. A NaN becomes 0x7fff, as the toolkit's.
inline __half __float2half_rn(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<unsigned short>(sign | 0x7c00u)};  // 65520 and more
  unsigned rounded;
  if (magnitude < 0x38800000u) {  // below 2^-14: a whole number of 2^-24
    rounded = unsigned(nearbyintf(__uint_as_float(magnitude) * 0x1p24f));
  } else {
    rounded = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<unsigned short>(sign | rounded)};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __hmax2(__half2 v, __half2 w) {
  return __floats2half2_rn(fmaxf(__low2float(v), __low2float(w)), fmaxf(__high2float(v), __high2float(w)));
}
