// How a row is spread over threads and blocks, from its target and its length alone: host code, which needs no GPU.
#include <algorithm>
#include <cstdint>

#include "cuda/blended_kl.h"

namespace toast {
namespace {

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Whether 16 bytes of a row of the table are the classes of 16 bytes of a row of logits.
bool can_be_held(const BlendedKL& p, const SoftRows& table) {
  const auto aligned = [&](const void* rows, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(rows) % 16 == 0 && stride * size_of(p.dtype) % 16 == 0;
  };
  const bool alike = aligned(p.logits, p.stride) && aligned(table.values, table.stride);
  return table.dtype == p.dtype && alike;
}

}  // namespace

RowKind row_kind(const BlendedKL& p) {
  const auto holds = [](const SoftRows& table) { return table.values != nullptr && table.indices == nullptr; };
  if (p.target == nullptr || (p.weight != nullptr && p.label_smoothing != 0)) return RowKind::any;
  if (holds(p.past) && !can_be_held(p, p.past)) return RowKind::any;
  if (holds(p.soft)) {
    const bool one = p.target_b == nullptr && p.soft.logsumexp == nullptr;
    return one && can_be_held(p, p.soft) ? RowKind::dense : RowKind::any;
  }
  if (holds(p.past)) return RowKind::past;
  const bool lists = p.soft.values != nullptr || p.past.values != nullptr || p.label_smoothing != 0;
  return lists ? RowKind::lists : RowKind::labels;
}

// The smallest cluster that holds the row; one that runs on many multiprocessors leaves more of them without work.
Plan plan(RowKind kind, DType dtype, std::int64_t classes, const Limits& limits) {
  for (;; kind = RowKind::any) {
    const int most_threads = std::min(limits.registers / registers_of(kind), threads_of(kind));
    const bool held = kind != RowKind::any;
    // Of kind any a thread works on 64 elements and more.
    const std::int64_t units = held ? classes * size_of(dtype) / 16 : classes;
    const std::int64_t of_a_thread = held ? vectors_of(kind) : 64;
    const std::int64_t cluster = std::max(divided_up(units, of_a_thread * most_threads), std::int64_t(1));
    if (held && cluster > limits.cluster) continue;
    const std::int64_t blocks = std::min(cluster, std::int64_t(limits.cluster));
    const std::int64_t warps = std::max(divided_up(units, of_a_thread * blocks * 32), std::int64_t(1));
    return {kind, int(std::min(warps * 32, std::int64_t(most_threads))), int(blocks)};
  }
}

}  // namespace toast
