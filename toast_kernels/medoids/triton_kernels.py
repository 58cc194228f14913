"""class_medoids' Triton kernels that put rows in order, and what all its kernels share; README.md has the formulas,
triton.py launches.

Rows are worked on by position: sorted by class, then by number; see Rows.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..triton_common import INF


class Matrix(NamedTuple):
    data: Any  # [N, D], any strides
    row_stride: int
    column_stride: int
    width: int


class Rows(NamedTuple):
    """A Matrix and its rows by position. Class c has the positions offsets[c] to offsets[c + 1] - 1; its rows with a
    value that is not finite lie among the others."""

    data: Any
    row_stride: int
    column_stride: int
    width: int
    order: Any  # [N] int64, the row number at each position
    keys: Any  # [N] int16 or int32, its class
    offsets: Any  # [K + 1] int64
    alive: Any  # [N] int8, 1 where the row is finite
    norms: Any  # [N, 2] float64, what features() needs, see scan_rows


@triton.jit
def widen(value):
    """To float64, by way of float32: the interpreter gets bfloat16 wrong otherwise."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32).to(tl.float64)


@triton.jit
def in_working_precision(value):
    """float64 stays, all else becomes float32."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def load_tile(x, rows, column, inside, ALIGN: tl.constexpr):
    """[R, C] of x at rows [R] and columns [C], 0 outside. That ALIGN divides the row stride makes the loads wide."""
    row = rows * (x.row_stride // ALIGN * ALIGN)
    return tl.load(x.data + row[:, None] + (column.to(tl.int64) * x.column_stride)[None, :], inside, other=0)


@triton.jit
def exponent_of(value):
    """int32 1023 + floor(log2 value) of positive float64, 0 of 0."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32)


@triton.jit
def power_of_two(exponent):
    """float64 2^exponent, for exponents within +-1022."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def class_of(number, offsets, classes, WAYS: tl.constexpr):
    """The class c with offsets[c] <= number < offsets[c + 1]; WAYS of them are looked at a time."""
    low = tl.zeros((), tl.int32)
    span = low + classes
    while span > 1:
        step = (span + WAYS - 1) // WAYS
        at = tl.arange(0, WAYS) * step
        below = (at < span) & (tl.load(offsets + low + at, at < span, other=0) <= number)
        passed = (tl.sum(below.to(tl.int32), 0) - 1) * step
        low += passed
        span = tl.minimum(step, span - passed)
    return low


@triton.jit
def make_keys(
    x,  # Matrix [N, D]
    labels,  # [N] int64 or int32
    label_stride,
    mask,  # [N] bool or None
    mask_stride,
    keys,  # [N] out: the label, K for rows that are left out
    first_wrong,  # [1] int64, lowered to the number of the first finite row whose label is out of range
    rows,  # N
    classes,  # K
    ignore_index,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label = tl.load(labels + row * label_stride, row < rows, other=0).to(tl.int64)
    used = (row < rows) & (label != ignore_index)
    if mask is not None:
        used &= tl.load(mask + row * mask_stride, row < rows, other=0) != 0
    good = used & (label >= 0) & (label < classes)
    tl.store(keys + row, tl.where(good, label, classes).to(keys.dtype.element_ty), row < rows)
    wrong = (used & ~good).to(tl.int32)
    any_wrong = tl.max(wrong, 0)
    for start in range(0, x.width * any_wrong, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = widen(load_tile(x, row, column, (wrong != 0)[:, None] & (column < x.width)[None, :], ALIGN))
        wrong = tl.minimum(wrong, tl.min((tl.abs(value) < INF).to(tl.int32), 1))
    if any_wrong > 0:
        tl.atomic_min(first_wrong, tl.min(tl.where(wrong != 0, row, rows), 0), sem="relaxed")


@triton.jit
def find_offsets(
    keys,  # [N] ascending
    offsets,  # [K + 1] out: int64, the first position whose key is at least c
    top,  # [K] out: int32, 0
    worst,  # [K] out: float32, 0
    counter,  # [1] out: int64, 0
    rows,  # N
    classes,  # K
    STEPS: tl.constexpr,  # of the binary search: 2^STEPS > N
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + rows
    for _ in range(STEPS):
        middle = (low + high) // 2
        open = low < high
        below = open & (tl.load(keys + middle, open, other=0).to(tl.int32) < c)
        low = tl.where(below, middle + 1, low)
        high = tl.where(open & ~below, middle, high)
    tl.store(offsets + c, low, c <= classes)
    tl.store(top + c, tl.zeros((BLOCK,), tl.int32), c < classes)
    tl.store(worst + c, tl.zeros((BLOCK,), tl.float32), c < classes)
    if tl.program_id(0) == 0:
        tl.store(counter, tl.zeros((), tl.int64))


@triton.jit
def count_parts(
    offsets,  # [K + 1]
    part_offsets,  # [P, K + 1] out: int64, the number of parts of the classes before
    classes,  # K
    panel,  # positions of a panel
    PART: tl.constexpr,
    TRIANGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program for each panel of positions. The rows that a class has there are cut into pieces of PART rows, or with
    TRIANGLE their pairs into the tiles of PART x PART of a triangle."""
    first = tl.program_id(0).to(tl.int64) * panel
    part_offsets += tl.program_id(0).to(tl.int64) * (classes + 1)
    total = tl.zeros((), tl.int64)
    tl.store(part_offsets, total)
    for start in range(0, classes, BLOCK):
        c = start + tl.arange(0, BLOCK)
        begin = tl.maximum(tl.load(offsets + c, c < classes, other=0), first)
        end = tl.minimum(tl.load(offsets + c + 1, c < classes, other=0), first + panel)
        parts = (tl.maximum(end - begin, 0) + PART - 1) // PART
        if TRIANGLE:
            parts = parts * (parts + 1) // 2
        tl.store(part_offsets + 1 + c, total + tl.cumsum(parts, 0), c < classes)
        total += tl.sum(parts, 0)


@triton.jit
def load_norms(x, position, METRIC: tl.constexpr):
    """What features() needs of the rows at positions [R]: [R, 1] each."""
    first = tl.zeros(position.shape, tl.float64)
    second = first
    if METRIC == "cosine" or METRIC == "jeffreys":
        first = tl.load(x.norms + 2 * position)
        second = tl.load(x.norms + 2 * position + 1)
    return first[:, None], second[:, None]


@triton.jit
def features(value, first, second, METRIC: tl.constexpr):
    """(f, g) of values [R, C], whose products the metric is made of: the row, at length 1, or p and log p."""
    f = widen(value)
    g = f
    if METRIC == "cosine":
        f = f * first * second
        g = f
    elif METRIC == "jeffreys":
        g = (f - first) - second
        f = tl.exp(g)
    return f, g


@triton.jit
def scan_rows(
    x,  # Rows; alive and norms are out
    rows,  # N
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """norms. cosine: a power of two, and 1 / |x| after it, 0 for a zero row; jeffreys: max, log sum."""
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    used = position < rows
    row = tl.load(x.order + position, used, other=0)
    width = x.width // ALIGN * ALIGN
    whole = tl.full((ROWS,), 1, tl.int32)
    largest = tl.full((ROWS,), 0 if METRIC == "cosine" else -INF, tl.float64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = used[:, None] & (column < width)[None, :]
        value = widen(load_tile(x, row, column, inside, ALIGN))
        whole = tl.minimum(whole, tl.min((tl.abs(value) < INF).to(tl.int32), 1))
        if METRIC == "cosine":
            largest = tl.maximum(largest, tl.max(tl.abs(value), 1))
        elif METRIC == "jeffreys":
            largest = tl.maximum(largest, tl.max(tl.where(inside, value, -INF), 1))
    tl.store(x.alive + position, whole.to(tl.int8), used)

    if METRIC == "cosine" or METRIC == "jeffreys":
        if METRIC == "cosine":
            exponent = tl.minimum(tl.maximum(exponent_of(largest), 23), 2023)
            first = power_of_two(1023 - exponent)
        else:
            first = largest
        total = tl.zeros((ROWS,), tl.float64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = used[:, None] & (column < width)[None, :]
            value = widen(load_tile(x, row, column, inside, ALIGN))
            if METRIC == "cosine":
                value = value * first[:, None]
                total += tl.sum(value * value, 1)
            else:
                total += tl.sum(tl.where(inside, tl.exp(value - first[:, None]), 0.0), 1)
        positive = tl.where(total > 0, total, 1.0)
        second = tl.where(total > 0, 1 / tl.sqrt(positive), 0.0) if METRIC == "cosine" else tl.log(positive)
        tl.store(x.norms + 2 * position, first, used)
        tl.store(x.norms + 2 * position + 1, second, used)
