// The few draws that the tests make, from a seed: the same ones with every standard library, whose engines are fixed by
// the standard and whose distributions are not.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  // Of 2^64 values each number has a share that differs by one at most.
  std::int64_t below(std::int64_t n) { return std::int64_t(engine_() % std::uint64_t(n)); }
  bool once_in(int n) { return below(n) == 0; }
  double uniform() { return double(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  // Nearly: a sum of 12 uniform numbers less its mean has variance 1, and is within 6. Additions alone, which no
  // library rounds in its own way.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(std::int64_t(choices.size()))];
  }

 private:
  std::mt19937_64 engine_;
};
