"""Parts of blended_kl's Triton kernels: a row's labels and past, the mass they give to tiles of classes, sums.

What belongs to a row is [ROWS, 1], and so broadcasts over tiles of classes.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))
LIST_BLOCK = tl.constexpr(64)  # listed classes worked on at once


@triton.jit
def row_sum(x):
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def label_of(target, row, active, C, ignore_index):
    """The label (0 where there is none), whether there is one, and whether it is out of range."""
    y = tl.load(target + row, mask=active, other=0).to(tl.int64)
    kept = active & (y != ignore_index)
    bad = kept & ((y < 0) | (y >= C))
    kept = kept & ~bad
    return tl.where(kept, y, 0), kept, bad


@triton.jit
def share_of(lam, row, kept, FIRST: tl.constexpr):
    """The label's share of its row's class term; 0 without a label."""
    share = tl.where(kept, 1.0, 0.0)
    if lam is not None:
        first = tl.load(lam + row, mask=kept, other=0.0).to(tl.float32)
        share = tl.where(kept, first if FIRST else 1.0 - first, 0.0)
    return share


@triton.jit
def weighted(share, weight, y, kept):
    """share times the label's weight; 0 * inf = 0."""
    if weight is None:
        return share
    else:
        return tl.where(share != 0, share * tl.load(weight + y, mask=kept, other=0.0).to(tl.float32), 0.0)


@triton.jit
def past_row_of(past_index, past_filled, past_rows, row, used):
    """The row of past (0 where there is none), whether there is one, and whether past_index is out of range."""
    r = tl.load(past_index + row, mask=used, other=-1).to(tl.int64)
    bad = used & ((r < -1) | (r >= past_rows))
    has_past = used & (r >= 0) & ~bad
    r = tl.where(has_past, r, 0)
    return r, has_past & (tl.load(past_filled + r, mask=has_past, other=0) != 0), bad


@triton.jit
def exponentials(d, inverse_t, PAST: tl.constexpr, POWER: tl.constexpr):
    """exp(d) and exp(d / T). Where T is a small integer POWER is T, and one exponential gives both."""
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
def dense_share(values, logsumexp, temperature, row, stride, at, mask, meant):
    """Shares of the classes `at` in dense or logits rows; 0 where masked and in rows that are not meant."""
    mask = mask & meant
    if logsumexp is None:
        return tl.load(values + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    else:
        z = tl.load(values + row * stride + at, mask=mask, other=-INF).to(tl.float32)
        shift = tl.load(logsumexp + row, mask=meant, other=0.0) * temperature
        high = shift.to(tl.float32)  # in two parts: rounded to one, it would show at logits far from 0
        low = (shift - high.to(tl.float64)).to(tl.float32)
        return tl.exp2(((z - high) - low) * (LOG2E / temperature))


@triton.jit
def listed_share(values, indices, width, row, stride, at, mask, scale, rest, LIST_BITS: tl.constexpr):
    """`scale` times the shares of the classes `at` in top-k rows, by binary search; `rest` where one is not listed."""
    mask = mask & (scale != 0)
    first = indices + row * width
    place = at.to(tl.int32) * 0
    for bit in tl.static_range(LIST_BITS):
        probe = place + (1 << (LIST_BITS - 1 - bit))
        inside = mask & (probe <= width)
        place = tl.where(inside & (tl.load(first + probe - 1, mask=inside, other=0) < at), probe, place)
    inside = mask & (place < width)
    found = inside & (tl.load(first + place, mask=inside, other=-1) == at)
    value = tl.load(values + row * stride + place, mask=found, other=0.0).to(tl.float32)
    return tl.where(found, scale * value, rest)


@triton.jit
def list_statistics(values, indices, width, row, stride, scale, logits_row, origin, sum_d, masked, C):
    """Of `scale` times a top-k row: the mass of each class it does not list, all its mass, the dot of that with the
    logits less origin, and whether there is mass on a logit of -inf. sum_d, masked: sum over the row's finite logits,
    less origin, and the number of its other ones."""
    listed, dot, listed_d, listed_masked, lost = sum_d * 0, sum_d * 0, sum_d * 0, sum_d * 0, sum_d * 0
    for start in range(0, width, LIST_BLOCK):
        k = start + tl.arange(0, LIST_BLOCK)[None, :]
        mask = (k < width) & (scale != 0)
        at = tl.load(indices + row * width + k, mask=mask, other=0)
        value = tl.load(values + row * stride + k, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(logits_row + at, mask=mask, other=0.0).to(tl.float32)
        finite = mask & (z != -INF)
        infinite = mask & (z == -INF)
        listed += row_sum(value)
        dot += row_sum(tl.where(finite, value * (z - origin), 0.0))
        listed_d += row_sum(tl.where(finite, z - origin, 0.0))
        listed_masked += row_sum(tl.where(infinite, 1.0, 0.0))
        lost += row_sum(tl.where(infinite & (value != 0), 1.0, 0.0))
    rest = tl.maximum(1.0 - listed, 0.0) / tl.maximum(C - width, 1)
    dot += rest * (sum_d - listed_d)
    lost += tl.where((rest != 0) & (masked > listed_masked), 1.0, 0.0)
    return scale * rest, scale * (listed + rest * (C - width)), scale * dot, (scale != 0) & (lost != 0)


@triton.jit
def class_masses(y, kept, share, weight, soft_filled, alpha, label_smoothing, scale, C):
    """A label's hard mass, the factor of its soft target, and the mass that smoothing gives each class."""
    if soft_filled is None:
        a = 0.0
    else:
        a = tl.where(tl.load(soft_filled + y, mask=kept, other=0) != 0, alpha, 0.0)
    mass = scale * weighted(share, weight, y, kept)
    return (1 - a) * (1 - label_smoothing) * mass, a * mass, scale * share * (1 - a) * (label_smoothing / C)


@triton.jit
def masses_at(
    at, mask, row, y_a, soft_a, y_b, soft_b, smooth, weight, soft_values, soft_logsumexp, soft_temperature, soft_stride,
    past_row, past_scale, past_values, past_logsumexp, temperature, past_stride,
    PROBABILITIES: tl.constexpr, PAIRS: tl.constexpr, DENSE_SOFT: tl.constexpr, WEIGHTED: tl.constexpr,
    DENSE_PAST: tl.constexpr,
):  # fmt: skip
    """The mass at the classes `at` of the class term and of the past term, as far as it lies in tiles: of dense rows,
    and of smoothing by class weights. What there is none of is a plain 0."""
    class_mass = 0.0
    past_mass = 0.0
    if PROBABILITIES:
        class_mass = soft_a * dense_share(soft_values, None, None, row, soft_stride, at, mask, soft_a != 0)
    elif DENSE_SOFT:
        class_mass = soft_a * dense_share(
            soft_values, soft_logsumexp, soft_temperature, y_a, soft_stride, at, mask, soft_a != 0
        )
        if PAIRS:
            class_mass += soft_b * dense_share(
                soft_values, soft_logsumexp, soft_temperature, y_b, soft_stride, at, mask, soft_b != 0
            )
    if WEIGHTED:
        w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
        if PROBABILITIES:
            class_mass = (class_mass + smooth) * w
        elif DENSE_SOFT:
            class_mass += smooth * w
        else:
            class_mass = smooth * w
    if DENSE_PAST:
        past_mass = past_scale * dense_share(
            past_values, past_logsumexp, temperature, past_row, past_stride, at, mask, past_scale != 0
        )
    return class_mass, past_mass


@triton.jit
def sum_of_masses(class_mass, past_mass, CLASS_TILE: tl.constexpr, DENSE_PAST: tl.constexpr):
    if CLASS_TILE and DENSE_PAST:
        return class_mass + past_mass
    elif CLASS_TILE:
        return class_mass
    else:
        return past_mass


@triton.jit
def tile_sums(
    d, p, e, class_mass, past_mass, mask,
    PAST: tl.constexpr, CLASS_TILE: tl.constexpr, DENSE_PAST: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """By rows: the sums of p, of e and of either mass, all mass times d, and with EVEN the sum of the finite d and the
    number of the others."""
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
        mass = sum_of_masses(class_mass, past_mass, CLASS_TILE, DENSE_PAST)
        dot = row_sum(mass * tl.where(mass != 0, d, 0.0))  # 0 * -inf = 0
    if EVEN:
        sum_d = row_sum(tl.where(d > -INF, d, 0.0))
        masked = row_sum(tl.where(mask & (d == -INF), 1.0, 0.0))
    return sum_p, sum_e, class_sum, past_sum, dot, sum_d, masked


@triton.jit
def gradient_tile(p, e, of_p, of_e, mass, even, used, PAST: tl.constexpr, EVEN: tl.constexpr):
    g = of_p * p - mass
    if PAST:
        g += of_e * e
    if EVEN:
        g -= even
    return tl.where(used, g, 0.0)  # whatever the logits of an ignored row hold


@triton.jit
def one_more(counter):
    """The counter after this program is counted too. What it stored before, the programs that count later can read."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel") + 1


@triton.jit
def sum_of(values, start, count, BLOCK: tl.constexpr):
    """In float64, of the next BLOCK values, that other programs have stored."""
    i = start + tl.arange(0, BLOCK)
    return tl.sum(tl.load(values + i, mask=i < count, other=0.0, cache_modifier=".cg").to(tl.float64), 0)


@triton.jit
def first_of(at, where, C):
    """The first class for which `where` holds, by rows; C if there is none."""
    return tl.min(tl.where(where, at, C), 1, keep_dims=True)
