// Coroutines: a fiber runs until it switches to another, on a stack of its own. All run on one thread of the system.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

class Fiber {
 public:
  Fiber() = default;  // the code that is running already
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry(), which must not return. Whatever the fiber did before is forgotten,
  // its destructors are not run.
  void start(void (*entry)());

  // Leaves `from`, which is running, for `to`; returns when something switches to `from` again.
  // A fiber that has finished does not come back.
  static void switch_to(Fiber& from, Fiber& to, bool finished = false);

  bool owns(const void* address) const {
    return address >= stack_ && address < static_cast<const char*>(stack_) + size_;
  }

 private:
  static void enter();
  static void arrive(Fiber& self);

  void (*entry_)() = nullptr;
  void* context_ = nullptr;      // the stack pointer, or the ucontext_t
  const void* stack_ = nullptr;  // lowest address, above a guard page
  std::size_t size_ = 0;
  void* mapping_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace cuda_on_cpu
