"""class_medoids' Triton kernels that work on rows one by one; README.md has the formulas, triton.py launches.

Rows are worked on by position: sorted by class, equal rows side by side. order [N] holds the row number at each
position, and class c has the positions offsets[c] to offsets[c + 1] - 1. A class is cut into pieces of some rows, or
into the tiles of a triangle; which class a piece belongs to is looked up in the pieces' own offsets.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))


class Matrix(NamedTuple):
    data: Any  # [N, D], any strides
    row_stride: int
    column_stride: int
    width: int


@triton.jit
def widen(value):
    """To float64, by way of float32: the interpreter gets bfloat16 wrong otherwise."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32).to(tl.float64)


@triton.jit
def load_tile(x, rows, column, inside, ALIGN: tl.constexpr):
    """[R, C] of x at rows [R] and columns [C], 0 outside. That ALIGN divides the row stride makes the loads wide."""
    row = rows * (x.row_stride // ALIGN * ALIGN)
    return tl.load(x.data + row[:, None] + (column.to(tl.int64) * x.column_stride)[None, :], inside, other=0)


@triton.jit
def power_of_two(value, exponent):
    """2^(exponent - floor(log2 value)) of positive float64, its power within +-1000."""
    field = (value.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    field = tl.minimum(tl.maximum(field, 23), 2023)
    return ((2046 - field + exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def class_of(number, offsets, classes):
    """The class c with offsets[c] <= number < offsets[c + 1]."""
    low = tl.full((), 0, tl.int32)
    high = low + classes
    while high - low > 1:
        middle = (low + high) // 2
        below = tl.load(offsets + middle) <= number
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def piece_of(number, piece_offsets, offsets, classes, ROWS: tl.constexpr):
    """(class, first position, end of the class) of a piece of ROWS rows."""
    c = class_of(number, piece_offsets, classes)
    return c, tl.load(offsets + c) + (number - tl.load(piece_offsets + c)) * ROWS, tl.load(offsets + c + 1)


@triton.jit
def load_norms(norms, rows, METRIC: tl.constexpr):
    """What features() needs of rows [R]: [R, 1] each."""
    first = tl.zeros(rows.shape, tl.float64)
    second = first
    if METRIC == "cosine" or METRIC == "jeffreys":
        first = tl.load(norms + 2 * rows)
        second = tl.load(norms + 2 * rows + 1)
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
    x,  # Matrix [N, D]
    rows,  # N
    finite,  # [N] out: bool
    hashes,  # [N] out: int64, the same for equal rows
    norms,  # [N, 2] out: float64. cosine: a power of two and 1 / |x| after it, 0 for a zero row; jeffreys: max, log sum
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    width = x.width // ALIGN * ALIGN
    whole = tl.full((ROWS,), 1, tl.int32)
    hash = tl.zeros((ROWS,), tl.int64)
    largest = tl.full((ROWS,), 0 if METRIC == "cosine" else -INF, tl.float64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        value = widen(load_tile(x, row, column, inside, ALIGN))
        whole = tl.minimum(whole, tl.min((tl.abs(value) < INF).to(tl.int32), 1))
        bits = tl.where(value == 0, 0.0, value).to(tl.int64, bitcast=True)  # -0 and 0 are equal
        mixed = (bits + (column.to(tl.int64) * 0x632BE59BD9B4E019)[None, :]) * 0x1E3779B97F4A7C15
        mixed = (mixed ^ (mixed >> 32)) * 0x4F1BBCDCBFA53E0B
        hash += tl.sum(tl.where(inside, mixed, 0), 1)
        if METRIC == "cosine":
            largest = tl.maximum(largest, tl.max(tl.abs(value), 1))
        elif METRIC == "jeffreys":
            largest = tl.maximum(largest, tl.max(tl.where(inside, value, -INF), 1))
    tl.store(finite + row, whole != 0, row < rows)
    tl.store(hashes + row, hash, row < rows)

    if METRIC == "cosine" or METRIC == "jeffreys":
        first = power_of_two(largest, 0) if METRIC == "cosine" else largest
        total = tl.zeros((ROWS,), tl.float64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (row < rows)[:, None] & (column < width)[None, :]
            value = widen(load_tile(x, row, column, inside, ALIGN))
            if METRIC == "cosine":
                value = value * first[:, None]
                total += tl.sum(value * value, 1)
            else:
                total += tl.sum(tl.where(inside, tl.exp(value - first[:, None]), 0.0), 1)
        positive = tl.where(total > 0, total, 1.0)
        second = tl.where(total > 0, 1 / tl.sqrt(positive), 0.0) if METRIC == "cosine" else tl.log(positive)
        tl.store(norms + 2 * row, first, row < rows)
        tl.store(norms + 2 * row + 1, second, row < rows)


@triton.jit
def add_features(
    x,  # Matrix [N, D]
    order,  # [N]
    offsets,  # [K + 1]
    piece_offsets,  # [K + 1]
    norms,  # [N, 2]
    sums,  # [pieces, F, D] out: float64, of the pieces' features; F = 2 for jeffreys
    classes,  # K
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    if number < tl.load(piece_offsets + classes):
        _, begin, end = piece_of(number, piece_offsets, offsets, classes, PIECE)
        width = x.width // ALIGN * ALIGN
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        sum_f = tl.zeros((ROWS, COLUMNS), tl.float64)
        sum_g = tl.zeros((ROWS, COLUMNS), tl.float64)
        for start in range(0, PIECE, ROWS):
            position = begin + start + tl.arange(0, ROWS)
            row = tl.load(order + position, position < end, other=0)
            inside = (position < end)[:, None] & (column < width)[None, :]
            first, second = load_norms(norms, row, METRIC)
            f, g = features(load_tile(x, row, column, inside, ALIGN), first, second, METRIC)
            sum_f += tl.where(inside, f, 0.0)
            sum_g += tl.where(inside, g, 0.0)
        if METRIC == "jeffreys":
            tl.store(sums + number * 2 * width + column, tl.sum(sum_f, 0), column < width)
            tl.store(sums + number * 2 * width + width + column, tl.sum(sum_g, 0), column < width)
        else:
            tl.store(sums + number * width + column, tl.sum(sum_f, 0), column < width)


@triton.jit
def reduce_rows(
    values,  # [P, W] float64
    offsets,  # [K + 1] into P
    out,  # [K, W] out: float64, the sum, or the smallest, of each class's rows
    width,  # W
    OP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    c = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(offsets + c + 1)
    total = tl.full((ROWS, COLUMNS), 0.0 if OP == "sum" else INF, tl.float64)
    for start in range(tl.load(offsets + c), end, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (column < width)[None, :]
        value = tl.load(values + (row * width)[:, None] + column[None, :], inside, other=0.0 if OP == "sum" else INF)
        total = total + value if OP == "sum" else tl.minimum(total, value)
    result = tl.sum(total, 0) if OP == "sum" else tl.min(total, 0)
    tl.store(out + c * width + column, result, column < width)


@triton.jit
def deviations(
    x,  # Matrix [N, D]
    order,  # [N]
    offsets,  # [K + 1]
    piece_offsets,  # [K + 1]
    norms,  # [N, 2]
    means,  # [K, F, D] float64
    out,  # [N, 3] out: float64, F . G, |F|^2, |G|^2 with F = f - mean f, G = g - mean g; cityblock: the sum of |F|
    classes,  # K
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    if number < tl.load(piece_offsets + classes):
        c, begin, end = piece_of(number, piece_offsets, offsets, classes, ROWS)
        width = x.width // ALIGN * ALIGN
        position = begin + tl.arange(0, ROWS)
        row = tl.load(order + position, position < end, other=0)
        first, second = load_norms(norms, row, METRIC)
        mean = means + c.to(tl.int64) * width * (2 if METRIC == "jeffreys" else 1)
        dot = tl.zeros((ROWS,), tl.float64)
        ff = tl.zeros((ROWS,), tl.float64)
        gg = tl.zeros((ROWS,), tl.float64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (position < end)[:, None] & (column < width)[None, :]
            f, g = features(load_tile(x, row, column, inside, ALIGN), first, second, METRIC)
            f = tl.where(inside, f - tl.load(mean + column, column < width, other=0.0)[None, :], 0.0)
            if METRIC == "jeffreys":
                g = tl.where(inside, g - tl.load(mean + width + column, column < width, other=0.0)[None, :], 0.0)
                dot += tl.sum(f * g, 1)
                gg += tl.sum(g * g, 1)
            if METRIC == "cityblock":
                ff += tl.sum(tl.abs(f), 1)
            else:
                ff += tl.sum(f * f, 1)
        if METRIC != "jeffreys":
            dot = ff
            gg = ff
        if METRIC == "cosine":
            counts = (tl.sum(second, 1) > 0).to(tl.float64)  # zero rows do not
            dot, ff, gg = dot * counts, ff * counts, gg * counts
        tl.store(out + 3 * position, dot, position < end)
        tl.store(out + 3 * position + 1, ff, position < end)
        tl.store(out + 3 * position + 2, gg, position < end)
