"""Parts of blended_kl's Triton kernels: what a row's target is, and the mass that it gives to tiles of classes.

What belongs to a row is a scalar where a program works on one, and [ROWS] where it works on several; tiles of classes
are [BLOCK], [LANES, VECTORS, WIDTH] or of ROWS, SEGMENTS and WIDTH. d is a logit less what it is relative to: a maximum
for exponentials, a typical logit for products with mass.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_reduction import INF, divisors_of
from .triton_tiles import load, load_realigned, wide

LOG2E = tl.constexpr(1.4426950408889634)


class Label(NamedTuple):
    """One of a row's labels."""

    y: Any  # int64, 0 where there is none; the row itself with class probabilities
    share: Any  # of the row's class term, float32: 0 where there is none
    hard: Any  # mass at y
    has_soft: Any  # bool: row y of the soft targets counts. Waits for no divisor, so that what it masks is loaded early
    soft: Any  # factor of that row
    shift: Any  # of old logits: what their exponentials are relative to


class Target(NamedTuple):
    """All of a row's target but what the tables hold."""

    used: Any  # bool: not ignored, and nothing is out of range
    bad: Any  # bool: something is out of range
    a: Label
    b: Label  # as a where there is no pair
    smooth: Any  # mass of each class by label smoothing, before class weights
    past_row: Any  # int64, 0 where there is none
    has_past: Any  # bool: that row counts; as Label.has_soft
    past: Any  # factor of that row of past
    past_mass: Any  # the same before what `shift` was rounded by is made up for
    past_shift: Any


class Scale(NamedTuple):
    """z * factor - shift: what exponentials are taken of, or what mass is multiplied by."""

    factor: Any
    shift: Any
    unit: Any  # 1 / factor


@triton.jit
def label_of(target, row, active, C, ignore_index):
    """The label (int64, 0 where there is none), whether there is one, whether it is out of range (bool); as row."""
    y = tl.load(target + row, mask=active, other=0).to(tl.int64)
    kept = active & (y != ignore_index)
    bad = kept & (y.to(tl.uint64) >= C)
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
def scales_of(row, active, settings, reduction):
    """What a row's class term and its past term are multiplied by: float32, 0 where there is no row."""
    scale = tl.where(active, 1.0, 0.0)
    if settings.upstream is not None:
        scale = tl.load(settings.upstream + row * settings.upstream_stride, mask=active, other=0.0).to(tl.float32)
    if reduction.divisors is None:
        return scale, scale
    else:
        weight, count = divisors_of(reduction)
        of_class = scale * tl.where(weight == 0, 0.0, 1.0 / weight)
        of_past = scale * tl.where(count == 0, 0.0, 1.0 / count)
        # 0 times a divisor that is NaN is not.
        return tl.where(active, of_class, 0.0), tl.where(active, of_past, 0.0)


@triton.jit
def shift_of(table, row, counts, scale):
    """Rows of old logits have probabilities exp((z - shift) / T): the shift, float32, of rows that count, and `scale`
    times what makes up for its rounding, which shows at logits far from 0. Of other tables 0 and `scale`."""
    if table.logsumexp is None:
        return scale * 0, scale
    else:
        shift = tl.load(table.logsumexp + row, mask=counts, other=0.0) * table.temperature
        high = shift.to(tl.float32)
        low = (shift - high.to(tl.float64)).to(tl.float32)
        return high, scale * tl.exp2(-low * (LOG2E / table.temperature))


@triton.jit
def one_label(target, row, active, FIRST: tl.constexpr, inputs, scale, C):
    """(Label, the mass that smoothing gives each class, whether there is a label, whether it is out of range)"""
    labels = inputs.labels
    settings = inputs.settings
    y, kept, bad = label_of(target, row, active, C, settings.ignore_index)
    share = share_of(labels.lam, row, kept, FIRST)
    scale = tl.where(kept, scale, 0.0)  # a row without a label has no mass, though scale be NaN
    share_by_weight = weighted(share, labels.weight, y, kept)
    mass = scale * share_by_weight
    hard = mass
    smooth = scale * share
    has_soft, soft = kept, scale * 0
    if inputs.soft.filled is not None:
        alpha = settings.alpha
        if settings.alpha_tensor is not None:
            alpha = tl.load(settings.alpha_tensor).to(tl.float32)
        a = tl.where(tl.load(inputs.soft.filled + y, mask=kept, other=0) != 0, alpha, 0.0)
        has_soft, soft = a * share_by_weight != 0, a * mass
        hard = (1 - a) * mass
        smooth = (1 - a) * smooth
    if settings.label_smoothing is not None:
        hard = (1 - settings.label_smoothing) * hard
        smooth = smooth * (settings.label_smoothing / C)
    shift, soft = shift_of(inputs.soft, y, has_soft, soft)
    return Label(y, share, hard, has_soft, soft, shift), smooth, kept, bad


@triton.jit
def target_of(row, active, inputs, past_rows, reduction, C):
    """The Target of row, int64."""
    labels = inputs.labels
    settings = inputs.settings
    class_scale, past_scale = scales_of(row, active, settings, reduction)
    none = class_scale * 0
    if labels.target is None:
        used, bad = active, row < 0
        soft = class_scale
        smooth = class_scale
        if settings.label_smoothing is not None:
            soft = class_scale * (1 - settings.label_smoothing)
            smooth = class_scale * (settings.label_smoothing / C)
        a = Label(row, none, none, active, soft, none)
        b = a
    else:
        a, smooth, used, bad = one_label(labels.target, row, active, True, inputs, class_scale, C)
        b = a
        if labels.target_b is not None:
            b, smooth_b, kept_b, bad_b = one_label(labels.target_b, row, active, False, inputs, class_scale, C)
            smooth += smooth_b
            used = used | kept_b
            bad = bad | bad_b
    past_row, has_past, past, past_shift = row, active, none, none
    if inputs.past_index is not None:
        past_row, has_past, past_bad = past_row_of(inputs.past_index, inputs.past.filled, past_rows, row, used & ~bad)
        bad = bad | past_bad
        past_weight = settings.past_weight
        if settings.past_weight_tensor is not None:
            past_weight = tl.load(settings.past_weight_tensor).to(tl.float32)
        past_weight = tl.where(has_past, past_weight, 0.0)
        has_past = past_weight != 0
        past = tl.where(has_past, past_scale * (past_weight * settings.temperature), 0.0)
    past_mass = past
    past_shift, past = shift_of(inputs.past, past_row, has_past, past)
    return Target(used & ~bad, bad, a, b, smooth, past_row, has_past, past, past_mass, past_shift)


@triton.jit
def factor_of(PAST: tl.constexpr, POWER: tl.constexpr):
    """What brings logits to units of log2, over T with PAST; 1 where exponentials need two powers."""
    if not PAST:
        return LOG2E
    elif POWER > 0:
        return LOG2E / POWER  # the temperature, of which the compiler knows the inverse
    else:
        return 1.0


@triton.jit
def scale_of(top, PAST: tl.constexpr, POWER: tl.constexpr):
    """The Scale of exponentials relative to the logit top. The rounding of its shift is in all of a row's exponentials
    alike. Logits so far from 0 that it could take them out of range get the factor 1, which rounds nothing: those
    below top have exponentials of at most 2^-64 all the same."""
    FAR: tl.constexpr = 2.0**29 if PAST and POWER > 1 else 2.0**30  # a rounding by 2^4 or 2^5, to the power of POWER
    factor = tl.zeros_like(top) + factor_of(PAST, POWER)
    if PAST and POWER == 0:
        return Scale(factor, top, factor)
    else:
        unit = 1 / factor_of(PAST, POWER)
        far = tl.abs(top * factor) >= FAR
        factor, unit = tl.where(far, 1.0, factor), tl.where(far, 1.0, unit)
        return Scale(factor, top * factor, unit)


@triton.jit
def scaled(z, scale):
    """z * factor - shift, rounded once: float32, as z."""
    return tl.fma(z, wide(scale.factor, z), -wide(scale.shift, z))


@triton.jit
def below(z, top, scale):
    """z less the logit top, which the Scale is relative to: float32, as z, and 0 at top."""
    return (scaled(z, scale) - wide(scaled(top, scale), z)) * wide(scale.unit, z)


@triton.jit
def exponentials(x, temperature, PAST: tl.constexpr, POWER: tl.constexpr):
    """exp(z) and, with PAST, exp(z / T) of x, a logit by factor_of: float32, as x. POWER is T where one exponential
    gives both, else 0."""
    if PAST and POWER == 0:
        return tl.exp2(x * LOG2E), tl.exp2(x * (LOG2E / temperature))
    else:
        e = tl.exp2(x)
        p = e
        if PAST:
            for _ in tl.static_range(POWER - 1):
                p = p * e
        return p, e


@triton.jit
def probabilities(
    table, row, counts, shift, at, vectors, C, EXACT: tl.constexpr, ALIGN: tl.constexpr, POLICY: tl.constexpr
):
    """Of the classes `at` in dense rows or rows of old logits, 0 in rows that do not count: float32, as at."""
    other: tl.constexpr = 0.0 if table.logsumexp is None else -INF
    if vectors is None:
        value = load(table.data + row * (table.stride // ALIGN * ALIGN), at, C, counts, other, EXACT, POLICY)
    else:
        value = load_realigned(table.data, row * table.stride, at, vectors, C, counts, other, POLICY)
    if table.logsumexp is None:
        return value
    else:
        return tl.exp2((value - wide(shift, at)) * (LOG2E / table.temperature))


@triton.jit
def masses_at(
    inputs, target, at, vectors, C, PAST: tl.constexpr, EXACT: tl.constexpr, ALIGN: tl.constexpr, POLICY: tl.constexpr
):
    """Of the classes `at` (those of `vectors`, or None), float32 as at, or the constant 0 where there is no such mass:
    mass of the class term from dense tables and smoothing by class weights, and probabilities of the past, whose factor
    is target.past."""
    labels = inputs.labels
    soft = inputs.soft
    mass, past = 0.0, 0.0
    if inputs.class_tile is not None:
        if soft.data is not None and soft.indices is None:
            a = target.a
            mass = probabilities(soft, a.y, a.has_soft, a.shift, at, vectors, C, EXACT, ALIGN, POLICY)
            mass = wide(a.soft, at) * mass
            if labels.target_b is not None:
                b = target.b
                mass_b = probabilities(soft, b.y, b.has_soft, b.shift, at, vectors, C, EXACT, ALIGN, POLICY)
                mass += wide(b.soft, at) * mass_b
        if labels.weight is not None and (labels.target is None or inputs.settings.label_smoothing is not None):
            weight = tl.load(labels.weight + at, mask=at < C, other=0.0).to(tl.float32)
            if labels.target is not None:
                mass += wide(target.smooth, at) * weight
            elif inputs.settings.label_smoothing is not None:
                mass = (mass + wide(target.smooth, at)) * weight
            else:
                mass = mass * weight
    if PAST and inputs.past_tile is not None:
        past = probabilities(
            inputs.past, target.past_row, target.has_past, target.past_shift, at, vectors, C, EXACT, ALIGN, POLICY
        )  # fmt: skip
    return mass, past


@triton.jit
def total_mass(inputs, target, mass, past, at, PAST: tl.constexpr):
    """Of both terms, from what masses_at returns."""
    if not (PAST and inputs.past_tile is not None):
        return mass
    elif inputs.class_tile is not None:
        return mass + wide(target.past, at) * past
    else:
        return wide(target.past, at) * past
