"""Parts of blended_kl's Triton kernels: a row's labels and past, the mass they give to tiles of classes, sums.

What belongs to a row is [ROWS, 1], and so broadcasts over tiles of classes.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))
LIST_BLOCK = tl.constexpr(64)  # listed classes of a turn


class Labels(NamedTuple):
    target: Any  # [N] int64; None with class probabilities
    target_b: Any  # [N] int64 or None
    lam: Any  # [N] or None
    weight: Any  # [C] or None


class Table(NamedTuple):
    """problem.Table and its layout; without a table its tensors are None. With class probabilities row i of the soft
    targets is the target of row i."""

    stride: int
    width: int  # C | k
    data: Any  # values [R, C] or [R, k]; a tuple of Triton has an attribute `values` of its own
    indices: Any  # [R, k] int32 or None
    logsumexp: Any  # [R] float64 or None
    entropy: Any  # [R] or None
    filled: Any  # [R] bool or None
    temperature: float  # of the logits


class Masses(NamedTuple):
    """What gives mass to a row's classes, each [ROWS, 1]: rows (int64) of the tables, and float32 factors of them."""

    row_a: Any  # of the soft targets: the label
    scale_a: Any
    row_b: Any  # the second label of a pair
    scale_b: Any
    smooth: Any  # mass of each class by label smoothing, before class weights
    past_row: Any
    past_scale: Any


@triton.jit
def row_sum(x):
    """[ROWS, 1] in the dtype of x [ROWS, BLOCK]."""
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def label_of(target, row, active, C, ignore_index):
    """The label (int64, 0 where there is none), whether there is one, whether it is out of range (bool); as row."""
    y = tl.load(target + row, mask=active, other=0).to(tl.int64)
    kept = active & (y != ignore_index)
    bad = kept & ((y < 0) | (y >= C))
    kept = kept & ~bad
    return tl.where(kept, y, 0), kept, bad


@triton.jit
def share_of(lam, row, kept, FIRST: tl.constexpr):
    """The label's share of its row's class term, 0 without a label: float32, as row."""
    share = tl.where(kept, 1.0, 0.0)
    if lam is not None:
        first = tl.load(lam + row, mask=kept, other=0.0).to(tl.float32)
        share = tl.where(kept, first if FIRST else 1.0 - first, 0.0)
    return share


@triton.jit
def weighted(share, weight, y, kept):
    """share times the label's weight, with 0 * inf = 0: float32, as share."""
    if weight is None:
        return share
    else:
        return tl.where(share != 0, share * tl.load(weight + y, mask=kept, other=0.0).to(tl.float32), 0.0)


@triton.jit
def past_row_of(past_index, past_filled, past_rows, row, used):
    """The row of past (int64, 0 where there is none), whether there is one, whether past_index is out of range (bool);
    as row."""
    r = tl.load(past_index + row, mask=used, other=-1).to(tl.int64)
    bad = used & ((r < -1) | (r >= past_rows))
    has_past = used & (r >= 0) & ~bad
    r = tl.where(has_past, r, 0)
    return r, has_past & (tl.load(past_filled + r, mask=has_past, other=0) != 0), bad


@triton.jit
def exponentials(d, inverse_t, PAST: tl.constexpr, POWER: tl.constexpr):
    """exp(d) and, with PAST, exp(d / T): float32, as d. POWER is T where one exponential gives both, else 0."""
    if PAST:
        e = tl.exp2(d * (inverse_t * LOG2E))
        if POWER == 0:
            p = tl.exp2(d * LOG2E)
        else:
            p = e
            for _ in tl.static_range(POWER - 1):
                p = p * e
    else:
        p = tl.exp2(d * LOG2E)
        e = p
    return p, e


@triton.jit
def probabilities_at(table, row, at, mask, row_mask, ALIGN: tl.constexpr):
    """Of the classes `at` in dense or logits rows, 0 where either mask is false: float32 [ROWS, BLOCK]."""
    mask = mask & row_mask
    values = table.data + row * (table.stride // ALIGN * ALIGN)
    if table.logsumexp is None:
        return tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
    else:
        z = tl.load(values + at, mask=mask, other=-INF).to(tl.float32)
        shift = tl.load(table.logsumexp + row, mask=row_mask, other=0.0) * table.temperature
        high = shift.to(tl.float32)  # in two terms: rounded to one, it would show at logits far from 0
        low = (shift - high.to(tl.float64)).to(tl.float32)
        return tl.exp2(((z - high) - low) * (LOG2E / table.temperature))


@triton.jit
def listed_mass(table, row, scale, tail, at, mask, LIST_BITS: tl.constexpr):
    """`scale` times the probabilities of the classes `at` in top-k rows, `tail` where one is not listed: float32
    [ROWS, BLOCK]. By binary search."""
    mask = mask & (scale != 0)
    first = table.indices + row * table.width
    place = at.to(tl.int32) * 0
    for bit in tl.static_range(LIST_BITS):
        probe = place + (1 << (LIST_BITS - 1 - bit))
        inside = mask & (probe <= table.width)
        place = tl.where(inside & (tl.load(first + probe - 1, mask=inside, other=0) < at), probe, place)
    inside = mask & (place < table.width)
    found = inside & (tl.load(first + place, mask=inside, other=-1) == at)
    value = tl.load(table.data + row * table.stride + place, mask=found, other=0.0).to(tl.float32)
    return tl.where(found, scale * value, tail)


@triton.jit
def list_statistics(table, row, scale, logits_row, origin, sum_d, masked, C):
    """Of `scale` times a top-k row, by rows: the tail (mass of each class it does not list), all its mass, the dot of
    that with the logits less origin (float32 [ROWS, 1]), and whether there is mass on a logit of -inf (bool [ROWS, 1]).
    sum_d, masked: the sum of the row's finite logits, less origin, and the number of its other ones."""
    listed, dot, listed_d, listed_masked, lost = sum_d * 0, sum_d * 0, sum_d * 0, sum_d * 0, sum_d * 0
    for start in range(0, table.width, LIST_BLOCK):
        k = start + tl.arange(0, LIST_BLOCK)[None, :]
        mask = (k < table.width) & (scale != 0)
        at = tl.load(table.indices + row * table.width + k, mask=mask, other=0)
        value = tl.load(table.data + row * table.stride + k, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(logits_row + at, mask=mask, other=0.0).to(tl.float32)
        finite = mask & (z != -INF)
        infinite = mask & (z == -INF)
        listed += row_sum(value)
        dot += row_sum(tl.where(finite, value * (z - origin), 0.0))
        listed_d += row_sum(tl.where(finite, z - origin, 0.0))
        listed_masked += row_sum(tl.where(infinite, 1.0, 0.0))
        lost += row_sum(tl.where(infinite & (value != 0), 1.0, 0.0))
    tail = tl.maximum(1.0 - listed, 0.0) / tl.maximum(C - table.width, 1)
    dot += tail * (sum_d - listed_d)
    lost += tl.where((tail != 0) & (masked > listed_masked), 1.0, 0.0)
    return scale * tail, scale * (listed + tail * (C - table.width)), scale * dot, (scale != 0) & (lost != 0)


@triton.jit
def class_masses(y, kept, share, weight, soft_filled, alpha, label_smoothing, scale, C):
    """A label's hard mass, the factor of its soft target, and the mass that smoothing gives each class: float32
    [ROWS, 1]."""
    if soft_filled is None:
        a = 0.0
    else:
        a = tl.where(tl.load(soft_filled + y, mask=kept, other=0) != 0, alpha, 0.0)
    mass = scale * weighted(share, weight, y, kept)
    return (1 - a) * (1 - label_smoothing) * mass, a * mass, scale * share * (1 - a) * (label_smoothing / C)


@triton.jit
def masses_at(at, mask, masses, labels, soft, past, WEIGHTED: tl.constexpr, ALIGN: tl.constexpr):
    """Mass of the class term and of the past term at the classes `at`, from dense rows and (WEIGHTED) from smoothing by
    class weights: float32 [ROWS, BLOCK], or the constant 0 for an absent term."""
    DENSE_SOFT: tl.constexpr = soft.data is not None and soft.indices is None
    DENSE_PAST: tl.constexpr = past.data is not None and past.indices is None
    class_mass = 0.0
    past_mass = 0.0
    if DENSE_SOFT:
        class_mass = masses.scale_a * probabilities_at(soft, masses.row_a, at, mask, masses.scale_a != 0, ALIGN)
        if labels.target_b is not None:
            class_mass += masses.scale_b * probabilities_at(soft, masses.row_b, at, mask, masses.scale_b != 0, ALIGN)
    if WEIGHTED:
        w = tl.load(labels.weight + at, mask=mask, other=0.0).to(tl.float32)
        if labels.target is None:
            class_mass = (class_mass + masses.smooth) * w
        elif DENSE_SOFT:
            class_mass += masses.smooth * w
        else:
            class_mass = masses.smooth * w
    if DENSE_PAST:
        past_mass = masses.past_scale * probabilities_at(past, masses.past_row, at, mask, masses.past_scale != 0, ALIGN)
    return class_mass, past_mass


@triton.jit
def total_mass(class_mass, past_mass, CLASS_TILE: tl.constexpr, DENSE_PAST: tl.constexpr):
    """Of both terms: float32 [ROWS, BLOCK], or the constant 0."""
    if CLASS_TILE and DENSE_PAST:
        return class_mass + past_mass
    elif CLASS_TILE:
        return class_mass
    else:
        return past_mass


@triton.jit
def tile_sums(
    d, p, e, class_mass, past_mass, mask,
    PAST: tl.constexpr, CLASS_TILE: tl.constexpr, DENSE_PAST: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """By rows, float32 [ROWS, 1]: the sums of p, of e and of either mass, all mass times d, and with UNIFORM the sum of
    the finite d and the number of the others."""
    sum_p = row_sum(p)
    zero = sum_p * 0
    sum_e, class_sum, past_sum, dot, sum_d, masked = zero, zero, zero, zero, zero, zero
    if PAST:
        sum_e = row_sum(e)
    if CLASS_TILE:
        class_sum = row_sum(class_mass)
    if DENSE_PAST:
        past_sum = row_sum(past_mass)
    if CLASS_TILE or DENSE_PAST:
        mass = total_mass(class_mass, past_mass, CLASS_TILE, DENSE_PAST)
        dot = row_sum(mass * tl.where(mass != 0, d, 0.0))  # 0 * -inf = 0
    if UNIFORM:
        sum_d = row_sum(tl.where(d > -INF, d, 0.0))
        masked = row_sum(tl.where(mask & (d == -INF), 1.0, 0.0))
    return sum_p, sum_e, class_sum, past_sum, dot, sum_d, masked


@triton.jit
def gradient_tile(p, e, coef_p, coef_e, mass, uniform, used, PAST: tl.constexpr, UNIFORM: tl.constexpr):
    """coef_p p + coef_e e - mass - uniform, 0 in ignored rows whatever their logits hold: float32, as p."""
    g = coef_p * p - mass
    if PAST:
        g += coef_e * e
    if UNIFORM:
        g -= uniform
    return tl.where(used, g, 0.0)


@triton.jit
def increment(counter):
    """Atomic increment (acq_rel) by one program; returns the new value, int32. A program that reads it later sees what
    this one has stored."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel") + 1


@triton.jit
def sum_of_block(values, start, count, BLOCK: tl.constexpr):
    """The sum, float64, of values[start:min(start + BLOCK, count)], which other programs have stored."""
    i = start + tl.arange(0, BLOCK)
    return tl.sum(tl.load(values + i, mask=i < count, other=0.0, cache_modifier=".cg").to(tl.float64), 0)


@triton.jit
def first_class(at, condition, C):
    """The first class for which `condition` [ROWS, BLOCK] holds, C if there is none: int32 [ROWS, 1]."""
    return tl.min(tl.where(condition, at, C), 1, keep_dims=True)
