// Shared memory of the cluster's blocks, and the copies into it. A block's lies in an arena of its own:
//   guard | static variables, each followed by a guard | guard | dynamic | guard
// Guards, and all of a block that has not started or has returned, are forbidden to AddressSanitizer; bytes that were
// not written read as 0xFF, which is NaN in every floating-point type.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "sanitizers.h"
#include "threads.h"

namespace cuda_on_cpu {
namespace {

constexpr std::size_t kGuard = 128;
constexpr std::size_t kStaticBytes = 48 * 1024;
// 16-byte aligned, as a kernel may count on, and no more.
constexpr std::size_t kDynamic = kGuard + kStaticBytes + kGuard + 16;
constexpr int kPoison = 0xff;

struct Variable {
  const void* id;
  std::size_t offset, bytes;
};
std::vector<Variable> variables;  // of the launch
std::size_t static_end, static_bytes;

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
struct Arena {
  std::unique_ptr<char, Free> memory;
  std::size_t bytes = 0;
};
std::vector<Arena> arenas;  // by rank; kept for later launches

char* arena(unsigned block) { return arenas[block].memory.get(); }
std::size_t arena_bytes() { return (kDynamic + cluster.launch.dynamic_bytes + 2 * kGuard - 1) / kGuard * kGuard; }

std::size_t offset_in_own_arena(const void* address, const char* operation) {
  const std::size_t offset = static_cast<const char*>(address) - arena(running->block);
  if (offset >= arena_bytes())
    throw Fault(std::string(operation) + ": " + describe(*running) + " gives an address outside its shared memory");
  return offset;
}

void complete(Copy& copy) {
  if (!copy.completed) std::memcpy(copy.to, copy.from, copy.bytes);
  copy.completed = true;
}

// Waits for the copies of all groups before the one of this number.
void wait_for_groups_before(unsigned group) {
  const races::Unwatched unwatched;
  std::vector<Copy>& copies = running->copies;
  const auto done =
      std::stable_partition(copies.begin(), copies.end(), [=](const Copy& copy) { return copy.group >= group; });
  for (auto copy = done; copy != copies.end(); ++copy) {
    complete(*copy);
    races::end_of_access(copy->from, copy->bytes, races::kRead, copy->issued);
    races::end_of_access(copy->to, copy->bytes, races::kWrite, copy->issued);
  }
  copies.erase(done, copies.end());
}

}  // namespace

void begin_launch_shared_memory() {
  variables.clear();
  static_end = kGuard;
  static_bytes = 0;
}

void begin_shared_memory() {
  const unsigned blocks = unsigned(cluster.blocks.size());
  if (arenas.size() < blocks) arenas.resize(blocks);
  for (unsigned block = 0; block < blocks; ++block) {
    Arena& a = arenas[block];
    if (a.bytes < arena_bytes()) {
      if (a.memory) ASAN_UNPOISON_MEMORY_REGION(a.memory.get(), a.bytes);
      a.memory.reset(static_cast<char*>(std::aligned_alloc(kGuard, arena_bytes())));
      a.bytes = arena_bytes();
    }
    ASAN_POISON_MEMORY_REGION(a.memory.get(), a.bytes);
  }
}

void open_shared_memory(unsigned block) {
  char* const memory = arena(block);
  ASAN_UNPOISON_MEMORY_REGION(memory, arena_bytes());
  std::memset(memory, kPoison, arena_bytes());
  ASAN_POISON_MEMORY_REGION(memory, arena_bytes());
  races::begin_block(memory, arena_bytes());
  for (const Variable& variable : variables) ASAN_UNPOISON_MEMORY_REGION(memory + variable.offset, variable.bytes);
  ASAN_UNPOISON_MEMORY_REGION(memory + kDynamic, cluster.launch.dynamic_bytes);
}

void close_shared_memory(unsigned block) {
  char* const memory = arena(block);
  races::end_block(block, memory, arena_bytes());
  ASAN_UNPOISON_MEMORY_REGION(memory, arena_bytes());
  std::memset(memory, kPoison, arena_bytes());
  ASAN_POISON_MEMORY_REGION(memory, arena_bytes());
}

int shared_memory_owner(const void* address) {
  for (unsigned block = 0; block < cluster.blocks.size(); ++block)
    if (address >= arena(block) && address < arena(block) + arena_bytes()) return int(block);
  return -1;
}

void* static_shared(const void* id, std::size_t bytes, std::size_t alignment) {
  const races::Unwatched unwatched;
  for (const Variable& variable : variables)
    if (variable.id == id) return arena(running->block) + variable.offset;
  const std::size_t offset = (static_end + alignment - 1) / alignment * alignment;
  static_end = offset + (bytes + kGuard - 1) / 8 * 8;
  static_bytes += bytes;
  if (static_end > kGuard + kStaticBytes ||
      static_bytes + cluster.launch.dynamic_bytes > std::size_t(device.shared_memory_per_block))
    throw Fault("too much static shared memory, beside " + std::to_string(cluster.launch.dynamic_bytes) +
                " bytes of dynamic");
  variables.push_back({id, offset, bytes});
  for (unsigned block = 0; block < cluster.blocks.size(); ++block)
    if (cluster.blocks[block].started && cluster.blocks[block].threads_left > 0)
      ASAN_UNPOISON_MEMORY_REGION(arena(block) + offset, bytes);
  return arena(running->block) + offset;
}

void* dynamic_shared_of(unsigned block) { return arena(block) + kDynamic; }
void* dynamic_shared() { return dynamic_shared_of(running->block); }

void* map_shared_rank(const void* address, unsigned rank) {
  const races::Unwatched unwatched;
  const std::size_t offset = offset_in_own_arena(address, "map_shared_rank");
  if (rank >= cluster.blocks.size())
    throw Fault("map_shared_rank: no block " + std::to_string(rank) + " in the cluster");
  if (cluster.blocks[rank].threads_left == 0)
    throw Fault("map_shared_rank: block " + std::to_string(rank) + " has returned, " + describe(*running) +
                " still wants its shared memory");
  return arena(rank) + offset;
}

unsigned query_shared_rank(const void* address) {
  const int owner = shared_memory_owner(address);
  if (owner < 0) throw Fault("query_shared_rank: the address lies in no block's shared memory");
  return unsigned(owner);
}

void copy_async(void* to, const void* from, unsigned bytes) {
  const races::Unwatched unwatched;
  if (bytes != 4 && bytes != 8 && bytes != 16) throw Fault("asynchronous copies are of 4, 8 or 16 bytes");
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % bytes != 0)
    throw Fault("an asynchronous copy of " + std::to_string(bytes) + " bytes is not aligned to them");
  offset_in_own_arena(to, "an asynchronous copy");
  races::access(from, bytes, races::kRead);
  races::access(to, bytes, races::kWrite);
  running->copies.push_back({to, from, bytes, running->copy_groups, false, races::accesses()});
  std::memset(to, kPoison, bytes);
}

void commit_copies() { ++running->copy_groups; }

void wait_for_copy_groups(unsigned newest) {
  const unsigned groups = running->copy_groups;
  wait_for_groups_before(groups > newest ? groups - newest : 0);
}

void wait_for_copies() { wait_for_groups_before(running->copy_groups + 1); }

void complete_a_copy() {
  if (seed == 0 || draw.below(4) != 0) return;
  std::vector<Copy>& copies = running->copies;
  complete(copies[draw.below(unsigned(copies.size()))]);
}

}  // namespace cuda_on_cpu
