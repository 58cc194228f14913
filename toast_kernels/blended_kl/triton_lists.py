"""Top-k rows in blended_kl's Triton kernels. What belongs to a row is a scalar."""

import triton
import triton.language as tl

from ..triton_common import INF
from .triton_parts import scaled

LIST_BLOCK = tl.constexpr(64)  # listed classes of a turn


@triton.jit
def add5(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


@triton.jit
def list_block(table, row, scale, start):
    """Classes, probabilities and mask of the entries of a top-k row from `start` on, none where scale is 0:
    [LIST_BLOCK]."""
    k = start + tl.arange(0, LIST_BLOCK)
    mask = k < tl.where(scale != 0, table.width, 0)
    at = tl.load(table.indices + row * table.width + k, mask=mask, other=0)
    return at, tl.load(table.data + row * table.stride + k, mask=mask, other=0.0).to(tl.float32), mask


@triton.jit
def list_terms(table, row, scale, logits_row, origin, sum_d, masked, C):
    """Of `scale` times a top-k row: the tail (mass of each class that it does not list and whose logit is not -inf),
    all its mass, the dot of that with d, whether there is mass on a logit of -inf, and what logits of -inf add to the
    row's entropy. sum_d, masked: as finite_d has it."""
    listed, dot, listed_d, listed_masked, lost = scale * 0, scale * 0, scale * 0, scale * 0, scale * 0
    for start in range(0, table.width, LIST_BLOCK):
        at, value, mask = list_block(table, row, scale, start)
        z = tl.load(logits_row + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask & (z != -INF), scaled(z, origin), 0.0)
        on_masked = tl.where(mask & (z == -INF), 1.0, 0.0)
        add_listed, add_dot, add_d, add_masked, add_lost = tl.reduce(
            (value, value * d, d, on_masked, tl.where(value != 0, on_masked, 0.0)), 0, add5
        )
        listed += add_listed
        dot += add_dot
        listed_d += add_d
        listed_masked += add_masked
        lost += add_lost
    rest = tl.maximum(1.0 - listed, 0.0)
    unlisted = C - table.width
    sharing = unlisted - (masked - listed_masked.to(tl.int32))
    tail = tl.where(sharing > 0, rest / tl.maximum(sharing, 1), 0.0)
    dot += tail * (sum_d - listed_d)
    more = tl.where(sharing > 0, sharing.to(tl.float32), rest) / tl.maximum(unlisted, 1)
    more = tl.where((sharing < unlisted) & (rest != 0), rest * tl.log(more), 0.0)
    return scale * tail, scale * (listed + tail * sharing), scale * dot, (scale != 0) & (lost != 0), scale * more


@triton.jit
def listed_beyond_tail(table, row, scale, tail, at, mask):
    """`scale` times the probabilities of the classes `at` [LIST_BLOCK] in a top-k row, less its tail, 0 where one is
    not listed. By binary search: where there are two lists only."""
    first = table.indices + row * table.width
    place = at * 0
    step = tl.zeros([], tl.int32) + table.search_step
    mask = mask & (at < tl.where(scale != 0, 0x7FFFFFFF, 0))
    while step > 0:
        probe = place + step
        inside = mask & (probe <= table.width)
        place = tl.where(inside & (tl.load(first + probe - 1, mask=inside, other=0) < at), probe, place)
        step = step // 2
    inside = mask & (place < table.width)
    found = inside & (tl.load(first + place, mask=inside, other=-1) == at)
    value = tl.load(table.data + row * table.stride + place, mask=found, other=0.0).to(tl.float32)
    return tl.where(found, scale * value - tail, 0.0)
