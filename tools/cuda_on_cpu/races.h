// Data races, whatever the schedule: two accesses to one byte of shared or global memory, not both reads and not both
// atomic, that no barrier orders. It works where the kernel is compiled with -fsanitize=thread, whose calls come here
// and not to a library of the compiler's. Variables of static storage are not watched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

struct Thread;

// How far a thread is; an access is stamped with its thread's clock.
struct Clock {
  unsigned
      seen_of_lane[32];  // __syncwarps of its warp's lanes that it has heard of; its own lane's are those it was in
  unsigned block_barriers;
};

namespace races {

// Whether accesses are those of a kernel: false in the host's code and in the emulator's.
extern bool watching;

class Unwatched {
 public:
  Unwatched() : before_(watching) { watching = false; }
  ~Unwatched() { watching = before_; }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

 private:
  bool before_;
};

enum Kind { kRead = 0, kWrite = 1, kAtomic = 3 };

void begin_launch();
void begin_cluster();
// An access by the running thread, if it is not one to memory of its own.
void access(const void* address, std::size_t bytes, Kind kind, const void* code = nullptr);
// An access that went on since accesses() was `since`, and ends now.
void end_of_access(const void* address, std::size_t bytes, Kind kind, std::uint64_t since);
std::uint64_t accesses();
void begin_block(const void* memory, std::size_t bytes);
// What other blocks did to the block's shared memory must have happened before its end.
void end_block(unsigned block, const void* memory, std::size_t bytes);
// Throws the first race that was found.
void end_launch();

}  // namespace races
}  // namespace cuda_on_cpu
