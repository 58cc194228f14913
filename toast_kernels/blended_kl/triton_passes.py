"""A row's two passes in blended_kl's Triton kernels: held_row keeps the row in registers between them, long_row reads
it twice. triton_rows.py has what happens between the passes."""

import triton
import triton.language as tl

from .triton_parts import Scale, exponentials, factor_of, masses_at, scale_of, scaled, total_mass
from .triton_reduction import INF
from .triton_rows import finish, gradient_tile, score_again, sums_of, with_first_nan, without_nan_in_dot
from .triton_sparse import label_gradients, sparse_gradient, store_labels, store_lists
from .triton_tiles import (
    Vectors,
    across,
    along,
    block_of,
    inside,
    maxima_along,
    store_block,
    sums_along,
    there,
    wide,
    widened,
)


@triton.jit
def store_statistics(inputs, target, sums, outputs, row, logits_row, N, C, cross_entropy, top, scale, log_p, argmax):
    """Of one row."""
    if sums.p != sums.p:
        argmax = with_first_nan(argmax, logits_row, C)
    if inputs.labels.target is None:
        cross_entropy = score_again(inputs.soft, target.a.y, logits_row, top, scale, log_p, C)
    tl.store(outputs.stats + row, cross_entropy)
    tl.store(outputs.stats + N + row, top + log_p)
    tl.store(outputs.argmax + row, argmax.to(tl.int64))


@triton.jit
def held_logits(logits_row, C, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK] as they are, -inf beyond the last."""
    at = tl.arange(0, BLOCK)
    return tl.load(logits_row + at, mask=there(at, C, FULL), other=-INF)


@triton.jit
def held_row(
    inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
    PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of a row of at most BLOCK classes, `held`; its gradient and statistics are stored."""
    STATS: tl.constexpr = outputs.stats is not None
    settings = inputs.settings
    at = tl.arange(0, BLOCK)
    z = widened(held)
    mass, past = masses_at(inputs, target, at, None, C, PAST, FULL == BLOCK, ALIGN, "")
    highest = tl.max(z, 0)
    top = tl.where(highest == -INF, 0.0, highest)
    scale = scale_of(top, PAST, POWER)
    x = scaled(z, scale)
    p, e = exponentials(x, settings.temperature, PAST, POWER)
    d = tl.where(there(at, C, FULL), x, 0.0)
    all_mass = total_mass(inputs, target, mass, past, at, PAST)
    sums = sums_of(inputs, p, e, mass, past, all_mass * d, d, PAST)
    if STATS:
        argmax = tl.min(tl.where(z == highest, at, C), 0)
    sums = without_nan_in_dot(inputs, target, sums, logits_row, scale, C, PAST, ALIGN)
    loss, cross_entropy, log_p, gradient = finish(inputs, target, sums, logits_row, top, scale, scale, C, PAST, POWER)
    if STATS:
        store_statistics(inputs, target, sums, outputs, row, logits_row, N, C, cross_entropy, top, scale, log_p, argmax)
    if outputs.gradient is not None:
        at_a, at_b = label_gradients(inputs, target, gradient, C, PAST, POWER, ALIGN)
        g = gradient_tile(inputs, e, p, all_mass, gradient, at, PAST, POWER)
        tl.store(gradient_row + at, g, mask=there(at, C, FULL))
        store_labels(inputs, target, gradient_row, at_a, at_b)
        store_lists(inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN)
    return loss


@triton.jit
def typical(inputs, target, logits_row, C):
    """What dots are relative to, so that their terms are small: the largest of a few logits."""
    z = tl.load(logits_row).to(tl.float32)
    z = tl.maximum(z, tl.load(logits_row + C // 2).to(tl.float32))
    z = tl.maximum(z, tl.load(logits_row + C - 1).to(tl.float32))
    if inputs.labels.target is not None:
        z = tl.maximum(z, tl.load(logits_row + target.a.y).to(tl.float32))
    return tl.where(tl.abs(z) < INF, z, 0.0)


@triton.jit
def store_edges(
    inputs, target, gradient, logits_row, gradient_row, C,
    PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Stores the gradient at a row's first and last classes, as many as a vector has."""
    tl.debug_barrier()
    k = tl.arange(0, 2 * WIDTH)
    at = tl.where(k < WIDTH, k, C - 2 * WIDTH + k)
    mask = (at >= 0) & (at < C)
    z = tl.load(logits_row + at, mask=mask, other=0.0).to(tl.float32)
    g = sparse_gradient(inputs, target, gradient, z, at, C, PAST, POWER, ALIGN)
    tl.store(gradient_row + at, g, mask=mask)


@triton.jit
def long_row(
    inputs, target, outputs, row, logits_row, gradient_row, N, C,
    PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr, FULL: tl.constexpr, SHIFTED: tl.constexpr,
    LANES: tl.constexpr, VECTORS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """As held_row, of any row. Each lane has a maximum and sums of its own, so that lanes meet once. The first pass
    wants the row to stay in the second-level cache; the second goes backwards, and begins with what was read last."""
    STATS: tl.constexpr = outputs.stats is not None
    BLOCK: tl.constexpr = LANES * VECTORS * WIDTH
    EXACT: tl.constexpr = FULL == BLOCK
    TILES: tl.constexpr = inputs.class_tile is not None or (PAST and inputs.past_tile is not None)
    temperature = inputs.settings.temperature
    tile = across(LANES) * WIDTH + along(VECTORS) * (LANES * WIDTH) + tl.arange(0, WIDTH)[None, None, :]
    if SHIFTED:
        first = row * C
        lead = (first % WIDTH).to(tl.int32)
        vectors = inputs.logits + first // WIDTH * WIDTH
        end = lead + C
    else:
        lead = None
        vectors = logits_row
        end = C
    factor = factor_of(PAST, POWER)
    one = tl.zeros([], tl.float32) + 1.0
    origin = Scale(one, one - one, one)
    if TILES or inputs.uniform is not None:
        origin = Scale(one, typical(inputs, target, logits_row, C), one)
    zero = tl.zeros([LANES], tl.float32)
    top = zero - INF
    top_start = tl.zeros([LANES], tl.int32)  # of the block with a lane's largest logit
    sum_p, sum_e, sum_mass, sum_past, dot, sum_d = zero, zero, zero, zero, zero, zero
    for start in range(0, end, BLOCK):
        at, z = block_of(vectors, start, tile, lead, C, EXACT, WIDTH, "evict_last")
        block = Vectors(start, lead) if SHIFTED else None
        new_top = tl.maximum(top, maxima_along(z))
        base = tl.where(new_top == -INF, 0.0, new_top)
        old_p, old_e = exponentials((top - base) * factor, temperature, PAST, POWER)
        p, e = exponentials((z - wide(base, at)) * factor, temperature, PAST, POWER)
        sum_p = sum_p * old_p + sums_along(p)
        if PAST:
            sum_e = sum_e * old_e + sums_along(e)
        if STATS:
            top_start = tl.where(new_top > top, start, top_start)
        top = new_top
        if TILES or inputs.uniform is not None:
            d = scaled(z, origin)
            if SHIFTED:
                d = tl.where(inside(at, C), d, 0.0)
            elif not EXACT:
                d = tl.where(at < C, d, 0.0)
            if inputs.uniform is not None:
                sum_d += sums_along(d)
        if TILES:
            mass, past = masses_at(inputs, target, at, block, C, PAST, EXACT, ALIGN, "evict_last")
            if inputs.class_tile is not None:
                sum_mass += sums_along(mass)
            if PAST and inputs.past_tile is not None:
                sum_past += sums_along(past)
            dot += sums_along(total_mass(inputs, target, mass, past, at, PAST) * d)

    highest = tl.max(top, 0)
    row_top = tl.where(highest == -INF, 0.0, highest)
    scale = scale_of(row_top, PAST, POWER)
    to_all_p, to_all_e = exponentials(scaled(top, scale), temperature, PAST, POWER)
    sums = sums_of(inputs, sum_p * to_all_p, sum_e * to_all_e, sum_mass, sum_past, dot, sum_d, PAST)
    sums = without_nan_in_dot(inputs, target, sums, logits_row, origin, C, PAST, ALIGN)
    loss, cross_entropy, log_p, gradient = finish(
        inputs, target, sums, logits_row, row_top, scale, origin, C, PAST, POWER
    )
    if STATS:
        start = tl.min(tl.where(top == highest, top_start, end), 0)
        at, z = block_of(vectors, start, tile, lead, C, False, WIDTH, "")
        argmax = tl.min(tl.min(tl.min(tl.where((z == highest) & (at >= 0), at, C), 2), 1), 0)
        store_statistics(
            inputs, target, sums, outputs, row, logits_row, N, C, cross_entropy, row_top, scale, log_p, argmax
        )
    if outputs.gradient is not None:
        at_a, at_b = label_gradients(inputs, target, gradient, C, PAST, POWER, ALIGN)
        gradient_vectors = gradient_row
        if SHIFTED:
            gradient_vectors = outputs.gradient + row * C // WIDTH * WIDTH
        blocks = tl.cdiv(end, BLOCK)
        for i in range(0, blocks):
            start = (blocks - 1 - i) * BLOCK
            at, z = block_of(vectors, start, tile, lead, C, EXACT, WIDTH, "evict_first")
            block = Vectors(start, lead) if SHIFTED else None
            p, e = exponentials(scaled(z, scale), temperature, PAST, POWER)
            mass, past = masses_at(inputs, target, at, block, C, PAST, EXACT, ALIGN, "evict_first")
            mass = total_mass(inputs, target, mass, past, at, PAST)
            g = gradient_tile(inputs, e, p, mass, gradient, at, PAST, POWER)
            store_block(gradient_vectors, start, tile, lead, g, C, EXACT, WIDTH)
        if SHIFTED:
            store_edges(inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN, WIDTH)
        store_labels(inputs, target, gradient_row, at_a, at_b)
        store_lists(inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN)
    return loss
