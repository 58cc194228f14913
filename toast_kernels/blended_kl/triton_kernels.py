"""The blended KL loss and its gradient in one Triton kernel; README.md has the formulas and the passes.

Short rows are worked on several a program, in tiles of ROWS, SEGMENTS and WIDTH. A longer row is held by one program,
[BLOCK], between its statistics and its gradient; the longest are read twice, in tiles [LANES, VECTORS, WIDTH]. The
parts: triton_parts.py has a row's target and its mass in tiles, triton_passes.py a row's two passes, triton_rows.py
what is between them, triton_lists.py top-k rows, triton_sparse.py the gradient at labels and listed classes,
triton_reduction.py sums over programs, triton_tiles.py how tiles lie in threads and are read and written.
"""

import triton
import triton.language as tl

from ..triton_common import INF
from .problem import Outputs
from .triton_arguments import Inputs
from .triton_parts import (
    below,
    exponentials,
    label_of,
    masses_at,
    past_row_of,
    scale_of,
    scaled,
    share_of,
    target_of,
    total_mass,
    weighted,
)
from .triton_passes import held_logits, held_row, long_row
from .triton_reduction import add_up
from .triton_rows import Gradient, Sums, finish, gradient_tile
from .triton_sparse import hard_mass
from .triton_tiles import along, load, maxima_along, minima_along, sums_along, there, wide, widened


@triton.jit(do_not_specialize=["past_rows", "counters", "N"])
def normalisers_kernel(
    labels,  # Labels
    past_index,  # [N] or None
    past_filled,  # [M]
    past_rows,  # M
    sums,  # [2, programs] out: of the labels' weights, and of the rows with a past
    finished,  # [counters] out: zeros
    counters,
    N,
    C,
    ignore_index,
    BLOCK: tl.constexpr,
):
    """The divisors of "mean", as one sum a program, and the counters of the main kernel, set to 0."""
    program = tl.program_id(0)
    for start in range(program * BLOCK, counters, tl.num_programs(0) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(finished + i, i * 0, mask=i < counters)
    class_sum = tl.zeros([BLOCK], tl.float32)
    past_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(program * BLOCK, N, tl.num_programs(0) * BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        used = row < N
        weights = tl.where(used, 1.0, 0.0)
        if labels.target is not None:
            y, used, bad = label_of(labels.target, row, row < N, C, ignore_index)
            weights = weighted(share_of(labels.lam, row, used, True), labels.weight, y, used)
            if labels.target_b is not None:
                y, kept, bad_b = label_of(labels.target_b, row, row < N, C, ignore_index)
                weights += weighted(share_of(labels.lam, row, kept, False), labels.weight, y, kept)
                used, bad = used | kept, bad | bad_b
            used = used & ~bad
        if past_index is not None:
            _, has_past, bad = past_row_of(past_index, past_filled, past_rows, row, used)
            past_sum += tl.where(has_past, 1.0, 0.0)
            used = used & ~bad
        class_sum += tl.where(used, weights, 0.0)
    tl.store(sums + program, tl.sum(class_sum, 0))
    tl.store(sums + tl.num_programs(0) + program, tl.sum(past_sum, 0))


@triton.jit(do_not_specialize=["past_rows", "N"])
def short_rows_kernel(
    inputs,  # Inputs
    outputs,  # Outputs
    reduction,  # Reduction
    past_rows,  # M
    N,
    C,
    POWER: tl.constexpr,  # T where it is a small integer, else 0
    ALIGN: tl.constexpr,  # divides C and the strides of logits and dense tables
    GROUP: tl.constexpr,  # programs whose losses one of them adds up
    FULL: tl.constexpr,  # classes of whole segments
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows of at most SEGMENTS * WIDTH classes, ROWS a program. Without top-k rows."""
    PAST: tl.constexpr = inputs.past_index is not None
    STATS: tl.constexpr = outputs.stats is not None
    if N.dtype == tl.int64:
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        active = row < N
    else:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        active = row.to(tl.uint32) < N
    logits_row = inputs.logits + tl.minimum(row, N - 1).to(tl.int64) * (inputs.stride // ALIGN * ALIGN)
    row = row.to(tl.int64)
    C = C // ALIGN * ALIGN  # tells the compiler what may be loaded at once
    target = target_of(row, active, inputs, past_rows, reduction, C)
    at = along(SEGMENTS) * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    mine = there(at, C, FULL)
    z = widened(tl.load(wide(logits_row, at) + at, mask=mine, other=-INF))  # which waits for no label
    mass, past = masses_at(inputs, target, at, None, C, PAST, False, ALIGN, "")
    highest = maxima_along(z)
    top = tl.where(highest == -INF, 0.0, highest)
    scale = scale_of(top, PAST, POWER)
    x = scaled(z, scale)
    p, e = exponentials(x, inputs.settings.temperature, PAST, POWER)
    all_mass = total_mass(inputs, target, mass, past, at, PAST)
    none = tl.zeros_like(top)
    sum_p, sum_e, sum_mass, sum_past, dot, sum_d = sums_along(p), none, none, none, none, none
    if PAST:
        sum_e = sums_along(e)
        if inputs.past_tile is not None:
            sum_past = sums_along(past)
    if inputs.class_tile is not None:
        sum_mass = sums_along(mass)
    if inputs.class_tile is not None or inputs.past_tile is not None:
        dot = sums_along(tl.where(all_mass != 0, all_mass * x, 0.0))  # 0 * -inf = 0
    if inputs.uniform is not None:
        sum_d = sums_along(tl.where(at < C, x, 0.0))
    sums = Sums(sum_p, sum_e, sum_mass, sum_past, dot, sum_d)
    loss, cross_entropy, log_p, gradient = finish(inputs, target, sums, logits_row, top, scale, scale, C, PAST, POWER)

    wrong = tl.where(target.bad, INF - INF, 0.0)
    loss = tl.where(target.used, loss, wrong)
    if reduction.partial is None:
        tl.store(outputs.loss + row, loss, mask=active)
    if STATS:
        if inputs.labels.target is None:
            score = load(inputs.soft.data + target.a.y * inputs.soft.stride, at, C, active, 0.0, False, "")
            surprise = wide(log_p, at) - below(z, top, scale)
            cross_entropy = sums_along(tl.where(score != 0, score * surprise, 0.0))
        tl.store(outputs.stats + row, tl.where(target.used, cross_entropy, wrong), mask=active)
        tl.store(outputs.stats + N + row, top + log_p, mask=active)
        of_highest = minima_along(tl.where(z == wide(highest, at), at, C))
        of_nan = minima_along(tl.where(z != z, at, C))
        tl.store(outputs.argmax + row, tl.where(of_nan < C, of_nan, of_highest).to(tl.int64), mask=active)
    if outputs.gradient is not None:
        gradient_row = outputs.gradient + row * C
        coef_p = tl.where(target.used, gradient.coef_p, wrong)
        coef_e = tl.where(target.used, gradient.coef_e, wrong)
        gradient = Gradient(scale, coef_p, coef_e, gradient.outside, gradient.z_a, gradient.z_b)
        g = gradient_tile(inputs, e, p, all_mass, gradient, at, PAST, POWER)
        if inputs.labels.target is not None:
            g -= hard_mass(target.a, SEGMENTS, WIDTH)
            if inputs.labels.target_b is not None:
                g -= hard_mass(target.b, SEGMENTS, WIDTH)
        place = wide(gradient_row, at) + at
        counts = target.used | target.bad
        tl.store(place, g, mask=mine & wide(counts, at))
        # Whatever the logits of ignored rows hold. A select would take two instructions a class, in bfloat16.
        tl.store(place, tl.zeros_like(g), mask=mine & wide(active & ~counts, at))
    if reduction.partial is not None:
        add_up(tl.sum(loss, 0), outputs, reduction, GROUP)


@triton.jit
def one_row(
    inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
    PAST: tl.constexpr, POWER: tl.constexpr, ALIGN: tl.constexpr, HELD: tl.constexpr, FULL: tl.constexpr,
    SHIFTED: tl.constexpr, LANES: tl.constexpr, VECTORS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """held_row or long_row."""
    BLOCK: tl.constexpr = LANES * VECTORS * WIDTH
    if HELD:
        return held_row(
            inputs, target, outputs, row, logits_row, held, gradient_row, N, C, PAST, POWER, ALIGN, FULL, BLOCK
        )  # fmt: skip
    else:
        return long_row(
            inputs, target, outputs, row, logits_row, gradient_row, N, C,
            PAST, POWER, ALIGN, FULL, SHIFTED, LANES, VECTORS, WIDTH,
        )  # fmt: skip


@triton.jit
def skipped_row(
    inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
    ALIGN: tl.constexpr, HELD: tl.constexpr, FULL: tl.constexpr, SHIFTED: tl.constexpr, LANES: tl.constexpr,
    VECTORS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """An ignored row: 0, with the statistics of its logits; a row with a label or past_index out of range: NaN."""
    loss = tl.where(target.bad, INF - INF, 0.0)
    if outputs.gradient is not None:
        BLOCK: tl.constexpr = LANES * VECTORS * WIDTH
        for start in range(0, BLOCK if HELD else C, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(gradient_row + at, tl.zeros([BLOCK], tl.float32) + loss, mask=there(at, C, FULL))
    if outputs.stats is not None:
        logits_alone = Inputs(
            inputs.logits, inputs.stride, inputs.labels, inputs.soft, inputs.past, inputs.past_index, inputs.settings,
            None, None, None,
        )  # fmt: skip
        statistics = Outputs(outputs.loss, None, outputs.stats, outputs.argmax)
        one_row(
            logits_alone, target, statistics, row, logits_row, held, gradient_row, N, C,
            False, 0, ALIGN, HELD, FULL, SHIFTED, LANES, VECTORS, WIDTH,
        )  # fmt: skip
        tl.store(outputs.stats + row, loss)
    return loss


@triton.jit(do_not_specialize=["past_rows", "N"])
def row_kernel(
    inputs,  # Inputs
    outputs,  # Outputs
    reduction,  # Reduction
    past_rows,  # M
    N,
    C,
    POWER: tl.constexpr,  # as short_rows_kernel's
    ALIGN: tl.constexpr,
    GROUP: tl.constexpr,
    HELD: tl.constexpr,  # in one tile, and read once
    FULL: tl.constexpr,  # classes of a tile that no row lacks: all where tiles divide C
    SHIFTED: tl.constexpr,  # rows of logits and gradient lie end to end and not at multiples of vectors
    LANES: tl.constexpr,
    VECTORS: tl.constexpr,  # of a lane, in a tile
    WIDTH: tl.constexpr,  # logits of a vector
):
    """A row a program. Rows without a past are worked on as if there was none."""
    PAST: tl.constexpr = inputs.past_index is not None
    row = tl.program_id(0).to(tl.int64)
    C = C // ALIGN * ALIGN  # tells the compiler what may be loaded at once
    logits_row = inputs.logits + row * (inputs.stride // ALIGN * ALIGN)
    held = row
    if HELD:  # before anything is waited for
        held = held_logits(logits_row, C, FULL, LANES * VECTORS * WIDTH)
    target = target_of(row, row < N, inputs, past_rows, reduction, C)
    gradient_row = outputs.gradient
    if outputs.gradient is not None:
        gradient_row = outputs.gradient + row * C
    loss = 0.0
    if target.used:
        if PAST:
            if target.has_past:
                loss = one_row(
                    inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
                    True, POWER, ALIGN, HELD, FULL, SHIFTED, LANES, VECTORS, WIDTH,
                )  # fmt: skip
            else:
                loss = one_row(
                    inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
                    False, POWER, ALIGN, HELD, FULL, SHIFTED, LANES, VECTORS, WIDTH,
                )  # fmt: skip
        else:
            loss = one_row(
                inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
                False, POWER, ALIGN, HELD, FULL, SHIFTED, LANES, VECTORS, WIDTH,
            )  # fmt: skip
    else:
        loss = skipped_row(
            inputs, target, outputs, row, logits_row, held, gradient_row, N, C,
            ALIGN, HELD, FULL, SHIFTED, LANES, VECTORS, WIDTH,
        )  # fmt: skip
    if reduction.partial is None:
        tl.store(outputs.loss + row, loss)
    else:
        add_up(loss, outputs, reduction, GROUP)


@triton.jit
def scale_kernel(
    gradient,  # [size], in place
    upstream,  # []
    size,
    BLOCK: tl.constexpr,
):
    factor = tl.load(upstream).to(tl.float32)
    if factor != 1:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, size, step):
            at = start + tl.arange(0, BLOCK)
            g = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
            tl.store(gradient + at, g * factor, mask=at < size)
