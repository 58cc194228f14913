// Bugs planted in small kernels: CUDA run on the CPU must show each, and find nothing in the same kernels without them.
#include "test_cuda_on_cpu_bugs.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "test_launch.h"

namespace {

constexpr unsigned kSeeds = CUDA_ON_CPU_ASAN ? 6 : 20;  // it takes a tenth of a second to die of AddressSanitizer

using Kernel = void (*)(const float*, float*);

const Shape kBlock = {1, kThreads, 1, 2 * kThreads * sizeof(float)};
const Shape kOneCluster = {kCluster, kThreads, kCluster};

std::vector<float> numbers(std::size_t n) {
  std::vector<float> result(n);
  for (std::size_t i = 0; i < n; ++i) result[i] = float(i);
  return result;
}

// Element i of the result: each row reversed, or the next block's row.
float expected(const Shape& shape, unsigned threads, unsigned i) {
  const unsigned n = shape.cluster * threads;
  return shape.cluster > 1 ? float((i + threads) % n) : float(i / threads * threads + threads - 1 - i % threads);
}

// The kernel's fault, "a wrong result", or "".
std::string finding(Kernel kernel, const Shape& shape, unsigned rows) {
  const unsigned threads = shape.block.x, n = shape.grid.x * threads * rows;
  const std::vector<float> in = numbers(n);
  std::vector<float> out(n, -1.0f);
  const std::string found = fault(shape, kernel, in.data(), out.data());
  if (!found.empty()) return found;
  for (unsigned i = 0; i < n; ++i)
    if (!(out[i] == expected(shape, threads, i))) return "a wrong result";
  return "";
}

// What AddressSanitizer writes as it ends the process, or what `run` returns.
std::string in_a_process(const std::function<std::string()>& run) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const std::string found = run();
    if (write(STDERR_FILENO, found.data(), found.size()) < 0) _exit(1);
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, std::size_t(n));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return text;
}

long cases = 0;

enum class Seen {
  at_times,        // a race: under some schedules, and under every one where races are watched
  in_every_order,  // by what the threads do, or AddressSanitizer
};

// The wrong kernel must be caught under every seed, or half of them, and what is said must contain `by`; the right one
// under none.
void check_bug(const char* name, Seen seen, const std::string& by, const std::function<std::string(bool right)>& run) {
  const bool always = seen == Seen::in_every_order || kRacesAreWatched;
  unsigned caught = 0;
  for (unsigned seed = 0; seed < kSeeds; ++seed, ++cases) {
    cuda_on_cpu::seed = seed;
    check::current_case = std::string(name) + ", seed " + std::to_string(seed);
    const std::string nothing = run(true), found = run(false);
    CHECK_SAYING(nothing.empty(), nothing);
    caught += !found.empty();
    if (always) CHECK_SAYING(found.find(by) != std::string::npos, found);
  }
  std::printf("%-44s caught under %2u of %u seeds\n", name, caught, kSeeds);
  check::current_case = name;
  CHECK_SAYING(caught >= (always ? kSeeds : kSeeds / 2), std::to_string(caught) + " seeds");
}

void check_bug(const char* name, Seen seen, const std::string& by, Kernel right, Kernel wrong, const Shape& shape,
               unsigned rows = 1) {
  check_bug(name, seen, by, [=](bool r) { return finding(r ? right : wrong, shape, rows); });
}

void race(const char* name, Kernel right, Kernel wrong, const Shape& shape, unsigned rows = 1) {
  check_bug(name, Seen::at_times, "data race", right, wrong, shape, rows);
}

void hang(const char* name, const std::string& by, Kernel right, Kernel wrong, const Shape& shape) {
  check_bug(name, Seen::in_every_order, by, right, wrong, shape);
}

void races() {
  race("no __syncthreads", reverse<true>, reverse<false>, kBlock);
  if (kRacesAreWatched) race("a shuffle for a barrier", reverse_in_a_warp<true>, reverse_in_a_warp<false>, {1, 32});
  race("a buffer overwritten while it is read", reverse_rows<true>, reverse_rows<false>, kBlock, kRounds);
  race("a block's barrier for a cluster's", neighbours<true>, neighbours<false>, kOneCluster);
  race("no barrier after a copy", copy_rows<Wrong::nothing>, copy_rows<Wrong::no_barrier>, kBlock, kRounds);
  race("a copy over what is being read", copy_rows<Wrong::nothing>, copy_rows<Wrong::overwrites>, kBlock, kRounds);
  const auto race_alone = [](const char* name, const Shape& shape, void (*right)(float*), void (*wrong)(float*)) {
    check_bug(name, Seen::at_times, "data race", [=](bool r) {
      std::vector<float> out(kThreads);
      return fault(shape, r ? right : wrong, out.data());
    });
  };
  if (kRacesAreWatched) {
    race_alone("two blocks write one element", {kCluster, 32}, all_write<true>, all_write<false>);
    race_alone("a warp's barrier for a block's", {1, kThreads}, first_warp_writes<true>, first_warp_writes<false>);
  }
}

void copies() {
  // The row that is missing is 0xFF, in the order that completes copies last (seed 0) at the latest.
  const char* by = kRacesAreWatched ? "data race" : "a wrong result";
  check_bug("a copy not waited for", Seen::at_times, by, copy_rows<Wrong::nothing>, copy_rows<Wrong::no_wait>, kBlock,
            kRounds);
  check_bug("waiting for the copy before", Seen::at_times, by, copy_rows<Wrong::nothing>,
            copy_rows<Wrong::waits_for_too_few>, kBlock, kRounds);
}

void hangs() {
  hang("a barrier in divergent code", "in divergent code", diverge<true>, diverge<false>, kBlock);
  hang("a thread returns before the barrier", "thread 48 to 63 returned", return_early<true>, return_early<false>,
       kBlock);
  hang("half a warp at a shuffle of all", "__shfl_xor_sync at", half_a_warp<true>, half_a_warp<false>, kBlock);
  hang("one thread at the cluster's barrier", "the cluster's barrier at", first_thread_only<true>,
       first_thread_only<false>, kOneCluster);
}

void lifetimes() {
  if (CUDA_ON_CPU_ASAN) {
    const auto outside = [](const char* name, const char* by, void (*right)(float*), void (*wrong)(float*)) {
      check_bug(name, Seen::in_every_order, by, [=](bool r) {
        return in_a_process([=] {
          std::vector<float> out(kThreads);
          return fault({1, kThreads, 1, kThreads * sizeof(float)}, r ? right : wrong, out.data());
        });
      });
    };
    outside("past the end of dynamic shared memory", "use-after-poison", past_the_end<true>, past_the_end<false>);
    outside("past a variable in shared memory", "use-after-poison", past_the_variable<true>, past_the_variable<false>);
    outside("a copy from past the end", "heap-buffer-overflow", copy_past_the_end<true>, copy_past_the_end<false>);
  }
  check_bug("a write to a block that may not run yet", Seen::at_times, "may not have started", [](bool right) {
    return in_a_process([=] { return finding(right ? greet<true> : greet<false>, kOneCluster, 1); });
  });
  check_bug("a block leaves while others read it", Seen::at_times, "have returned", [](bool right) {
    return in_a_process([=] { return finding(right ? leave<true> : leave<false>, kOneCluster, 1); });
  });
}

}  // namespace

// A process that is to die need not say where.
extern "C" const char* __asan_default_options() { return "symbolize=0:print_legend=0"; }

int main() {
  races();
  copies();
  hangs();
  lifetimes();
  return check::finish(cases);
}
