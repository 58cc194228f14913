// Atomics: others may run before, never between.
#include <algorithm>

#include "device_functions.h"
#include "threads.h"

namespace {

template <class T, class Update>
T update(T* address, Update new_value) {
  const cuda_on_cpu::races::Unwatched unwatched;
  cuda_on_cpu::give_way();
  cuda_on_cpu::races::access(address, sizeof *address, cuda_on_cpu::races::kAtomic);
  const T old = *address;
  *address = new_value(old);
  return old;
}

template <class T>
T add(T* address, T value) {
  return update(address, [value](T old) { return T(old + value); });
}

template <class T>
T maximum(T* address, T value) {
  return update(address, [value](T old) { return std::max(old, value); });
}

}  // namespace

int atomicAdd(int* address, int value) { return int(add(reinterpret_cast<unsigned*>(address), unsigned(value))); }
unsigned atomicAdd(unsigned* address, unsigned value) { return add(address, value); }
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) { return add(address, value); }
float atomicAdd(float* address, float value) { return add(address, value); }
double atomicAdd(double* address, double value) { return add(address, value); }
int atomicMax(int* address, int value) { return maximum(address, value); }
unsigned atomicMax(unsigned* address, unsigned value) { return maximum(address, value); }
unsigned long long atomicMax(unsigned long long* address, unsigned long long value) { return maximum(address, value); }
