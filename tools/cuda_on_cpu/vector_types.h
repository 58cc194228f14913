// The toolkit's small vectors.
#pragma once

#define CUDA_ON_CPU_VECTOR_2(T, name, alignment) \
  struct alignas(alignment) name {               \
    T x, y;                                      \
  };                                             \
  inline name make_##name(T x, T y) { return {x, y}; }

#define CUDA_ON_CPU_VECTOR_4(T, name, alignment) \
  struct alignas(alignment) name {               \
    T x, y, z, w;                                \
  };                                             \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTOR_2(int, int2, 8)
CUDA_ON_CPU_VECTOR_2(unsigned, uint2, 8)
CUDA_ON_CPU_VECTOR_2(float, float2, 8)
CUDA_ON_CPU_VECTOR_2(double, double2, 16)
CUDA_ON_CPU_VECTOR_2(long long, longlong2, 16)
CUDA_ON_CPU_VECTOR_4(unsigned char, uchar4, 4)
CUDA_ON_CPU_VECTOR_4(unsigned short, ushort4, 8)
CUDA_ON_CPU_VECTOR_4(int, int4, 16)
CUDA_ON_CPU_VECTOR_4(unsigned, uint4, 16)
CUDA_ON_CPU_VECTOR_4(float, float4, 16)

#undef CUDA_ON_CPU_VECTOR_2
#undef CUDA_ON_CPU_VECTOR_4

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
