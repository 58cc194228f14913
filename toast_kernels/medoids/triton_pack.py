"""class_medoids' Triton kernels for euclidean and cityblock that pack rows: centred, scaled, rounded, in class order.

Positions and offsets are those of triton_kernels.py; README.md has the bounds and their proof. Positions are cut into
panels, and one or two panels are packed at a time. A step is about a panel's pairs, or about the pairs between two
panels: those of the one class that lies in both, if any.
"""

import triton
import triton.language as tl

from ..triton_common import INF
from .triton_kernels import exponent_of, in_working_precision, load_tile, power_of_two

LIMIT = tl.constexpr(32768.0)  # of packed values; beyond it the rounding error says how far a value was moved
LARGEST = tl.constexpr(6)  # the sample's largest |x - centre| is brought to [2^6, 2^7)
SMALLEST_HALF = tl.constexpr(2.0**-14)  # normal number of float16
RADIUS = tl.constexpr(380)  # float64: classes with a radius outside 2^-380 .. 2^380 get exact costs only


@triton.jit
def centre_row(begin, c, SPARSE: tl.constexpr):
    """Where a class has its centre: at its number, or at a third of its first position, which no other class of at
    least three rows has."""
    return begin // 3 if SPARSE else c


@triton.jit
def sample_classes(
    x,  # Rows
    centres,  # [., D] out: of x's dtype
    top,  # [K] int32, raised to the exponent of the largest |x - centre| of the sample
    SPARSE: tl.constexpr,
    ALIGN: tl.constexpr,
    SAMPLE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program for each class of at least three rows, and each block of columns: means of up to SAMPLE rows."""
    c = tl.program_id(0).to(tl.int64)
    begin = tl.load(x.offsets + c)
    size = tl.load(x.offsets + c + 1) - begin
    width = x.width // ALIGN * ALIGN
    if size > 2:
        count = tl.minimum(size, SAMPLE)
        k = tl.arange(0, SAMPLE)
        row = tl.load(x.order + begin + k * size // count, k < count, other=0)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (k < count)[:, None] & (column < width)[None, :]
        value = in_working_precision(load_tile(x, row, column, inside, ALIGN))
        inside &= tl.abs(value) < INF
        value = tl.where(inside, value, 0.0)
        mean = tl.sum(value, 0) / tl.maximum(tl.sum(inside.to(tl.int32), 0), 1).to(value.dtype)
        mean = tl.where(tl.abs(mean) < INF, mean, 0.0).to(centres.dtype.element_ty)
        off = tl.where(inside, tl.abs(value - in_working_precision(mean)[None, :]), 0.0)
        largest = exponent_of(tl.max(tl.max(off, 1), 0).to(tl.float64))
        tl.store(centres + centre_row(begin, c, SPARSE) * width + column, mean, column < width)
        tl.atomic_max(top + c, largest, sem="relaxed")


@triton.jit
def step_of(x, classes, first, second, panel):
    """(class, end): of panel `second` the positions up to the end are needed for the pairs with panel `first`. The end
    of a panel with itself is that of its rows, of two panels that of the class that lies in both."""
    first += tl.zeros((), tl.int64)
    itself = first == second
    last = first + panel - 1
    c = tl.load(x.keys + tl.where(itself, 0, last)).to(tl.int32)  # of two panels only that class can lie in both
    end = tl.load(x.offsets + tl.where(itself, classes, tl.minimum(c + 1, classes)))
    end = tl.where(itself | (c < classes), end, second)
    return c, tl.maximum(tl.minimum(end, second + panel), second)


@triton.jit
def pack_rows(
    x, row, c, centres, top, packed, local, used, fits, padded,
    SPARSE: tl.constexpr, METRIC: tl.constexpr, ALIGN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Packs rows [R], whose classes c are [R], or [1] where they are all of one. Returns sums [R] over the columns,
    float32: of |y|^2 and of the squares of what rounding took off (cityblock: of |y| and of the absolute values), the
    second NaN where a value is not finite."""
    width = x.width // ALIGN * ALIGN
    centre_rows = centre_row(tl.load(x.offsets + c), c.to(tl.int64), SPARSE)
    factor = factor_of(tl.load(top + c), x.data.dtype.element_ty)
    sizes = tl.zeros(row.shape, tl.float32)
    errors = tl.zeros(row.shape, tl.float32)
    for start in range(0, padded, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = used[:, None] & (column < width)[None, :]
        value = in_working_precision(load_tile(x, row, column, inside, ALIGN))
        centre = tl.load(centres + (centre_rows * width)[:, None] + column[None, :], (column < width)[None, :], other=0)
        z = tl.where(inside, (value - in_working_precision(centre)) * factor[:, None].to(value.dtype), 0.0)
        finite = tl.abs(value) < INF
        y = tl.where(finite, tl.minimum(tl.maximum(z, -LIMIT), LIMIT), 0.0).to(packed.dtype.element_ty)
        tl.store(packed + (local * padded)[:, None] + column[None, :], y, fits[:, None] & (column < padded)[None, :])
        off = tl.where(finite, z - y.to(z.dtype), float("nan")).to(tl.float32)
        y = y.to(tl.float32)
        sizes += tl.sum(y * y if METRIC == "euclidean" else tl.abs(y), 1)
        errors += tl.sum(off * off if METRIC == "euclidean" else tl.abs(off), 1)
    return sizes, errors


@triton.jit
def pack(
    x,  # Rows; alive is out
    centres,  # [., D]
    top,  # [K]
    packed,  # [panel, padded] out: float16 (cityblock: float32), rows y of panel `second`, 0 after the last one
    squares,  # [N] out: float32, |y|^2 (cityblock: anything not negative), -1 where the row is not finite
    errors,  # [N] out: float32, at least the distance by which rounding moved the row
    classes,  # K
    first,
    second,
    panel,
    padded,  # columns, a multiple of COLUMNS of the tiles
    SPARSE: tl.constexpr,
    METRIC: tl.constexpr,
    TILE: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    _, end = step_of(x, classes, first, second, panel)
    filled = tl.where(end > second, tl.minimum(end - second + TILE, panel), 0)  # as far as the last tile may reach
    for start_row in range(tl.program_id(0).to(tl.int64) * ROWS, filled, tl.num_programs(0).to(tl.int64) * ROWS):
        local = start_row + tl.arange(0, ROWS)
        fits = local < filled
        position = second + local
        used = position < end
        row = tl.load(x.order + position, used, other=0)
        c = tl.load(x.keys + position, used, other=0).to(tl.int32)
        one = tl.min(tl.where(used, c, classes), 0)
        one = tl.where(one == tl.max(tl.where(used, c, 0), 0), one, -1)
        if one >= 0:  # one centre, which is loaded once for all rows
            square, error = pack_rows(
                x, row, one + tl.zeros((1,), tl.int32), centres, top, packed, local, used, fits, padded,
                SPARSE, METRIC, ALIGN, COLUMNS,
            )  # fmt: skip
        else:
            square, error = pack_rows(
                x, row, c, centres, top, packed, local, used, fits, padded, SPARSE, METRIC, ALIGN, COLUMNS
            )

        # What rounding z takes off is a part of the length. Subnormal numbers may be taken as 0: float32, and by matrix
        # units float16, which moves the row and makes |y|^2 too large.
        if METRIC == "euclidean":
            length = tl.sqrt(square) + tl.sqrt(error)
            moved = tl.sqrt(error) + tl.sqrt(padded * 1.0) * (2 * SMALLEST_HALF)
        else:
            length = square + error
            moved = error + padded * 2.0**-31
            square = tl.zeros((ROWS,), tl.float32)
        moved = (moved + 1.2e-7 * length) * 1.001
        if x.data.dtype.element_ty == tl.float64:
            radius = tl.load(top + c) - 1023
            moved = tl.where((radius > -RADIUS) & (radius < RADIUS), moved, INF)
        finite = error == error
        tl.store(squares + position, tl.where(finite, square, -1.0), used)
        tl.store(errors + position, tl.where(finite, moved, 0.0), used)
        tl.store(x.alive + position, finite.to(tl.int8), used)


@triton.jit
def factor_of(top, dtype: tl.constexpr):
    """float64 powers of two that are normal in the working precision."""
    most: tl.constexpr = 1000 if dtype == tl.float64 else 93
    return power_of_two(tl.minimum(tl.maximum(1023 + LARGEST - top, -most), most))
