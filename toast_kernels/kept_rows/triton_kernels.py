"""pool_rows and carry_rows on a GPU, one program a row of the batch; README.md has the passes."""

import triton
import triton.language as tl

from ..triton_common import increment


@triton.jit
def pool_rows_kernel(
    logits,  # [N, C]
    logits_stride,
    labels,  # [N] int64
    places,  # [N] int64, or None: one after the other
    pool,  # [R, C]
    pool_labels,  # [R] int64
    positions,  # [R] int64
    counts,  # [3] int64
    capacity,  # R
    ignore_index,
    N,
    C,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    pooled, given = tl.load(counts), tl.load(counts + 1)
    kept = row * 0
    if places is None:
        before = row * 0
        for first in tl.range(0, N, ROWS):
            other = first + tl.arange(0, ROWS)
            keep = (tl.load(labels + other, mask=other < N, other=ignore_index) != ignore_index).to(tl.int64)
            kept += tl.sum(keep, 0)
            before += tl.sum(tl.where(other < row, keep, 0), 0)
        to = pooled + before
    else:
        to = tl.load(places + row)
    fits = (label != ignore_index) & (to >= 0) & (to < capacity)
    width = tl.where(fits, C, 0)
    for first in tl.range(0, C, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values = tl.load(logits + row * logits_stride + at, mask=at < width)
        tl.store(pool + to * C + at, values.to(pool.dtype.element_ty), mask=at < width)
    tl.store(pool_labels + to, label, mask=fits)
    tl.store(positions + to, given + row, mask=fits)
    if increment(counts + 2) == N:  # the last to finish: all have read the counts
        tl.store(counts, pooled + kept)
        tl.store(counts + 1, given + N)
        tl.store(counts + 2, row * 0)


@triton.jit
def eligible(
    row,  # int64 scalar or tile
    used,  # bool like row: the row is there
    labels,  # [N] or None
    labels_b,  # [N] or None
    score,  # [N]
    num_new,
    ages,  # [N - num_new]; None: rows after the new ones may not be carried
    max_age,
    ignore_index,
):
    """Of each row, (whether it may be carried, score in float32 or float64, age int64)."""
    value = tl.load(score + row, mask=used, other=float("nan"))
    value = value if value.dtype == tl.float64 else value.to(tl.float32)
    may = used & (tl.abs(value) < float("inf"))  # not so for a NaN
    if labels is not None:
        labelled = tl.load(labels + row, mask=used, other=ignore_index) != ignore_index
        if labels_b is not None:
            labelled = labelled | (tl.load(labels_b + row, mask=used, other=ignore_index) != ignore_index)
        may = may & labelled
    if ages is None:
        age = row * 0
        may = may & (row < num_new)
    else:
        age = tl.load(ages + row - num_new, mask=used & (row >= num_new), other=0)
        may = may & (age < max_age)
    return may, value, age


@triton.jit
def carry_rows_kernel(
    logits,  # [N, C]
    logits_stride,
    labels,  # [N] int64 or None
    labels_b,  # [N] int64 or None
    lam,  # [N] float32 or None
    score,  # [N]
    num_new,
    ages,  # [N - num_new] int64, not slot_ages; or None
    max_age,
    ignore_index,
    distilled,  # [K + 1] int64
    slot_labels,  # [K] int64
    slot_labels_b,  # [K] int64
    slot_lam,  # [K] float32
    slot_logits,  # [K, C]
    logsumexp,  # [K] float64, or None: no statistics
    entropy,  # [K] float32
    filled,  # [K] bool
    index,  # [K] int64
    slot_ages,  # [K] int64
    slot_rows,  # [K] int64
    N,
    C,
    K,
    TEMPERATURE: tl.constexpr,  # so that float64 has all of its digits
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program i counts the rows harder than row i, which gives its slot, and clears slot i if no row takes it."""
    row = tl.program_id(0).to(tl.int64)
    may, mine, age = eligible(row, row < N, labels, labels_b, score, num_new, ages, max_age, ignore_index)
    rank, total = row * 0, row * 0
    for first in tl.range(0, N, ROWS):
        other = first + tl.arange(0, ROWS).to(tl.int64)
        others_may, value, _ = eligible(other, other < N, labels, labels_b, score, num_new, ages, max_age, ignore_index)
        harder = (value > mine) | ((value == mine) & (other < row))
        rank += tl.sum((others_may & harder).to(tl.int64), 0)
        total += tl.sum(others_may.to(tl.int64), 0)
    chosen = tl.minimum(total, K)

    empty = (row >= chosen) & (row < K)
    tl.store(filled + row, row < 0, mask=empty)
    tl.store(index + row, row * 0 - 1, mask=empty)
    tl.store(slot_ages + row, row * 0, mask=empty)
    tl.store(slot_rows + row, row * 0, mask=empty)
    taken = may & (rank < K)
    tl.store(filled + rank, rank >= 0, mask=taken)
    tl.store(index + rank, tl.where(rank < tl.load(distilled + chosen), rank, -1), mask=taken)
    tl.store(slot_ages + rank, age + 1, mask=taken)
    tl.store(slot_rows + rank, row, mask=taken)
    if labels is not None:
        tl.store(slot_labels + row, row * 0 + ignore_index, mask=empty)
        tl.store(slot_labels + rank, tl.load(labels + row), mask=taken)
    if labels_b is not None:
        tl.store(slot_labels_b + row, row * 0 + ignore_index, mask=empty)
        tl.store(slot_labels_b + rank, tl.load(labels_b + row), mask=taken)
        tl.store(slot_lam + row, 1.0, mask=empty)
        tl.store(slot_lam + rank, tl.load(lam + row), mask=taken)

    if taken:
        source, target = logits + row * logits_stride, slot_logits + rank * C
        top = tl.full([], float("-inf"), tl.float32)
        for first in tl.range(0, C, BLOCK):
            at = first + tl.arange(0, BLOCK)
            z = tl.load(source + at, mask=at < C, other=float("-inf"))
            tl.store(target + at, z, mask=at < C)
            top = tl.maximum(top, tl.max(z.to(tl.float32), 0))
        if logsumexp is not None:
            # The largest, exp(0) = 1 each, are counted apart: beside them float32 would lose the small exponentials,
            # which are all that the entropy of a peaked row is made of.
            largest, others, products = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
            for first in tl.range(0, C, BLOCK):
                at = first + tl.arange(0, BLOCK)
                z = tl.load(source + at, mask=at < C, other=float("-inf")).to(tl.float32)
                d = (z - top) / TEMPERATURE
                is_largest = d == 0
                e = tl.where(is_largest, 0.0, tl.exp(d))  # a NaN stays one
                largest += tl.sum(is_largest.to(tl.int32), 0).to(tl.float64)
                others += tl.sum(e, 0).to(tl.float64)
                products += tl.sum(tl.where(e > 0, e * d, 0.0), 0).to(tl.float64)
            log_sum = tl.log(largest + others)
            top = top.to(tl.float64)
            masked = top == float("-inf")  # a row of nothing but -inf, where d is NaN
            tl.store(logsumexp + rank, tl.where(masked, top, top / TEMPERATURE + log_sum))
            tl.store(entropy + rank, (log_sum - products / (largest + others)).to(tl.float32))
