// Memory for the kernels to read and write, in which a step too far is noticed.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__has_include) && __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

// n elements between two guards that AddressSanitizer forbids to touch; intact() sees the writes that it does not
// instrument (non-temporal stores). Every byte starts as 0xff: NaN in all floating-point types, -1 in all integers.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::int64_t n = 0) : n_(n), bytes_(new unsigned char[2 * kGuard + n * sizeof(T)]) {
    std::memset(bytes_.get(), 0xff, 2 * kGuard + n * sizeof(T));
    ASAN_POISON_MEMORY_REGION(bytes_.get(), kGuard);
    ASAN_POISON_MEMORY_REGION(end(), kGuard);
  }

  T* data() { return reinterpret_cast<T*>(bytes_.get() + kGuard); }
  T& operator[](std::int64_t i) { return data()[i]; }
  std::int64_t size() const { return n_; }

  // Forbids n elements from element `begin` on, such as what lies between two rows.
  void forbid(std::int64_t begin, std::int64_t n) { ASAN_POISON_MEMORY_REGION(data() + begin, n * sizeof(T)); }

  bool intact() { return unwritten(bytes_.get()) && unwritten(end()); }

 private:
  static constexpr std::int64_t kGuard = 128;

  unsigned char* end() { return bytes_.get() + kGuard + n_ * sizeof(T); }

  static bool unwritten(unsigned char* guard) {
    ASAN_UNPOISON_MEMORY_REGION(guard, kGuard);
    bool untouched = true;
    for (std::int64_t i = 0; i < kGuard; ++i) untouched &= guard[i] == 0xff;
    ASAN_POISON_MEMORY_REGION(guard, kGuard);
    return untouched;
  }

  std::int64_t n_;
  std::unique_ptr<unsigned char[]> bytes_;
};
