// Which build of the CPU kernels runs: each source in csrc/cpu is compiled once per instruction set, in the
// namespace toast::TOAST_ISA, and the best one that this processor has is chosen once, at the first call.
#pragma once

namespace toast {

enum class Isa { generic, avx2, avx512 };

// The best instruction set that was built and that this processor has. The environment variable
// TOAST_CPU_ISA=generic|avx2|avx512 asks for a lower one; asking for one that is not there throws
// std::runtime_error.
Isa cpu_isa();
const char* name(Isa isa);

}  // namespace toast
