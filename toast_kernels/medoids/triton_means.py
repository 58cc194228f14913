"""class_medoids' Triton kernels for sqeuclidean, cosine and jeffreys: costs from the means of the classes; README.md.

Positions and offsets are those of triton_kernels.py. Classes are cut into pieces of some rows.
"""

import triton
import triton.language as tl

from ..triton_common import INF
from .triton_kernels import class_of, features, load_norms, load_tile, widen


@triton.jit
def piece_of(x, number, piece_offsets, classes, PIECE: tl.constexpr):
    """(class, first position, end) of a piece."""
    c = class_of(number, piece_offsets, classes, 32)
    begin = tl.load(x.offsets + c) + (number - tl.load(piece_offsets + c)) * PIECE
    return c, begin, tl.minimum(tl.load(x.offsets + c + 1), begin + PIECE)


@triton.jit
def add_features(
    x,  # Rows; sqeuclidean, not AGAIN: alive becomes 0 where a value is not finite, and such values are left out
    piece_offsets,  # [K + 1]
    sums,  # [pieces, F, D] out: float64, of the features of the rows that are alive; F = 2 for jeffreys
    classes,  # K
    AGAIN: tl.constexpr,  # only pieces with a row that is not
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    if number < tl.load(piece_offsets + classes):
        _, begin, end = piece_of(x, number, piece_offsets, classes, PIECE)
        width = x.width // ALIGN * ALIGN
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        out = column < width
        if AGAIN:
            whole_piece = begin + tl.arange(0, PIECE)
            dead = 1 - tl.min(tl.load(x.alive + whole_piece, whole_piece < end, other=1).to(tl.int32), 0)
            end = tl.where(dead != 0, end, begin)
            out &= tl.full((COLUMNS,), 1, tl.int32) == dead
        sum_f = tl.zeros((ROWS, COLUMNS), tl.float64)
        sum_g = tl.zeros((ROWS, COLUMNS), tl.float64)
        for start in range(begin, end, ROWS):
            position = start + tl.arange(0, ROWS)
            row = tl.load(x.order + position, position < end, other=0)
            inside = (position < end)[:, None] & (column < width)[None, :]
            if METRIC == "sqeuclidean" and not AGAIN:
                f = widen(load_tile(x, row, column, inside, ALIGN))
                inside &= tl.abs(f) < INF
                sum_f += tl.where(inside, f, 0.0)
                whole = tl.min((tl.abs(f) < INF).to(tl.int32), 1)
                tl.store(x.alive + position, whole.to(tl.int8), (position < end) & (whole == 0))
            else:
                first, second = load_norms(x, tl.minimum(position, end - 1), METRIC)
                f, g = features(load_tile(x, row, column, inside, ALIGN), first, second, METRIC)
                inside &= (tl.load(x.alive + position, position < end, other=0) != 0)[:, None]
                sum_f += tl.where(inside, f, 0.0)
                sum_g += tl.where(inside, g, 0.0)
        if METRIC == "jeffreys":
            tl.store(sums + number * 2 * width + column, tl.sum(sum_f, 0), out)
            tl.store(sums + number * 2 * width + width + column, tl.sum(sum_g, 0), out)
        else:
            tl.store(sums + number * width + column, tl.sum(sum_f, 0), out)


@triton.jit
def weights(x, position, inside, METRIC: tl.constexpr):
    """[B] float64: 1 for rows that count in a mean, 0 for others: zero rows do not for cosine."""
    counted = tl.load(x.alive + position, inside, other=0) != 0
    if METRIC == "cosine":
        counted &= tl.load(x.norms + 2 * position + 1, inside, other=0.0) > 0
    return counted.to(tl.float64)


@triton.jit
def class_means(
    x,  # Rows
    piece_offsets,  # [K + 1]
    sums,  # [pieces, W] float64
    means,  # [K, W] out: float64
    width,  # W
    METRIC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    c = tl.program_id(0).to(tl.int64)
    end = tl.load(x.offsets + c + 1)
    counts = tl.zeros((ROWS * COLUMNS,), tl.float64)
    for start in range(tl.load(x.offsets + c), end, ROWS * COLUMNS):
        position = start + tl.arange(0, ROWS * COLUMNS)
        counts += weights(x, position, position < end, METRIC)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(piece_offsets + c + 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(tl.load(piece_offsets + c), end, ROWS):
        piece = start + tl.arange(0, ROWS)
        inside = (piece < end)[:, None] & (column < width)[None, :]
        total += tl.load(sums + (piece * width)[:, None] + column[None, :], inside, other=0.0)
    mean = tl.sum(total, 0) / tl.maximum(tl.sum(counts, 0), 1.0)
    tl.store(means + c * width + column, mean, column < width)


@triton.jit
def deviations(
    x,  # Rows
    piece_offsets,  # [K + 1]
    means,  # [K, F, D] float64
    out,  # [N, 3] out: float64, F . G, |F|^2, |G|^2 with F = f - mean f, G = g - mean g
    classes,  # K
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    if number < tl.load(piece_offsets + classes):
        c, begin, end = piece_of(x, number, piece_offsets, classes, PIECE)
        width = x.width // ALIGN * ALIGN
        mean = means + c.to(tl.int64) * width * (2 if METRIC == "jeffreys" else 1)
        for start_row in range(begin, end, ROWS):
            position = start_row + tl.arange(0, ROWS)
            row = tl.load(x.order + position, position < end, other=0)
            first, second = load_norms(x, tl.minimum(position, end - 1), METRIC)
            dot = tl.zeros((ROWS,), tl.float64)
            ff = tl.zeros((ROWS,), tl.float64)
            gg = tl.zeros((ROWS,), tl.float64)
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                inside = (position < end)[:, None] & (column < width)[None, :]
                f, g = features(load_tile(x, row, column, inside, ALIGN), first, second, METRIC)
                f = tl.where(inside, f - tl.load(mean + column, column < width, other=0.0)[None, :], 0.0)
                ff += tl.sum(f * f, 1)
                if METRIC == "jeffreys":
                    g -= tl.load(mean + width + column, column < width, other=0.0)[None, :]
                    g = tl.where(inside, g, 0.0)
                    dot += tl.sum(f * g, 1)
                    gg += tl.sum(g * g, 1)
            if METRIC != "jeffreys":
                dot = ff
                gg = ff
            tl.store(out + 3 * position, dot, position < end)
            tl.store(out + 3 * position + 1, ff, position < end)
            tl.store(out + 3 * position + 2, gg, position < end)


@triton.jit
def mean_costs(
    x,  # Rows
    deviations,  # [N, 3] float64
    means,  # [K, F, D] float64
    cost,  # [N] out: float64
    bound,  # [N] out: float64, of the cost's error
    METRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """E_i = n F_i . G_i + sum of F_j . G_j, but for a factor."""
    c = tl.program_id(0).to(tl.int64)
    begin = tl.load(x.offsets + c)
    end = tl.load(x.offsets + c + 1)
    width = x.width
    sizes = tl.zeros((BLOCK,), tl.float64)
    counts = tl.zeros((BLOCK,), tl.float64)
    dots = tl.zeros((BLOCK,), tl.float64)
    ffs = tl.zeros((BLOCK,), tl.float64)
    ggs = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        sizes += tl.load(x.alive + position, position < end, other=0).to(tl.float64)
        weight = weights(x, position, position < end, METRIC)
        counts += weight
        dots += tl.where(weight > 0, tl.load(deviations + 3 * position, position < end, other=0.0), 0.0)
        ffs += tl.where(weight > 0, tl.load(deviations + 3 * position + 1, position < end, other=0.0), 0.0)
        ggs += tl.where(weight > 0, tl.load(deviations + 3 * position + 2, position < end, other=0.0), 0.0)
    size = tl.sum(sizes, 0)
    count = tl.sum(counts, 0)
    zeros = size - count
    dot_sum = tl.sum(dots, 0)
    ff_sum = tl.sum(ffs, 0)
    gg_sum = tl.sum(ggs, 0)
    mean = means + c * width * (2 if METRIC == "jeffreys" else 1)
    mean_f = length_of(mean, width, BLOCK) + tl.sqrt(ff_sum / tl.maximum(count, 1.0))
    mean_g = mean_f
    if METRIC == "jeffreys":
        mean_g = length_of(mean + width, width, BLOCK) + tl.sqrt(gg_sum / tl.maximum(count, 1.0))
    products = tl.sqrt(ff_sum) * tl.sqrt(gg_sum)
    half: tl.constexpr = 0.5 if METRIC == "cosine" else 1.0
    rounding = 2 * (size + width + 32) * 2.0**-52
    smallest = size * width * 2.0**-1022
    for start in range(begin, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < end
        dot = tl.load(deviations + 3 * position, inside, other=0.0)
        f = tl.sqrt(tl.load(deviations + 3 * position + 1, inside, other=0.0))
        g = tl.sqrt(tl.load(deviations + 3 * position + 2, inside, other=0.0))
        value = half * (count * dot + dot_sum) + zeros
        terms = half * (count * (f * g + f * mean_g + g * mean_f) + products) + zeros
        if METRIC == "cosine":  # a zero row lies at distance 1 from every other
            zero = weights(x, position, inside, METRIC) == 0
            value = tl.where(zero, size - 1, value)
            terms = tl.where(zero, size, terms)
        tl.store(cost + position, value, inside)
        tl.store(bound + position, rounding * terms + smallest, inside)


@triton.jit
def length_of(vector, width, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(vector + k, k < width, other=0.0)
        total += value * value
    return tl.sqrt(tl.sum(total, 0))
