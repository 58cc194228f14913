#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace toast {
namespace {

std::vector<Isa> available() {
  std::vector<Isa> isas{Isa::generic};
#if defined(TOAST_HAS_avx2) || defined(TOAST_HAS_avx512)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
