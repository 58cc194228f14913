// CUDA run on the CPU: conversions and the functions of one number.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "check.h"

namespace {

// Every number of 16 bits and back, and the floats around the middle between it and the next.
template <class T>
void conversions(float (*widen)(T), T (*narrow)(float), unsigned short infinity, int mantissa_bits,
                 int least_exponent) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const T x = {static_cast<unsigned short>(bits)};
    const unsigned magnitude = bits & 0x7fffu;
    if (magnitude > infinity) {
      CHECK(std::isnan(widen(x)) && narrow(widen(x)).bits == 0x7fff);
      continue;
    }
    CHECK(narrow(widen(x)).bits == bits);
    const unsigned exponent = magnitude >> mantissa_bits, mantissa = magnitude & ((1u << mantissa_bits) - 1);
    const double value = std::ldexp(double(exponent == 0 ? mantissa : mantissa + (1u << mantissa_bits)),
                                    int(exponent == 0 ? 1 : exponent) - 1 + least_exponent);
    CHECK(std::fabs(widen(x)) == (magnitude == infinity ? HUGE_VAL : value) &&
          std::signbit(widen(x)) == (bits >= 0x8000));
    if (magnitude == infinity) continue;
    const T next = {static_cast<unsigned short>(bits + 1)};
    // The number after the largest would be as far from it as the one before.
    const double after =
        magnitude + 1 == infinity ? 2.0 * widen(x) - widen(T{static_cast<unsigned short>(bits - 1)}) : widen(next);
    const float middle = float((widen(x) + after) / 2);
    CHECK(narrow(middle).bits == (bits % 2 == 0 ? x : next).bits);
    CHECK(narrow(std::nextafter(middle, 0.0f)).bits == x.bits);
    CHECK(narrow(std::nextafter(middle, std::copysign(HUGE_VALF, middle))).bits == next.bits);
  }
  CHECK(narrow(std::numeric_limits<float>::max()).bits == infinity);
}

void mathematics() {
  conversions<__half>(__half2float, __float2half_rn, 0x7c00, 10, -24);
  conversions<__nv_bfloat16>(__bfloat162float, __float2bfloat16_rn, 0x7f80, 7, -133);
  const __half2 h = __floats2half2_rn(1.5f, -2);
  CHECK(__half22float2(h).x == 1.5f && __half22float2(h).y == -2 && __low2float(h) == 1.5f && __high2float(h) == -2);
  const __nv_bfloat162 b = __floats2bfloat162_rn(1.5f, -2);
  CHECK(__bfloat1622float2(b).x == 1.5f && __bfloat1622float2(b).y == -2);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2);
  CHECK(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __popc(0xf0u) == 4 && __ffs(8) == 4);
  CHECK(__fdividef(1, 0x1p127f) == 0 && __fdividef(6, 3) == 2 && std::isnan(__fdividef(HUGE_VALF, 0x1p127f)));
  CHECK(min(3, -4) == -4 && max(1.0f, NAN) == 1 && rsqrtf(0.25f) == 2 && __fmaf_rn(2, 3, 4) == 10);
}

}  // namespace

int main() {
  check::current_case = "mathematics";
  mathematics();
  return check::finish(1);
}
