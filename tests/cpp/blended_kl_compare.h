// What a kernel made of a problem, against the truth.
#pragma once

#include <algorithm>

#include "blended_kl_truth.h"
#include "check.h"

inline bool close(double got, double wanted, double tolerance) {
  if (std::isnan(wanted)) return std::isnan(got);
  return got == wanted || std::fabs(got - wanted) <= tolerance;
}

inline void compare(Problem& problem) {
  const BlendedKL& p = problem.p;
  const Answer wanted = truth(problem);
  const double unit = p.dtype == DType::float64 ? 0x1p-53 : 0x1p-24;
  // size: what the errors of the arithmetic are relative to; half_step: what rounding the result may add.
  auto compare = [&](const char* what, int64_t i, double got, double value, double size, double half_step) {
    CHECK_SAYING(
        close(got, value, 128 * unit * size + half_step),
        std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(got) + ", not " + std::to_string(value));
  };
  for (std::size_t i = 0; i < wanted.loss.size(); ++i)
    compare("loss", i, problem.loss.get(i), wanted.loss[i], 1 + wanted.loss_size[i], 0);
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0, at = i * p.classes; j < p.classes; ++j, ++at)
      compare("gradient", at, problem.gradient.get(at), wanted.gradient[i][j], wanted.gradient_size[i],
              problem.gradient.half_step(wanted.gradient[i][j]));
    const double size = 1 + std::fabs(wanted.logsumexp[i]) + wanted.cross_entropy[i];
    compare("cross_entropy", i, problem.stats.get(i), wanted.cross_entropy[i], size, 0);
    compare("logsumexp", i, problem.stats.get(p.rows + i), wanted.logsumexp[i], size, 0);
    CHECK(problem.argmax[i] == wanted.argmax[i]);
  }
}

inline bool equal(Elements& a, Elements& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

inline bool equal(Guarded<int64_t>& a, Guarded<int64_t>& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data());
}
