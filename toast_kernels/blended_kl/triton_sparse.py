"""The gradient at labels and listed classes, stored over what tiles stored there, in blended_kl's Triton kernels."""

import triton
import triton.language as tl

from .triton_lists import LIST_BLOCK, list_block, listed_beyond_tail
from .triton_parts import exponentials, masses_at, scaled, total_mass
from .triton_reduction import INF
from .triton_rows import READ_AGAIN, gradient_tile
from .triton_tiles import along, wide


@triton.jit
def hard_mass(label, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr):
    """Of a label, in a tile of rows: float32. What is compared with differs by numbers that are known when compiled."""
    lane = tl.arange(0, WIDTH)[None, None, :]
    segment = wide(label.y.to(tl.int32), lane) - lane
    return tl.where(segment == along(SEGMENTS) * WIDTH, wide(label.hard, lane), 0.0)


@triton.jit
def sparse_gradient(inputs, target, gradient, z, at, C, PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr):
    """The gradient at the classes `at`, whose logits are z, with the mass of labels there and as if no list named them:
    float32, as at."""
    settings = inputs.settings
    p, e = exponentials(scaled(z, gradient.scale), settings.temperature, PAST, POWER)
    mass, past = masses_at(inputs, target, at, None, C, PAST, False, ALIGN, "")
    mass = total_mass(inputs, target, mass, past, at, PAST)
    value = gradient_tile(inputs, e, p, mass, gradient, at, PAST, POWER)
    if inputs.labels.target is not None:
        value -= tl.where(at == target.a.y, target.a.hard, 0.0)
        if inputs.labels.target_b is not None:
            value -= tl.where(at == target.b.y, target.b.hard, 0.0)
    return value


@triton.jit
def label_gradients(inputs, target, gradient, C, PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr):
    """The gradient at both labels, worked out before the tiles are stored: less is alive then."""
    a = gradient.coef_p
    b = a
    if inputs.labels.target is not None:
        a = sparse_gradient(inputs, target, gradient, gradient.z_a, target.a.y, C, PAST, POWER, ALIGN)
        b = a
        if inputs.labels.target_b is not None:
            b = sparse_gradient(inputs, target, gradient, gradient.z_b, target.b.y, C, PAST, POWER, ALIGN)
    return a, b


@triton.jit
def store_labels(inputs, target, gradient_row, a, b):
    """Stores label_gradients over what the tiles stored."""
    if inputs.labels.target is not None:
        tl.debug_barrier()
        tl.store(gradient_row + target.a.y, a, mask=target.used)
        if inputs.labels.target_b is not None:  # where both are one class, so are their values
            tl.store(gradient_row + target.b.y, b, mask=target.used)


@triton.jit
def store_list(
    table, row, scale, tail, FIRST: tl.constexpr, SECOND: tl.constexpr,
    inputs, target, gradient, logits_row, gradient_row, C, PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Stores the gradient at the classes of a list, with what FIRST and SECOND lists of soft targets have there too."""
    tl.debug_barrier()
    for start in range(0, table.width, LIST_BLOCK):
        at, value, mask = list_block(table, row, scale, start)
        z = tl.load(logits_row + at, mask=mask, other=0.0).to(tl.float32)
        g = sparse_gradient(inputs, target, gradient, z, at, C, PAST, POWER, ALIGN)
        g -= scale * value - tail
        if FIRST:
            a = target.a
            g -= listed_beyond_tail(inputs.soft, a.y, a.soft, gradient.outside.tail_a, at, mask)
        if SECOND:
            b = target.b
            g -= listed_beyond_tail(inputs.soft, b.y, b.soft, gradient.outside.tail_b, at, mask)
        tl.store(gradient_row + at, g, mask=mask)


@triton.jit
def store_masked(
    inputs, target, gradient, logits_row, gradient_row, C, PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr
):
    """Stores the gradient at logits of -inf, which have no share of tails, over what was stored there."""
    SOFT: tl.constexpr = inputs.soft.indices is not None
    outside = gradient.outside
    tails = outside.tail_a + outside.tail_b + outside.tail_past
    tl.debug_barrier()
    for start in range(0, C, READ_AGAIN):
        at = start + tl.arange(0, READ_AGAIN)
        z = tl.load(logits_row + at, mask=at < C, other=0.0).to(tl.float32)
        masked = z == -INF
        if tl.sum(masked.to(tl.int32), 0) > 0:
            g = sparse_gradient(inputs, target, gradient, z, at, C, PAST, POWER, ALIGN) + tails
            if SOFT:
                a = target.a
                g -= listed_beyond_tail(inputs.soft, a.y, a.soft, 0.0, at, masked)
                if inputs.labels.target_b is not None:
                    b = target.b
                    g -= listed_beyond_tail(inputs.soft, b.y, b.soft, 0.0, at, masked)
            if PAST and inputs.past.indices is not None:
                g -= listed_beyond_tail(inputs.past, target.past_row, target.past, 0.0, at, masked)
            tl.store(gradient_row + at, g, mask=masked)


@triton.jit
def store_lists(
    inputs, target, gradient, logits_row, gradient_row, C, PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr
):
    """Stores the gradient at listed classes over what tiles and labels stored there, a list after the other: what is
    stored last has all the mass of its class."""
    SOFT: tl.constexpr = inputs.soft.indices is not None
    PAIRS: tl.constexpr = SOFT and inputs.labels.target_b is not None
    outside = gradient.outside
    if SOFT:
        store_list(
            inputs.soft, target.a.y, target.a.soft, outside.tail_a, False, False,
            inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN,
        )  # fmt: skip
        if PAIRS:
            store_list(
                inputs.soft, target.b.y, target.b.soft, outside.tail_b, True, False,
                inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN,
            )  # fmt: skip
    if PAST and inputs.past.indices is not None:
        store_list(
            inputs.past, target.past_row, target.past, outside.tail_past, SOFT, PAIRS,
            inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN,
        )  # fmt: skip
    if SOFT or (PAST and inputs.past.indices is not None):  # noqa: SIM102, known when compiled
        if outside.masked != 0:
            store_masked(inputs, target, gradient, logits_row, gradient_row, C, PAST, POWER, ALIGN)
