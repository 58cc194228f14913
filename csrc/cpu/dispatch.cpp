// Declares each kernel in the namespace of every instruction set that was built, and calls the one of the best.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "blended_kl.h"
#include "kept_rows.h"
#include "medoids.h"
#include "softmax_statistics.h"

#if defined(TOAST_HAS_SIMD)
#include <cpuid.h>
#endif

// Declares NAME(arguments) in the namespace of each instruction set that was built.
#if defined(TOAST_HAS_SIMD)
#define TOAST_FOR_EACH_ISA(declaration) \
  namespace generic {                   \
  declaration;                          \
  }                                     \
  namespace avx2 {                      \
  declaration;                          \
  }                                     \
  namespace avx512 {                    \
  declaration;                          \
  }
#define TOAST_CALL_BEST(call) \
  switch (cpu_isa()) {        \
    case Isa::avx512:         \
      return avx512::call;    \
    case Isa::avx2:           \
      return avx2::call;      \
    case Isa::generic:        \
      break;                  \
  }                           \
  return generic::call;
#else
#define TOAST_FOR_EACH_ISA(declaration) \
  namespace generic {                   \
  declaration;                          \
  }
#define TOAST_CALL_BEST(call) return generic::call
#endif

namespace toast {

TOAST_FOR_EACH_ISA(void blended_kl(const BlendedKL&))
void blended_kl_cpu(const BlendedKL& problem) { TOAST_CALL_BEST(blended_kl(problem)); }

TOAST_FOR_EACH_ISA(void softmax_statistics(const SoftmaxStatistics&))
void softmax_statistics_cpu(const SoftmaxStatistics& problem) { TOAST_CALL_BEST(softmax_statistics(problem)); }

TOAST_FOR_EACH_ISA(std::int64_t pool_rows(const PoolRows&))
std::int64_t pool_rows_cpu(const PoolRows& problem) { TOAST_CALL_BEST(pool_rows(problem)); }

TOAST_FOR_EACH_ISA(std::int64_t carry_rows(const CarryRows&))
std::int64_t carry_rows_cpu(const CarryRows& problem) { TOAST_CALL_BEST(carry_rows(problem)); }

TOAST_FOR_EACH_ISA(std::int64_t class_medoids(const ClassMedoids&))
std::int64_t class_medoids_cpu(const ClassMedoids& problem) { TOAST_CALL_BEST(class_medoids(problem)); }

namespace {

#if defined(TOAST_HAS_SIMD)
// GCC before 11 and Clang before 18 do not know "f16c" as an argument of __builtin_cpu_supports.
bool supports_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

std::vector<Isa> available() {
  std::vector<Isa> isas{Isa::generic};
#if defined(TOAST_HAS_SIMD)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
  if (avx2) isas.push_back(Isa::avx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    isas.push_back(Isa::avx512);
#endif
  return isas;
}

Isa choose() {
  const std::vector<Isa> isas = available();
  const char* wanted = std::getenv("TOAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return isas.back();
  std::string known;
  for (Isa isa : isas) {
    if (std::string(wanted) == name(isa)) return isa;
    known += std::string(known.empty() ? "" : ", ") + name(isa);
  }
  throw std::runtime_error("TOAST_CPU_ISA must be one of " + known + " on this processor, got " + wanted);
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return "generic";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace toast
