// Checks for the C++ tests. A failed check says where, and in which case; main() returns finish().
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"

namespace check {

inline std::string current_case;
inline int failures = 0;

inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n  in %s\n", file, line, what.c_str(), current_case.c_str());
  if (++failures == 10) std::exit(1);
}

// The instruction set under test; leaves with 77, which ctest counts as skipped, where this processor lacks it.
inline void start() {
  try {
    std::printf("%s\n", toast::name(toast::cpu_isa()));
  } catch (const std::runtime_error& error) {
    std::printf("skipped: %s\n", error.what());
    std::exit(77);
  }
}

inline int finish(long cases) {
  std::printf("%ld cases, %d failures\n", cases, failures);
  return failures != 0;
}

}  // namespace check

#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition))
#define CHECK_SAYING(condition, text) \
  ((condition) ? void() : check::fail(__FILE__, __LINE__, std::string(#condition) + ": " + (text)))
