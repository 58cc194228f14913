"""What the ops' Triton kernels share."""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))


@triton.jit
def increment(counter):
    """Atomic increment (acq_rel) by one program; returns the new value, int32. A program that reads it later sees what
    this one has stored."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel") + 1
