#include "races.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "threads.h"

extern const char __executable_start, end;  // the linker's: static storage lies between them

namespace cuda_on_cpu {
namespace races {

bool watching = false;

namespace {

bool enabled = false;
std::uint64_t count = 0;
unsigned clusters = 0;
std::string first_race;

struct Access {
  unsigned cluster, thread, block, warp, lane;
  unsigned warp_clock, block_clock, cluster_clock;
  const void* code;
  std::uint64_t number;
  unsigned char bytes;  // of the word, a bit each
  Kind kind;
};

// The accesses to each 8-byte word that a later one may still race with.
using Word = std::vector<Access>;
constexpr std::uintptr_t kWordsPerPage = 128;
std::unordered_map<std::uintptr_t, std::array<Word, kWordsPerPage>> pages;

std::uintptr_t word_of(const void* address) { return reinterpret_cast<std::uintptr_t>(address) / 8; }

// Whether a barrier, or the program's order, puts the access before what the thread does now.
bool ordered(const Access& before, const Thread& now) {
  if (before.cluster != clusters) return false;
  if (before.thread == now.number) return true;
  if (before.warp == now.warp && now.clock.seen_of_lane[before.lane] > before.warp_clock) return true;
  if (before.block == now.block && now.clock.block_barriers > before.block_clock) return true;
  return now.cluster_waits > before.cluster_clock;
}

std::string describe_place(const void* address) {
  const int owner = shared_memory_owner(address);
  char text[64];
  if (owner < 0) {
    std::snprintf(text, sizeof text, "global memory at %p", address);
    return text;
  }
  const std::ptrdiff_t byte = static_cast<const char*>(address) - static_cast<const char*>(dynamic_shared_of(owner));
  std::snprintf(text, sizeof text,
                byte < 0 ? "static shared memory of block %d" : "dynamic shared memory of block %d, byte %td", owner,
                byte);
  return text;
}

std::string describe_access(const Access& access) {
  char code[64] = "";
  if (access.code != nullptr)
    std::snprintf(code, sizeof code, " (code at %#tx)", static_cast<const char*>(access.code) - &__executable_start);
  return std::string(access.kind == kRead    ? "read"
                     : access.kind == kWrite ? "write"
                                             : "atomic update") +
         " by thread " + std::to_string(access.thread - cluster.first_thread(access.block)) + " of block " +
         std::to_string(access.block) + (access.cluster == clusters ? "" : " of another cluster") + code;
}

void report(const std::string& what, const void* address) {
  if (first_race.empty()) first_race = what + "; " + describe_place(address);
}

// Adds an access, that began when `since` others had been, to those of its word.
void record(Word& word, const Access& now, std::uint64_t since, const void* address) {
  for (const Access& before : word) {
    const bool conflict = (before.bytes & now.bytes) != 0 && (before.kind | now.kind) != kRead &&
                          !(before.kind == kAtomic && now.kind == kAtomic);
    if (conflict && (!ordered(before, *running) || before.number > since))
      report("data race: " + describe_access(now) + ", not ordered after " + describe_access(before), address);
  }
  // What would race with an earlier access races with this one too, if it is of the same kind or a write.
  const auto covered = [&](const Access& before) {
    return (before.bytes & ~now.bytes) == 0 && (before.kind == now.kind || now.kind == kWrite) &&
           ordered(before, *running);
  };
  word.erase(std::remove_if(word.begin(), word.end(), covered), word.end());
  word.push_back(now);
}

void check_lifetime(const Access& now, const void* address) {
  const int owner = shared_memory_owner(address);
  if (owner < 0 || unsigned(owner) == now.block) return;
  if (cluster.blocks[owner].threads_left == 0)
    report(describe_access(now) + " to the shared memory of a block that has returned", address);
  if (running->cluster_waits == 0)
    report(describe_access(now) + " to the shared memory of a block that may not have started", address);
}

void add(const void* address, std::size_t bytes, Kind kind, const void* code, std::uint64_t since) {
  if (!enabled || running->fiber.owns(address) || (address >= &__executable_start && address < &end)) return;
  const Thread& t = *running;
  Access now = {
      clusters,           t.number, t.block, t.warp, t.lane, t.clock.seen_of_lane[t.lane], t.clock.block_barriers,
      t.cluster_arrivals, code,     ++count, 0,      kind};
  check_lifetime(now, address);
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address), last = first + bytes;
  for (std::uintptr_t word = first / 8; word * 8 < last; ++word) {
    const std::uintptr_t from = std::max(first, word * 8) - word * 8, to = std::min(last, word * 8 + 8) - word * 8;
    now.bytes = static_cast<unsigned char>((1u << to) - (1u << from));
    record(pages[word / kWordsPerPage][word % kWordsPerPage], now, since,
           reinterpret_cast<const char*>(word * 8 + from));
  }
}

}  // namespace

void begin_launch() {
  first_race.clear();
  pages.clear();
}

void begin_cluster() { ++clusters; }

std::uint64_t accesses() { return count; }

void access(const void* address, std::size_t bytes, Kind kind, const void* code) {
  add(address, bytes, kind, code, count + 1);
}

void end_of_access(const void* address, std::size_t bytes, Kind kind, std::uint64_t since) {
  add(address, bytes, kind, nullptr, since);
}

void begin_block(const void* memory, std::size_t bytes) {
  if (!enabled) return;
  for (std::uintptr_t word = word_of(memory); word < word_of(memory) + bytes / 8; ++word)
    if (const auto page = pages.find(word / kWordsPerPage); page != pages.end())
      page->second[word % kWordsPerPage].clear();
}

void end_block(unsigned block, const void* memory, std::size_t bytes) {
  if (!enabled) return;
  unsigned waits = 0;
  for (unsigned i = 0; i < cluster.threads_per_block; ++i)
    waits = std::max(waits, cluster.threads[cluster.first_thread(block) + i].cluster_waits);
  for (std::uintptr_t word = word_of(memory); word < word_of(memory) + bytes / 8; ++word) {
    const auto page = pages.find(word / kWordsPerPage);
    if (page == pages.end()) continue;
    for (const Access& access : page->second[word % kWordsPerPage])
      if (access.block != block && access.cluster_clock >= waits)
        report(describe_access(access) + " to the shared memory of a block that may have returned",
               reinterpret_cast<const void*>(word * 8));
  }
}

void end_launch() {
  if (!first_race.empty()) throw Fault(first_race);
}

}  // namespace races
}  // namespace cuda_on_cpu

// --- What -fsanitize=thread makes the compiler call
using namespace cuda_on_cpu::races;

namespace {
inline void instrumented(const void* address, std::size_t bytes, Kind kind, const void* code) {
  if (!watching) return;
  const Unwatched unwatched;
  access(address, bytes, kind, code);
}
}  // namespace

extern "C" {

void __tsan_init() { enabled = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define ACCESSES(prefix, bytes)                                                                              \
  void __tsan_##prefix##read##bytes(void* p) { instrumented(p, bytes, kRead, __builtin_return_address(0)); } \
  void __tsan_##prefix##write##bytes(void* p) { instrumented(p, bytes, kWrite, __builtin_return_address(0)); }
ACCESSES(, 1)
ACCESSES(, 2)
ACCESSES(, 4)
ACCESSES(, 8)
ACCESSES(, 16)
ACCESSES(unaligned_, 2)
ACCESSES(unaligned_, 4)
ACCESSES(unaligned_, 8)
ACCESSES(unaligned_, 16)

void __tsan_read_range(void* p, unsigned long bytes) { instrumented(p, bytes, kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long bytes) { instrumented(p, bytes, kWrite, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  instrumented(from, bytes, kRead, __builtin_return_address(0));
  instrumented(to, bytes, kWrite, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
  instrumented(from, bytes, kRead, __builtin_return_address(0));
  instrumented(to, bytes, kWrite, __builtin_return_address(0));
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  instrumented(to, bytes, kWrite, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

// The host's atomics: of shared_ptr, and of the guards of local statics.
#define ATOMICS(bits, T)                                                                                  \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(volatile T* p, T x, int) { __atomic_store_n(p, x, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T x, int) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }
ATOMICS(8, unsigned char)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)

}  // extern "C"
