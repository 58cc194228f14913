// Which thread runs. The ready thread of highest priority does; priorities are the threads' indices, or random ones
// that change now and then ("probabilistic concurrency testing"): some threads run far ahead, others fall far behind.
#include <algorithm>
#include <exception>
#include <numeric>

#include "threads.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

Cluster cluster;
Thread* running = nullptr;
Random draw(0);
std::uint64_t resumes = 0;

namespace {

constexpr unsigned kResumesPerPriorityChange = 32;
constexpr unsigned kReportedLines = 24;

Fiber host;
std::exception_ptr failure;
void (*thread_body)();

// Threads by rank, 0 first; and which of them are ready.
std::vector<unsigned> rank_of, thread_at;
std::vector<std::uint64_t> ready;

void set_ready(unsigned rank) { ready[rank / 64] |= std::uint64_t(1) << rank % 64; }
void clear_ready(unsigned rank) { ready[rank / 64] &= ~(std::uint64_t(1) << rank % 64); }
bool is_ready(unsigned rank) { return ready[rank / 64] >> rank % 64 & 1; }

Thread* first_ready() {
  for (std::size_t i = 0; i < ready.size(); ++i)
    if (ready[i] != 0) return &cluster.threads[thread_at[i * 64 + __builtin_ctzll(ready[i])]];
  return nullptr;
}

void swap_priorities(unsigned a, unsigned b) {
  const bool a_ready = is_ready(rank_of[a]), b_ready = is_ready(rank_of[b]);
  std::swap(rank_of[a], rank_of[b]);
  for (unsigned thread : {a, b}) {
    thread_at[rank_of[thread]] = thread;
    (thread == a ? a_ready : b_ready) ? set_ready(rank_of[thread]) : clear_ready(rank_of[thread]);
  }
}

// "block 1: threads 0-31 wait in __syncthreads at x.cu:7", a line for each run of threads that do the same.
std::string who_waits_where() {
  std::string text;
  unsigned lines = 0;
  for (unsigned first = 0, end; first < cluster.size; first = end) {
    const Thread& a = cluster.threads[first];
    for (end = first + 1; end < cluster.size; ++end) {
      const Thread& b = cluster.threads[end];
      if (b.block != a.block || b.returned != a.returned) break;
      if (!a.returned && (b.waits_at != a.waits_at || !(b.site == a.site))) break;
    }
    if (++lines > kReportedLines) return text + "\n  ...";
    const unsigned base = cluster.first_thread(a.block);
    text += "\n  block " + std::to_string(a.block) + ": thread " + std::to_string(first - base);
    if (end - first > 1) text += " to " + std::to_string(end - 1 - base);
    text += a.returned ? " returned" : std::string(" in ") + a.operation + " at " + describe(a.site);
  }
  return text;
}

bool all_returned() {
  return std::all_of(cluster.threads.begin(), cluster.threads.begin() + cluster.size,
                     [](const Thread& thread) { return thread.returned; });
}

void resume(Thread& thread, Fiber& from, bool finished) {
  ++resumes;
  running = &thread;
  threadIdx = thread.index;
  blockIdx = block_of(thread).index;
  Fiber::switch_to(from, thread.fiber, finished);
}

void run_next(Fiber& from, bool finished = false) {
  Thread* const next = failure ? nullptr : first_ready();
  if (next == nullptr) {
    if (!failure && !all_returned())
      failure = std::make_exception_ptr(Fault("no thread can go on:" + who_waits_where()));
    return Fiber::switch_to(from, host, finished);
  }
  if (next != running || finished) resume(*next, from, finished);
  if (!running->copies.empty()) complete_a_copy();
}

void thread_main() {
  Thread& self = *running;
  Block& block = block_of(self);
  if (!block.started) {
    block.started = true;
    open_shared_memory(self.block);
  }
  try {
    races::watching = true;
    thread_body();
    races::watching = false;
    if (!self.copies.empty()) throw Fault(describe(self) + " returned without waiting for its asynchronous copies");
  } catch (...) {
    races::watching = false;
    failure = std::current_exception();
  }
  self.returned = true;
  cluster.warps[self.warp].returned |= 1u << self.lane;
  clear_ready(rank_of[self.number]);
  if (--block.threads_left == 0) close_shared_memory(self.block);
  run_next(self.fiber, true);
}

}  // namespace

std::string describe(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string describe(const Thread& thread) {
  return "thread " + std::to_string(thread.number - cluster.first_thread(thread.block)) + " of block " +
         std::to_string(thread.block) + " of its cluster";
}

void give_way() {
  if (seed != 0 && draw.below(kResumesPerPriorityChange) == 0)
    swap_priorities(running->number, draw.below(cluster.size));
  run_next(running->fiber);
}

void wait(const void* at, const char* operation, Site site) {
  running->waits_at = at;
  running->operation = operation;
  running->site = site;
  clear_ready(rank_of[running->number]);
  give_way();
}

void wake(const void* at, unsigned first, unsigned n) {
  for (unsigned i = first; i < first + n; ++i) {
    Thread& thread = cluster.threads[i];
    if (thread.waits_at != at) continue;
    thread.waits_at = nullptr;
    set_ready(rank_of[i]);
  }
}

void run_cluster(void (*body)()) {
  thread_body = body;
  failure = nullptr;
  rank_of.resize(cluster.size);
  std::iota(rank_of.begin(), rank_of.end(), 0u);
  if (seed != 0)
    for (unsigned i = cluster.size; i > 1; --i) std::swap(rank_of[i - 1], rank_of[draw.below(i)]);
  thread_at.resize(cluster.size);
  ready.assign((cluster.size + 63) / 64, 0);
  for (unsigned i = 0; i < cluster.size; ++i) {
    thread_at[rank_of[i]] = i;
    set_ready(i);
    cluster.threads[i].fiber.start(thread_main);
  }
  resume(*first_ready(), host, false);
  running = nullptr;
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cuda_on_cpu
