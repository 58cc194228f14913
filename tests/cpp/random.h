// The few draws that the tests make, from a seed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) { return std::uniform_int_distribution<std::int64_t>(0, n - 1)(engine_); }
  bool once_in(int n) { return below(n) == 0; }
  double uniform() { return std::uniform_real_distribution<double>()(engine_); }
  double normal() { return std::normal_distribution<double>()(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(std::int64_t(choices.size()))];
  }

 private:
  std::mt19937 engine_;
};
