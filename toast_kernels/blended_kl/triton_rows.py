"""What blended_kl's Triton kernels do for a row between its two passes: loss, statistics, sparse classes, rare cases.

Rare cases (a logit of -inf, a NaN) are found by sums over the row and read the row again, so that they cost nothing a
class elsewhere. What belongs to a row is a scalar, or [ROWS] where nothing else is said.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_lists import add5, list_terms
from .triton_parts import Scale, below, exponentials, masses_at, scaled, total_mass
from .triton_reduction import INF
from .triton_tiles import load, wide

# Classes of a turn of a loop that is rarely taken. With 256 its registers spilled in rows of 1000, which a warp has.
READ_AGAIN = tl.constexpr(128)


class Sums(NamedTuple):
    """Over a row's classes, float32; 0 where there is no such term."""

    p: Any  # exp(z), by the Scale of exponentials
    e: Any  # exp(z / T)
    mass: Any  # of the class term, from tiles
    past: Any  # probabilities of the past, from tiles
    dot: Any  # all mass from tiles times d, a logit by another Scale
    d: Any


class Outside(NamedTuple):
    """The mass that is not in tiles."""

    mass: Any  # of the class term
    past: Any  # of the past term
    dot: Any  # all of it times d
    lost: Any  # bool: there is some on a logit of -inf (hard mass left out)
    entropy: Any  # what logits of -inf add to the past's, times its factor
    masked: Any  # int32: how many logits are -inf, counted where there are lists
    uniform: Any  # what each class has, if no list names it
    tail_a: Any  # and each list's part of that
    tail_b: Any
    tail_past: Any


class Gradient(NamedTuple):
    """coef_p p + coef_e e - mass, with exponentials by this Scale."""

    scale: Scale
    coef_p: Any
    coef_e: Any
    outside: Outside
    z_a: Any  # the logits at labels
    z_b: Any


@triton.jit
def add2(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def add6(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5


@triton.jit
def sums_of(inputs, p, e, mass, past, dot, d, PAST: tl.constexpr):
    """Sums of tiles [BLOCK], or of what the lanes have, [LANES]; with one exchange between warps for all of them."""
    E: tl.constexpr = 1 if PAST else 0
    MASS: tl.constexpr = 1 if inputs.class_tile is not None else 0
    HAS_PAST: tl.constexpr = 1 if PAST and inputs.past_tile is not None else 0
    DOT: tl.constexpr = 1 if MASS + HAS_PAST > 0 else 0
    D: tl.constexpr = 1 if inputs.uniform is not None else 0
    items = (p,)  # Triton has no (*items, e)
    if PAST:
        items = items + (e,)  # noqa: RUF005
    if MASS:
        items = items + (mass,)  # noqa: RUF005
    if HAS_PAST:
        items = items + (past,)  # noqa: RUF005
    if DOT:
        items = items + (dot,)  # noqa: RUF005
    if D:
        items = items + (d,)  # noqa: RUF005
    if len(items) == 1:
        sums = (tl.sum(p, 0),)
    elif len(items) == 2:
        sums = tl.reduce(items, 0, add2)
    elif len(items) == 3:
        sums = tl.reduce(items, 0, add3)
    elif len(items) == 4:
        sums = tl.reduce(items, 0, add4)
    elif len(items) == 5:
        sums = tl.reduce(items, 0, add5)
    else:
        sums = tl.reduce(items, 0, add6)
    none = tl.zeros([], tl.float32)
    return Sums(
        sums[0], sums[1] if PAST else none, sums[1 + E] if MASS else none, sums[1 + E + MASS] if HAS_PAST else none,
        sums[1 + E + MASS + HAS_PAST] if DOT else none, sums[1 + E + MASS + HAS_PAST + DOT] if D else none,
    )  # fmt: skip


@triton.jit
def dot_again(inputs, target, logits_row, origin, C, PAST: tl.constexpr, ALIGN: tl.constexpr):
    """Mass from tiles times d, with 0 * -inf = 0."""
    dot = tl.zeros([], tl.float32)
    for start in range(0, C, READ_AGAIN):
        at = start + tl.arange(0, READ_AGAIN)
        mass, past = masses_at(inputs, target, at, None, C, PAST, False, ALIGN, "")
        mass = total_mass(inputs, target, mass, past, at, PAST)
        z = load(logits_row, at, C, None, -INF, False, "")
        dot += tl.sum(tl.where(mass != 0, mass * scaled(z, origin), 0.0), 0)
    return dot


@triton.jit
def without_nan_in_dot(inputs, target, sums, logits_row, origin, C, PAST: tl.constexpr, ALIGN: tl.constexpr):
    """The Sums with a dot that holds no 0 * -inf. (That of a row with a NaN is NaN again.)"""
    if inputs.class_tile is not None or (PAST and inputs.past_tile is not None):
        dot = sums.dot
        if dot != dot:
            dot = dot_again(inputs, target, logits_row, origin, C, PAST, ALIGN)
        return Sums(sums.p, sums.e, sums.mass, sums.past, dot, sums.d)
    else:
        return sums


@triton.jit
def finite_d(logits_row, origin, C):
    """The sum of d where it is not -inf, and the number of the other classes, int32."""
    total, masked = tl.zeros([], tl.float32), tl.zeros([], tl.int32)
    for start in range(0, C, READ_AGAIN):
        at = start + tl.arange(0, READ_AGAIN)
        z = load(logits_row, at, C, None, 0.0, False, "")
        total += tl.sum(tl.where((z == -INF) | (at >= C), 0.0, scaled(z, origin)), 0)
        masked += tl.sum((z == -INF).to(tl.int32), 0)
    return total, masked


@triton.jit
def with_first_nan(argmax, logits_row, C):
    """The first class whose logit is NaN, which PyTorch takes for the largest; argmax if there is none."""
    found = tl.zeros([], tl.int32) + C
    for start in range(0, C, READ_AGAIN):
        at = start + tl.arange(0, READ_AGAIN)
        z = load(logits_row, at, C, None, -INF, False, "")
        found = tl.minimum(found, tl.min(tl.where(z != z, at, C), 0))
    return tl.where(found < C, found, argmax)


@triton.jit
def score_again(soft, row, logits_row, top, scale, log_p, C):
    """The cross-entropy against class probabilities as they are given."""
    score = log_p * 0
    for start in range(0, C, READ_AGAIN):
        at = start + tl.arange(0, READ_AGAIN)
        q = load(soft.data + row * soft.stride, at, C, None, 0.0, False, "")
        z = load(logits_row, at, C, None, -INF, False, "")
        score += tl.sum(tl.where(q != 0, q * (log_p - below(z, top, scale)), 0.0), 0)
    return score


@triton.jit
def outside_of(inputs, target, sums, logits_row, origin, C, PAST: tl.constexpr):
    """Outside, of smoothing and lists."""
    settings = inputs.settings
    none = tl.zeros_like(sums.p)
    mass, past_mass, dot, uniform, tail_a, tail_b, tail_past, entropy = none, none, none, none, none, none, none, none
    lost = none != 0
    PAST_LIST: tl.constexpr = PAST and inputs.past.indices is not None
    sum_d, masked = sums.d, tl.zeros([], tl.int32)
    if inputs.soft.indices is not None or PAST_LIST:  # noqa: SIM102, known when compiled
        if not (tl.abs(sum_d) < INF):
            sum_d, masked = finite_d(logits_row, origin, C)
    if settings.label_smoothing is not None and inputs.labels.weight is None:
        uniform = target.smooth
        mass = uniform * C
        dot = tl.where(uniform != 0, uniform * sum_d, 0.0)
        lost = (uniform != 0) & (masked != 0)
    if inputs.soft.indices is not None:
        a = target.a
        tail_a, add, add_dot, add_lost, _ = list_terms(inputs.soft, a.y, a.soft, logits_row, origin, sum_d, masked, C)
        uniform, mass, dot, lost = uniform + tail_a, mass + add, dot + add_dot, lost | add_lost
        if inputs.labels.target_b is not None:
            b = target.b
            tail_b, add, add_dot, add_lost, _ = list_terms(
                inputs.soft, b.y, b.soft, logits_row, origin, sum_d, masked, C
            )
            uniform, mass, dot, lost = uniform + tail_b, mass + add, dot + add_dot, lost | add_lost
    if PAST_LIST:
        tail_past, past_mass, add_dot, add_lost, entropy = list_terms(
            inputs.past, target.past_row, target.past, logits_row, origin, sum_d, masked, C
        )
        uniform, dot, lost = uniform + tail_past, dot + add_dot, lost | add_lost
    return Outside(mass, past_mass, dot, lost, entropy, masked, uniform, tail_a, tail_b, tail_past)


@triton.jit
def label_terms(label, logits_row, used, top, scale, log_p):
    """The logit at a label, the loss of its hard mass, and its share of the cross-entropy. A row or several."""
    z = tl.load(logits_row + label.y, mask=used, other=0.0).to(tl.float32)
    surprise = log_p - below(z, top, scale)
    loss = tl.where(label.hard != 0, label.hard * surprise, 0.0)
    return z, loss, tl.where(label.share != 0, label.share * surprise, 0.0)


@triton.jit
def finish(inputs, target, sums, logits_row, top, scale, origin, C, PAST: tl.constexpr, POWER: tl.constexpr):
    """The row's loss, its cross-entropy, its logsumexp less the logit top, and the Gradient, of the Sums over its
    classes: p and e by `scale`, which is relative to top, dot and d by `origin`. A row or several."""
    settings = inputs.settings
    outside = outside_of(inputs, target, sums, logits_row, origin, C, PAST)
    p_top, e_top = exponentials(scaled(top, scale), settings.temperature, PAST, POWER)
    log_p = tl.log(sums.p / p_top)  # 0 where top has all, however its exponential was rounded
    class_sum = sums.mass + outside.mass
    past_sum = target.past * sums.past + outside.past
    # Logits of -inf alone have log_p = -inf, and no mass on them is no loss.
    loss = tl.where((class_sum == 0) & (log_p == -INF), 0.0, class_sum * log_p)
    x_top = scaled(top, origin)  # 0 but for the rounding of the Scale's shift, which the dots have too
    tiles, others = sums.mass, outside.mass
    if PAST:
        tiles, others = tiles + target.past * sums.past, others + outside.past
    loss += ((tiles * x_top - sums.dot) + (others * x_top - outside.dot)) * origin.unit
    z_a, z_b = log_p, log_p
    cross_entropy = log_p  # of class probabilities: see score_again
    if inputs.labels.target is not None:
        z_a, a_loss, cross_entropy = label_terms(target.a, logits_row, target.used, top, scale, log_p)
        class_sum += target.a.hard
        loss += a_loss
        if inputs.labels.target_b is not None:
            z_b, b_loss, b_entropy = label_terms(target.b, logits_row, target.used, top, scale, log_p)
            class_sum += target.b.hard
            loss += b_loss
            cross_entropy += b_entropy

    coef_p = class_sum / sums.p
    coef_e = coef_p
    if PAST:
        entropy = tl.load(inputs.past.entropy + target.past_row, mask=target.has_past, other=0.0).to(tl.float32)
        surprise = tl.where(past_sum != 0, past_sum * tl.log(sums.e / e_top), 0.0)  # the logits may all be -inf
        loss += settings.temperature * (surprise - target.past_mass * entropy)
        if inputs.past.indices is not None:
            loss -= settings.temperature * outside.entropy
        coef_e = past_sum / sums.e
    loss += tl.where(outside.lost, INF, 0.0)
    return loss, cross_entropy, log_p, Gradient(scale, coef_p, coef_e, outside, z_a, z_b)


@triton.jit
def gradient_tile(inputs, e, p, mass, gradient, at, PAST: tl.constexpr, POWER: tl.constexpr):
    """The gradient at the classes `at`, whose exponentials are e and p: float32, as at. `mass` is that from tiles."""
    coef_p = wide(gradient.coef_p, at)
    if not PAST:
        value = e * coef_p
    elif POWER == 0:
        value = p * coef_p + e * wide(gradient.coef_e, at)
    elif POWER == 1:
        value = e * (coef_p + wide(gradient.coef_e, at))
    else:  # of e alone, so that p is not kept
        power = e
        for _ in tl.static_range(POWER - 2):
            power = power * e
        value = e * (power * coef_p + wide(gradient.coef_e, at))
    if inputs.class_tile is not None or (PAST and inputs.past_tile is not None):
        value = value - mass
    if inputs.uniform is not None:
        value = value - wide(gradient.outside.uniform, at)
    return value
