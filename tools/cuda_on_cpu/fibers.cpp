#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "sanitizers.h"

#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#define HAS_OWN_SWITCH 0
#else
#define HAS_OWN_SWITCH 1
#endif

namespace cuda_on_cpu {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;

Fiber* arriving = nullptr;
Fiber* leaving = nullptr;

#if HAS_OWN_SWITCH
// Pushes what a call must preserve, leaves the stack pointer in *from and takes up the other stack where it was left.
__attribute__((naked, noinline)) void switch_stack([[maybe_unused]] void** from, [[maybe_unused]] void* to) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}
constexpr std::size_t kSavedRegisters = 6;
#endif

}  // namespace

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, kStackBytes + sysconf(_SC_PAGESIZE));
#if !HAS_OWN_SWITCH
  delete static_cast<ucontext_t*>(context_);
#endif
}

void Fiber::start(void (*entry)()) {
  if (mapping_ == nullptr) {
    const std::size_t page = sysconf(_SC_PAGESIZE);
    void* mapping =
        mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = mapping;
    if (mprotect(mapping, page, PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<char*>(mapping) + page;
    size_ = kStackBytes;
  }
  ASAN_UNPOISON_MEMORY_REGION(stack_, size_);
  entry_ = entry;
  fake_stack_ = nullptr;
  char* const bottom = static_cast<char*>(mapping_) + sysconf(_SC_PAGESIZE);
#if HAS_OWN_SWITCH
  // As enter() expects to find its stack: a return address (none), 8 mod 16.
  void** top = reinterpret_cast<void**>(bottom + size_);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (std::size_t i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context_ = top;
#else
  if (context_ == nullptr) context_ = new ucontext_t;
  ucontext_t* context = static_cast<ucontext_t*>(context_);
  getcontext(context);
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = size_;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::enter, 0);
#endif
}

void Fiber::arrive([[maybe_unused]] Fiber& self) {
#if CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack_, &leaving->stack_, &leaving->size_);
#endif
}

void Fiber::enter() {
  arrive(*arriving);
  arriving->entry_();
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool finished) {
  leaving = &from;
  arriving = &to;
#if CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(finished ? nullptr : &from.fake_stack_, to.stack_, to.size_);
#endif
#if HAS_OWN_SWITCH
  switch_stack(&from.context_, to.context_);
#else
  if (from.context_ == nullptr) from.context_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(to.context_));
#endif
  arrive(from);
}

}  // namespace cuda_on_cpu
