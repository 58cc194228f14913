// The element types a kernel reads and writes. Half types are stored as their bits and computed on in float.
#pragma once

#include <cstdint>

namespace toast {

enum class DType : int { float64, float32, bfloat16, float16 };

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

// Calls f with a value-initialised element of the type that dtype names.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float32:
      return f(float{});
    case DType::bfloat16:
      return f(bfloat16{});
    case DType::float16:
      return f(float16{});
  }
}

constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 8;
    case DType::float32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace toast
