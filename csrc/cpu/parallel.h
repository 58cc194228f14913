// Which thread this is, how many to take, and loops over threads whose bodies may throw.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace toast {
namespace TOAST_ISA {

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// How many of `threads` have work, where there is enough for `worth` of them: at least one.
inline int threads_for(std::int64_t worth, int threads) {
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, worth)));
}

// Calls f(i) for each i of [0, n) on up to `threads` threads, a call at a time to each that is free. An exception that
// left an OpenMP region would end the process: the last that f throws (bad_alloc, where memory runs out) is thrown here
// once the others are done. A region whose body cannot throw needs none of this.
template <class F>
void parallel_for(std::int64_t n, int threads, F&& f) {
  threads = int(std::min<std::int64_t>(n, threads));
  std::exception_ptr failure;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (...) {
#pragma omp critical(toast_failure)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace TOAST_ISA
}  // namespace toast
