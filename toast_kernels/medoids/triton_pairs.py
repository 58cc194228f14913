"""class_medoids' Triton kernels that work on pairs of rows: tiles of approximate distances, and exact costs.

Positions, pieces and offsets are those of triton_kernels.py; README.md has the bounds and their proof.
"""

import triton
import triton.language as tl

from .triton_kernels import class_of, features, load_norms, load_tile, piece_of, power_of_two, widen

SMALLEST_HALF = tl.constexpr(2.0**-14)  # normal number of float16
LONGEST = tl.constexpr(13)  # a class's longest row gets a length in [2^13, 2^14)
PADDING = tl.constexpr(2.0**-20)  # of the lengths, so that their bound covers FLOOR too
FLOOR = tl.constexpr(2.0**-80)  # of squared distances
UNITS = tl.constexpr(2.0**20)  # sums over tiles are integers, so that their order does not matter


@triton.jit
def in_working_precision(value):
    """float64 stays, all else becomes float32."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def rounded(value, mean, scale, METRIC: tl.constexpr):
    """(value - mean) * scale as it enters the tiles, and the multiple of the mean that was taken off (any point common
    to the class will do). value * scale is exact: fused or not, the difference is the same."""
    value = in_working_precision(value)
    centre = (mean * scale).to(value.dtype)
    y = (value * scale.to(value.dtype) - centre).to(tl.float32)
    if METRIC == "euclidean":
        y = y.to(tl.float16)
    return y, centre


@triton.jit
def measure_rounding(
    x,  # Matrix [N, D]
    order,  # [N]
    offsets,  # [K + 1]
    piece_offsets,  # [K + 1]
    means,  # [K, D] float64
    radius,  # [K] float64
    squares,  # [N] out: float32, |y|^2 of the rounded row y; euclidean only
    errors,  # [N] out: float32, at least the distance by which rounding moved the row
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
        mean = means + c.to(tl.int64) * width
        scale = power_of_two(tl.load(radius + c), LONGEST)
        square = tl.zeros((ROWS,), tl.float64)
        error = tl.zeros((ROWS,), tl.float64)
        lost = tl.zeros((ROWS,), tl.float64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (position < end)[:, None] & (column < width)[None, :]
            value = load_tile(x, row, column, inside, ALIGN)
            y, centre = rounded(value, tl.load(mean + column, column < width, other=0.0)[None, :], scale, METRIC)
            exact = tl.where(inside, widen(value) * scale - centre.to(tl.float64), 0.0)
            y = tl.where(inside, widen(y), 0.0)
            off = tl.abs(exact - y) + tl.abs(exact) * 2.0**-52
            if METRIC == "cityblock":
                error += tl.sum(off, 1)
            else:
                # Some matrix units take subnormal numbers as 0: both are covered.
                subnormal = tl.where(tl.abs(y) < SMALLEST_HALF, tl.abs(y), 0.0)
                off += subnormal
                error += tl.sum(off * off, 1)
                lost += tl.sum(subnormal * subnormal, 1)
                square += tl.sum(y * y, 1)
        if METRIC == "euclidean":
            error = tl.sqrt(error) + tl.sqrt(lost)
            tl.store(squares + position, square.to(tl.float32), position < end)
        tl.store(errors + position, (error * (1 + 1e-6) + PADDING).to(tl.float32), position < end)


@triton.jit
def pair_tiles(
    x,  # Matrix [N, D]
    order,  # [N]
    offsets,  # [K + 1]
    tile_offsets,  # [K + 1]
    means,  # [K, D] float64
    radius,  # [K] float64
    squares,  # [N] float32
    errors,  # [N] float32
    costs,  # [N] int64, added to: sums of distances between the rounded rows, in 1 / UNITS
    bounds,  # [N] int64, added to: sums of the bounds on their errors, in 1 / UNITS
    slope,  # relative error of a squared distance (euclidean: its square root), or of a distance (cityblock)
    classes,  # K
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    width = x.width // ALIGN * ALIGN
    for number in range(tl.program_id(0).to(tl.int64), tl.load(tile_offsets + classes), tl.num_programs(0)):
        c = class_of(number, tile_offsets, classes)
        begin = tl.load(offsets + c)
        end = tl.load(offsets + c + 1)
        # Tile (i, j), i <= j, of a triangle has number i + j (j + 1) / 2; the root may be off by one where it is whole.
        inner = number - tl.load(tile_offsets + c)
        j = ((tl.sqrt((8 * inner + 1).to(tl.float64)) - 1) / 2).to(tl.int64)
        j = tl.where(j * (j + 1) // 2 > inner, j - 1, j)
        j = tl.where((j + 1) * (j + 2) // 2 <= inner, j + 1, j)
        i = inner - j * (j + 1) // 2

        start_a = begin + i * TILE
        start_b = begin + j * TILE
        local = tl.arange(0, TILE)
        inside_a = local < tl.minimum(end - start_a, TILE).to(tl.int32)
        inside_b = local < tl.minimum(end - start_b, TILE).to(tl.int32)
        row_a = tl.load(order + start_a + local, inside_a, other=0)
        row_b = tl.load(order + start_b + local, inside_b, other=0)
        mean = means + c.to(tl.int64) * width
        scale = power_of_two(tl.load(radius + c), LONGEST)
        total = tl.zeros((TILE, TILE), tl.float32)
        if METRIC == "euclidean":
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                used = (column < width)[None, :]
                centre = tl.load(mean + column, column < width, other=0.0)[None, :]
                a = load_tile(x, row_a, column, inside_a[:, None] & used, ALIGN)
                b = load_tile(x, row_b, column, inside_b[:, None] & used, ALIGN)
                a, _ = rounded(a, centre, scale, METRIC)
                b, _ = rounded(b, centre, scale, METRIC)
                total = tl.dot(a, tl.trans(b), total)
        else:
            at_a = x.data + row_a * (x.row_stride // ALIGN * ALIGN)
            at_b = x.data + row_b * (x.row_stride // ALIGN * ALIGN)
            for k in range(0, width):
                centre = tl.load(mean + k)
                a, _ = rounded(tl.load(at_a), centre, scale, METRIC)
                b, _ = rounded(tl.load(at_b), centre, scale, METRIC)
                total += tl.abs(a[:, None] - b[None, :])
                at_a += x.column_stride
                at_b += x.column_stride

        after = local + tl.minimum(j - i, 1).to(tl.int32) * TILE
        pair = (local[:, None] < after[None, :]) & inside_b[None, :]
        if METRIC == "euclidean":
            square_a = tl.load(squares + start_a + local, inside_a, other=0.0)[:, None]
            square_b = tl.load(squares + start_b + local, inside_b, other=0.0)[None, :]
            square = tl.maximum(square_a + square_b - 2 * total, FLOOR)
            inverse = tl.rsqrt(square)
            total = square * inverse
        total = tl.where(pair, total, 0.0)
        add_fixed(costs + start_a + local, tl.sum(total, 1), inside_a)
        add_fixed(costs + start_b + local, tl.sum(total, 0), inside_b)
        if METRIC == "euclidean":
            near = slope * (length_of(square_a) + length_of(square_b))
            total = near * tl.minimum(near * inverse, 1.0)
        else:
            total = slope * total
        total += tl.load(errors + start_a + local, inside_a, other=0.0)[:, None]
        total += tl.load(errors + start_b + local, inside_b, other=0.0)[None, :]
        total = tl.where(pair, total, 0.0)
        add_fixed(bounds + start_a + local, tl.sum(total, 1), inside_a)
        add_fixed(bounds + start_b + local, tl.sum(total, 0), inside_b)


@triton.jit
def length_of(square):
    """At least the root, and never 0."""
    return tl.sqrt(square) * (1 + 1e-6) + PADDING


@triton.jit
def add_fixed(out, value, inside):
    tl.atomic_add(out, (value * UNITS).to(tl.int64), inside, sem="relaxed")


@triton.jit
def find_duplicates(
    x,  # Matrix [N, D]
    order,  # [N]
    classes,  # [N] of the positions
    hashes,  # [N] of the rows
    candidate,  # [N] bool, of the positions
    duplicate,  # [N] out: bool, candidates that are equal to the position before in their class
    rows,  # N
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    second = (position > 0) & (position < rows)
    row = tl.load(order + position, second, other=0)
    before = tl.load(order + position - 1, second, other=0)
    equal = second & (tl.load(candidate + position, second, other=0) != 0)
    equal &= tl.load(classes + position, second, other=0) == tl.load(classes + position - 1, second, other=0)
    equal &= tl.load(hashes + row) == tl.load(hashes + before)
    width = x.width // ALIGN * ALIGN
    same = equal.to(tl.int32)
    for start in range(0, width * tl.max(same), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = equal[:, None] & (column < width)[None, :]
        differs = load_tile(x, row, column, inside, ALIGN) != load_tile(x, before, column, inside, ALIGN)
        same = tl.minimum(same, 1 - tl.max(differs.to(tl.int32), 1))
    tl.store(duplicate + position, same != 0, position < rows)


@triton.jit
def exact_costs(
    x,  # Matrix [N, D]
    order,  # [N]
    offsets,  # [K + 1]
    classes,  # [N] of the positions
    norms,  # [N, 2]
    candidates,  # [N] positions, of which the first `count` are used
    count,  # []
    left,  # [K] float64: how many candidates a class has
    costs,  # [N, runs] out: float64, of a candidate to the rows of one run; defined for candidates only
    runs,  # runs of rows that a class is cut into, which are worked on side by side
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    width = x.width // ALIGN * ALIGN
    for item in range(tl.program_id(0).to(tl.int64), tl.load(count) * runs, tl.num_programs(0)):
        own = tl.load(candidates + item // runs)
        run = item % runs
        c = tl.load(classes + own)
        begin = tl.load(offsets + c)
        end = tl.load(offsets + c + 1)
        length = (end - begin + runs - 1) // runs
        first_position = begin + run * length
        end = tl.minimum(end, first_position + length)
        end = tl.where(tl.load(left + c) == 1, first_position, end)  # wins whatever it costs
        own_row = tl.load(order + own + tl.arange(0, 1))
        own_first, own_second = load_norms(norms, own_row, METRIC)
        total = tl.zeros((ROWS,), tl.float64)
        for start in range(first_position, end, ROWS):
            position = start + tl.arange(0, ROWS)
            row = tl.load(order + position, position < end, other=0)
            first, second = load_norms(norms, row, METRIC)
            distance = tl.zeros((ROWS,), tl.float64)
            for start_column in range(0, width, COLUMNS):
                column = start_column + tl.arange(0, COLUMNS)
                used = (column < width)[None, :]
                inside = (position < end)[:, None] & used
                f, g = features(load_tile(x, row, column, inside, ALIGN), first, second, METRIC)
                own_f, own_g = features(load_tile(x, own_row, column, used, ALIGN), own_first, own_second, METRIC)
                if METRIC == "cityblock":
                    term = tl.abs(f - own_f)
                else:
                    tl.static_assert(
                        METRIC == "euclidean" or METRIC == "sqeuclidean" or METRIC == "cosine" or METRIC == "jeffreys",
                        "exact_costs lacks this metric",
                    )
                    term = (f - own_f) * (g - own_g)
                distance += tl.sum(tl.where(inside, term, 0.0), 1)
            if METRIC == "euclidean":
                distance = tl.sqrt(distance)
            elif METRIC == "cosine":
                zero = (tl.sum(second, 1) == 0) | (tl.sum(own_second, 1) == 0)
                distance = tl.where(zero, 1.0, 0.5 * distance)
            total += tl.where((position < end) & (position != own), distance, 0.0)
        tl.store(costs + own * runs + run, tl.sum(total))
