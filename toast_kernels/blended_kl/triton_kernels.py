"""The blended KL loss and its gradient in one Triton kernel; README.md has the formulas and the passes.

A program works on ROWS rows. A row that fits (SINGLE_PASS) is read once and stays in registers; a longer one is read in
blocks, once for its statistics and once more for the gradient. Uniform mass (smoothing without class weights, the tails
of top-k rows) and mass at sparse classes (labels, lists) never become tiles: the first enters through the sum of the
logits, the second through gathers, and the gradient at the sparse classes is written a second time, complete.
"""

import triton
import triton.language as tl

from .triton_parts import (
    INF,
    Masses,
    class_masses,
    exponentials,
    first_class,
    gradient_tile,
    increment,
    label_of,
    list_statistics,
    listed_mass,
    masses_at,
    past_row_of,
    probabilities_at,
    row_sum,
    share_of,
    sum_of_block,
    tile_sums,
    total_mass,
    weighted,
)


@triton.jit(do_not_specialize=["past_rows", "counters", "N"])
def normalisers_kernel(
    labels,  # Labels
    past_index,  # [N] or None
    past_filled,  # [M]
    past_rows,  # M
    sums,  # [2, programs]: of the labels' weights, and of the rows with a past
    finished,  # [counters]: what blended_kl_kernel counts its programs with that are done
    counters,
    N,
    C,
    ignore_index,
    BLOCK: tl.constexpr,
):
    """What "mean" divides the two terms by: the sums of programs, which blended_kl_kernel adds up."""
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
def blended_kl_kernel(
    logits,  # [N, C]
    logits_stride,
    labels,  # Labels
    soft,  # Table
    alpha,  # number, unless it lies on the device:
    alpha_tensor,  # [] or None
    past,  # Table
    past_rows,  # M
    past_index,  # [N] or None
    past_weight,  # number, unless it lies on the device:
    past_weight_tensor,  # [] or None
    upstream,  # [] or [N]: what the loss, and so the gradient, is multiplied by before it is rounded; or None
    upstream_stride,
    outputs,  # Outputs
    sums,  # [2, NORMALISER_BLOCKS] from normalisers_kernel; None for reduction "none"
    finished,  # [1 + groups], zeros: of the groups of programs, and of each group's programs, how many are done
    partial,  # [programs]: losses of each one's rows
    group_sums,  # [groups] float64
    N,
    C,
    ignore_index,
    label_smoothing,
    temperature,
    inverse_t,
    SMOOTHED: tl.constexpr,
    MEAN: tl.constexpr,
    NORMALISER_BLOCKS: tl.constexpr,  # programs of normalisers_kernel
    POWER: tl.constexpr,  # T where it is a small integer, else 0
    LIST_BITS: tl.constexpr,  # 2^LIST_BITS > k - 1
    SPARSE_CLASSES: tl.constexpr,  # of a turn
    ALIGN: tl.constexpr,  # divides C and the strides of logits and dense tables
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE_PASS: tl.constexpr,
    EXACT: tl.constexpr,  # BLOCK divides C: no tile is cut off
    GROUP: tl.constexpr,  # programs of a group
):
    PROBABILITIES: tl.constexpr = labels.target is None
    PAIRS: tl.constexpr = labels.target_b is not None
    PAST: tl.constexpr = past.data is not None
    SOFT_LIST: tl.constexpr = soft.indices is not None
    PAST_LIST: tl.constexpr = past.indices is not None
    DENSE_SOFT: tl.constexpr = soft.data is not None and not SOFT_LIST
    DENSE_PAST: tl.constexpr = PAST and not PAST_LIST
    WEIGHTED: tl.constexpr = labels.weight is not None and (PROBABILITIES or SMOOTHED)  # class by class
    UNIFORM: tl.constexpr = SOFT_LIST or PAST_LIST or (SMOOTHED and not WEIGHTED)
    CLASS_TILE: tl.constexpr = DENSE_SOFT or WEIGHTED
    STATS: tl.constexpr = outputs.stats is not None

    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    active = row < N
    C = C // ALIGN * ALIGN  # tells the compiler what may be loaded at once
    logits_row = logits + row * (logits_stride // ALIGN * ALIGN)

    class_scale = tl.where(active, 1.0, 0.0)
    if upstream is not None:
        class_scale = tl.load(upstream + row * upstream_stride, mask=active, other=0.0).to(tl.float32)
    past_term_scale = class_scale
    if MEAN:
        block = tl.arange(0, NORMALISER_BLOCKS)
        total_weight = tl.sum(tl.load(sums + block), 0)
        past_count = tl.sum(tl.load(sums + NORMALISER_BLOCKS + block), 0)
        class_scale *= tl.where(total_weight == 0, 0.0, tl.div_rn(1.0, total_weight))
        past_term_scale *= tl.where(past_count == 0, 0.0, tl.div_rn(1.0, past_count))
        class_scale = tl.where(active, class_scale, 0.0)  # 0 times a divisor that is NaN is not
        past_term_scale = tl.where(active, past_term_scale, 0.0)

    # The row's labels, and what mass they give to themselves, to the row of soft targets and to every class.
    y_a, y_b, kept_a, kept_b = row, row, active, active
    hard_a, hard_b, soft_b = class_scale * 0, class_scale * 0, class_scale * 0
    if PROBABILITIES:
        used, bad = active, row < 0
        soft_a = class_scale * (1 - label_smoothing)
        smooth = class_scale * (label_smoothing / C)
    else:
        y_a, kept_a, bad = label_of(labels.target, row, active, C, ignore_index)
        share_a = share_of(labels.lam, row, kept_a, True)
        if alpha_tensor is not None:
            alpha = tl.load(alpha_tensor).to(tl.float32)
        hard_a, soft_a, smooth = class_masses(
            y_a, kept_a, share_a, labels.weight, soft.filled, alpha, label_smoothing, class_scale, C
        )
        used = kept_a
        if PAIRS:
            y_b, kept_b, bad_b = label_of(labels.target_b, row, active, C, ignore_index)
            share_b = share_of(labels.lam, row, kept_b, False)
            hard_b, soft_b, smooth_b = class_masses(
                y_b, kept_b, share_b, labels.weight, soft.filled, alpha, label_smoothing, class_scale, C
            )
            smooth += smooth_b
            used = used | kept_b
            bad = bad | bad_b
    past_row, past_scale = row, class_scale * 0
    if PAST:
        past_row, has_past, past_bad = past_row_of(past_index, past.filled, past_rows, row, used & ~bad)
        bad = bad | past_bad
        if past_weight_tensor is not None:
            past_weight = tl.load(past_weight_tensor).to(tl.float32)
        past_scale = tl.where(has_past, past_term_scale * (past_weight * temperature), 0.0)
        entropy = tl.load(past.entropy + past_row, mask=has_past, other=0.0).to(tl.float32)
    used = used | bad
    masses = Masses(y_a, soft_a, y_b, soft_b, smooth, past_row, past_scale)

    # Statistics: exponentials are relative to shift, products with the mass to origin.
    if SINGLE_PASS:
        at = tl.arange(0, BLOCK)[None, :]
        mask = active if EXACT else active & (at < C)
        z = tl.load(logits_row + at, mask=mask, other=-INF).to(tl.float32)
        top = tl.max(z, 1, keep_dims=True)
        shift = tl.where(top == -INF, 0.0, top)
        origin = shift
        d = z - shift
        p, e = exponentials(d, inverse_t, PAST, POWER)
        class_mass, past_mass = masses_at(at, mask, masses, labels, soft, past, WEIGHTED, ALIGN)
        sum_p, sum_e, class_sum, past_sum, dot, sum_d, masked = tile_sums(
            d, p, e, class_mass, past_mass, mask, PAST, CLASS_TILE, DENSE_PAST, UNIFORM
        )
        if STATS:
            best = first_class(at, mask & (z == top), C)
            first_nan = first_class(at, z != z, C)
            if PROBABILITIES:
                score = probabilities_at(soft, row, at, mask, active, ALIGN)
                score_sum, score_dot = row_sum(score), row_sum(tl.where(score != 0, score * d, 0.0))
    else:
        zero = class_scale * 0
        top, origin, shift = zero - INF, zero - INF, zero
        sum_p, sum_e, class_sum, past_sum, dot, sum_d, masked = zero, zero, zero, zero, zero, zero, zero
        score_sum, score_dot = zero, zero
        best, first_nan = (zero + 0).to(tl.int32), (zero + 0).to(tl.int32) + C
        for start in range(0, C, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, :]
            mask = active if EXACT else active & (at < C)
            z = tl.load(logits_row + at, mask=mask, other=-INF).to(tl.float32)
            class_mass, past_mass = masses_at(at, mask, masses, labels, soft, past, WEIGHTED, ALIGN)
            tile_top = tl.max(z, 1, keep_dims=True)
            if STATS:
                best = tl.where(tile_top > top, first_class(at, mask & (z == tile_top), C), best)
                first_nan = tl.minimum(first_nan, first_class(at, z != z, C))
            new_top = tl.maximum(top, tile_top)
            origin = tl.where(origin == -INF, new_top, origin)
            finite_origin = tl.where(origin == -INF, 0.0, origin)
            shift = tl.where(new_top == -INF, 0.0, new_top)
            p, e = exponentials(z - shift, inverse_t, PAST, POWER)
            d = z - finite_origin
            add_p, add_e, add_class, add_past, add_dot, add_d, add_masked = tile_sums(
                d, p, e, class_mass, past_mass, mask, PAST, CLASS_TILE, DENSE_PAST, UNIFORM
            )
            old_p, old_e = exponentials(top - shift, inverse_t, PAST, POWER)
            sum_p = sum_p * old_p + add_p
            sum_e = sum_e * old_e + add_e
            class_sum += add_class
            past_sum += add_past
            dot += add_dot
            sum_d += add_d
            masked += add_masked
            top = new_top
            if STATS and PROBABILITIES:
                score = probabilities_at(soft, row, at, mask, active, ALIGN)
                score_sum += row_sum(score)
                score_dot += row_sum(tl.where(score != 0, score * d, 0.0))
        origin = tl.where(origin == -INF, 0.0, origin)

    # Mass outside the tiles.
    lost = row < 0
    uniform, tail_a, tail_b, past_tail = class_scale * 0, class_scale * 0, class_scale * 0, class_scale * 0
    if SMOOTHED and not WEIGHTED:
        uniform += smooth
        class_sum += smooth * C
        dot += smooth * sum_d
        lost = lost | ((smooth != 0) & (masked != 0))
    if SOFT_LIST:
        tail_a, listed_sum, listed_dot, listed_lost = list_statistics(
            soft, y_a, soft_a, logits_row, origin, sum_d, masked, C
        )
        uniform, class_sum, dot, lost = uniform + tail_a, class_sum + listed_sum, dot + listed_dot, lost | listed_lost
        if PAIRS:
            tail_b, listed_sum, listed_dot, listed_lost = list_statistics(
                soft, y_b, soft_b, logits_row, origin, sum_d, masked, C
            )
            uniform, class_sum, dot = uniform + tail_b, class_sum + listed_sum, dot + listed_dot
            lost = lost | listed_lost
    if PAST_LIST:
        past_tail, listed_sum, listed_dot, listed_lost = list_statistics(
            past, past_row, past_scale, logits_row, origin, sum_d, masked, C
        )
        uniform, past_sum, dot, lost = uniform + past_tail, past_sum + listed_sum, dot + listed_dot, lost | listed_lost
    if not PROBABILITIES:
        z_a = tl.load(logits_row + y_a, mask=kept_a, other=0.0).to(tl.float32)
        class_sum += hard_a
        dot += tl.where(hard_a != 0, hard_a * (z_a - origin), 0.0)
        if PAIRS:
            z_b = tl.load(logits_row + y_b, mask=kept_b, other=0.0).to(tl.float32)
            class_sum += hard_b
            dot += tl.where(hard_b != 0, hard_b * (z_b - origin), 0.0)

    # The row's loss.
    log_p = tl.log(sum_p)
    # Logits of -inf alone have log_p = -inf, and no mass on them is no loss.
    row_loss = tl.where((class_sum == 0) & (log_p == -INF), 0.0, class_sum * (log_p + (shift - origin))) - dot
    if PAST:
        row_loss += past_sum * (shift - origin)
        row_loss += temperature * (past_sum * tl.log(sum_e) - past_scale * entropy)
    row_loss += tl.where(lost, INF, 0.0) + tl.where(bad, INF - INF, 0.0)
    row_loss = tl.where(used, row_loss, 0.0)
    if sums is None:
        tl.store(outputs.loss + row, row_loss, mask=active)
    else:
        tl.store(partial + tl.program_id(0), tl.sum(tl.sum(row_loss, 1), 0))
    if STATS:
        logsumexp = shift + log_p
        if PROBABILITIES:
            cross_entropy = score_sum * (log_p + (shift - origin)) - score_dot
        else:
            cross_entropy = tl.where(share_a != 0, share_a * (log_p + (shift - z_a)), 0.0)
            if PAIRS:
                cross_entropy += tl.where(share_b != 0, share_b * (log_p + (shift - z_b)), 0.0)
        cross_entropy = tl.where(used, cross_entropy + tl.where(bad, INF - INF, 0.0), 0.0)
        tl.store(outputs.stats + row, cross_entropy, mask=active)
        tl.store(outputs.stats + N + row, logsumexp, mask=active)
        tl.store(outputs.argmax + row, tl.where(first_nan < C, first_nan, best).to(tl.int64), mask=active)

    if outputs.gradient is not None:
        gradient_row = outputs.gradient + row * C
        coef_p = tl.div_rn(class_sum, sum_p) + tl.where(bad, INF - INF, 0.0)
        coef_e = tl.div_rn(past_sum, sum_e) if PAST else coef_p
        if SINGLE_PASS:
            mass = total_mass(class_mass, past_mass, CLASS_TILE, DENSE_PAST)
            g = gradient_tile(p, e, coef_p, coef_e, mass, uniform, used, PAST, UNIFORM)
            tl.store(gradient_row + at, g, mask=mask)
        else:
            for start in range(0, C, BLOCK):
                at = start + tl.arange(0, BLOCK)[None, :]
                mask = active if EXACT else active & (at < C)
                z = tl.load(logits_row + at, mask=mask, other=-INF).to(tl.float32)
                class_mass, past_mass = masses_at(at, mask, masses, labels, soft, past, WEIGHTED, ALIGN)
                p, e = exponentials(z - shift, inverse_t, PAST, POWER)
                mass = total_mass(class_mass, past_mass, CLASS_TILE, DENSE_PAST)
                g = gradient_tile(p, e, coef_p, coef_e, mass, uniform, used, PAST, UNIFORM)
                tl.store(gradient_row + at, g, mask=mask)

        # The sparse classes once more, with all their mass, over what the tiles left there.
        LABELS: tl.constexpr = 0 if PROBABILITIES else (2 if PAIRS else 1)
        SOFT_LISTS: tl.constexpr = (2 if PAIRS else 1) if SOFT_LIST else 0
        if LABELS + SOFT_LISTS > 0 or PAST_LIST:
            tl.debug_barrier()
            first_past = LABELS + (SOFT_LISTS * soft.width if SOFT_LIST else 0)
            count = first_past + (past.width if PAST_LIST else 0)
            for start in range(0, count, SPARSE_CLASSES):
                k = start + tl.arange(0, SPARSE_CLASSES)[None, :]
                sparse = tl.where(k == 0, y_a, y_b)
                chosen = tl.where(k == 0, kept_a, kept_b) & active & (k < LABELS)
                if SOFT_LIST:
                    j = k - LABELS
                    second = PAIRS & (j >= soft.width)
                    list_row = tl.where(second, y_b, y_a)
                    j = tl.where(second, j - soft.width, j)
                    listed = (k >= LABELS) & (k < first_past) & active & (tl.where(second, soft_b, soft_a) != 0)
                    sparse = tl.where(
                        listed, tl.load(soft.indices + list_row * soft.width + j, mask=listed, other=0), sparse
                    )
                    chosen = chosen | listed
                if PAST_LIST:
                    j = k - first_past
                    listed = (j >= 0) & (j < past.width) & active & (past_scale != 0)
                    sparse = tl.where(
                        listed, tl.load(past.indices + past_row * past.width + j, mask=listed, other=0), sparse
                    )
                    chosen = chosen | listed
                sparse_z = tl.load(logits_row + sparse, mask=chosen, other=0.0).to(tl.float32)
                sparse_p, sparse_e = exponentials(sparse_z - shift, inverse_t, PAST, POWER)
                sparse_class, sparse_past = masses_at(sparse, chosen, masses, labels, soft, past, WEIGHTED, ALIGN)
                sparse_mass = total_mass(sparse_class, sparse_past, CLASS_TILE, DENSE_PAST)
                sparse_mass += tl.where(sparse == y_a, hard_a, 0.0) + tl.where(sparse == y_b, hard_b, 0.0)
                if SMOOTHED and not WEIGHTED:
                    sparse_mass += smooth
                if SOFT_LIST:
                    sparse_mass += listed_mass(soft, y_a, soft_a, tail_a, sparse, chosen, LIST_BITS)
                    if PAIRS:
                        sparse_mass += listed_mass(soft, y_b, soft_b, tail_b, sparse, chosen, LIST_BITS)
                if PAST_LIST:
                    sparse_mass += listed_mass(past, past_row, past_scale, past_tail, sparse, chosen, LIST_BITS)
                sparse_g = gradient_tile(sparse_p, sparse_e, coef_p, coef_e, sparse_mass, uniform, used, PAST, False)
                tl.store(gradient_row + sparse, sparse_g, mask=chosen)

    if sums is not None:
        # The program of a group that is done last adds the group's losses up, the last of all the groups' sums: in a
        # fixed order, whichever that is.
        program = tl.program_id(0)
        programs = tl.num_programs(0)
        group = program // GROUP
        if increment(finished + 1 + group) == tl.minimum(programs - group * GROUP, GROUP):
            tl.store(group_sums + group, sum_of_block(partial, group * GROUP, programs, GROUP))
            groups = tl.cdiv(programs, GROUP)
            if increment(finished) == groups:
                total = tl.zeros([], tl.float64)
                for start in range(0, groups, GROUP):
                    total += sum_of_block(group_sums, start, groups, GROUP)
                if MEAN:
                    total = tl.where(total_weight == 0, INF - INF, total)
                tl.store(outputs.loss, total.to(tl.float32))


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
