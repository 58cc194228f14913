"""Sums over programs in blended_kl's Triton kernels: the divisors of "mean", and the loss."""

import triton
import triton.language as tl

from ..triton_common import INF, increment

MOST_PARTS = tl.constexpr(32)


@triton.jit
def divisors_of(reduction):
    """The sum of the labels' weights and the number of rows with a past."""
    i = tl.arange(0, MOST_PARTS)
    there = i < reduction.parts
    weight = tl.sum(tl.load(reduction.divisors + i, mask=there, other=0.0), 0)
    return weight, tl.sum(tl.load(reduction.divisors + reduction.parts + i, mask=there, other=0.0), 0)


@triton.jit
def sum_of_block(values, start, count, BLOCK: tl.constexpr):
    """The sum, float64, of values[start:min(start + BLOCK, count)], which other programs have stored."""
    i = start + tl.arange(0, BLOCK)
    return tl.sum(tl.load(values + i, mask=i < count, other=0.0, cache_modifier=".cg").to(tl.float64), 0)


@triton.jit
def add_up(loss, outputs, reduction, GROUP: tl.constexpr):
    """Adds a program's loss (scalar) to those of all others. The last program of a group to finish sums the group's;
    the last group to finish, the groups' sums. The order of the sums is fixed, whichever programs those are."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    group = program // GROUP
    tl.store(reduction.partial + program, loss)
    if increment(reduction.finished + 1 + group) == tl.minimum(programs - group * GROUP, GROUP):
        tl.store(reduction.group_sums + group, sum_of_block(reduction.partial, group * GROUP, programs, GROUP))
        groups = tl.cdiv(programs, GROUP)
        if increment(reduction.finished) == groups:
            total = tl.zeros([], tl.float64)
            for start in range(0, groups, GROUP):
                total += sum_of_block(reduction.group_sums, start, groups, GROUP)
            if reduction.divisors is not None:
                # Read in another way than by divisors_of, whose addresses would be kept in registers until here.
                weight = sum_of_block(reduction.divisors, 0, reduction.parts, GROUP)
                total = tl.where(weight == 0, INF - INF, total)
            tl.store(outputs.loss, total.to(tl.float32))
