#include "cuda/blended_kl.h"
#include "cuda/task.cuh"

namespace toast {
namespace {

constexpr int kReserved = 1024;  // bytes of a multiprocessor's shared memory that each block takes besides its own

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool has_target_row(const BlendedKL& p) {
  return p.target == nullptr || p.soft.values != nullptr || p.past.values != nullptr || p.label_smoothing != 0;
}

std::int64_t shared_bytes(const BlendedKL& p, std::int64_t slice, int stages) {
  const std::int64_t element = size_of(p.dtype), places = slice + 16 / element;
  return places * (stages * element + (has_target_row(p) ? std::int64_t(sizeof(float)) : 0));
}

Plan plan(const BlendedKL& p, const Limits& limits) {
  const std::int64_t width = 16 / size_of(p.dtype);
  const auto make = [&](int cluster, int stages, int pieces, std::int64_t slice) {
    return Plan{kMostThreads, cluster, stages, pieces, int(slice), int(shared_bytes(p, slice, stages))};
  };
  // Two blocks share a multiprocessor, so that one has work while the other waits; else one has it all.
  const int shared[] = {limits.shared_per_multiprocessor / 2 - kReserved, limits.shared_per_block};
  for (const int room : shared)
    for (int stages = 2; stages >= 1; --stages)
      for (int cluster = 1; cluster <= limits.largest_cluster; cluster *= 2) {
        const std::int64_t slice = divided_up(divided_up(p.classes, cluster), width) * width;
        if (shared_bytes(p, slice, stages) + kStaticShared <= room) return make(cluster, stages, 1, slice);
      }
  // No cluster holds the row: pieces as large as two stages have room for.
  const std::int64_t most = (shared[0] - kStaticShared) / (shared_bytes(p, 1, 2) - shared_bytes(p, 0, 2)) - width;
  const std::int64_t pieces = divided_up(p.classes, limits.largest_cluster * (most / width * width));
  const std::int64_t slice = divided_up(divided_up(p.classes, limits.largest_cluster * pieces), width) * width;
  return make(limits.largest_cluster, 2, int(pieces), slice);
}

}  // namespace toast
