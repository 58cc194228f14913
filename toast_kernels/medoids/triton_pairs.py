"""class_medoids' Triton kernels for euclidean and cityblock that add up distances: tiles of pairs of packed rows.

Positions and offsets are those of triton_kernels.py, panels and steps those of triton_pack.py; README.md has the proof.
"""

import triton
import triton.language as tl

from .triton_kernels import class_of
from .triton_pack import step_of

FLOOR = tl.constexpr(2.0**-40)  # of squared distances
CLOSE = tl.constexpr(64.0)  # pairs whose squared distance is less than so many times its error are close


@triton.jit
def triangle_tile(x, number, tile_offsets, classes, first, panel, TILE: tl.constexpr):
    """(class, first position of the rows, of the columns, end) of a tile of a panel's triangles."""
    c = class_of(number, tile_offsets, classes, 128)
    begin = tl.maximum(tl.load(x.offsets + c), first)
    # Tile (i, j), i <= j, of a triangle has number i + j (j + 1) / 2; the root may be off by one where it is whole.
    inner = number - tl.load(tile_offsets + c)
    j = ((tl.sqrt((8 * inner + 1).to(tl.float64)) - 1) / 2).to(tl.int64)
    j = tl.where(j * (j + 1) // 2 > inner, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= inner, j + 1, j)
    i = inner - j * (j + 1) // 2
    return c, begin + i * TILE, begin + j * TILE, tl.minimum(tl.load(x.offsets + c + 1), first + panel)


@triton.jit
def products(
    rows, columns, at_a, at_b, panel, padded, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNKED: tl.constexpr, DESCRIPTORS: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """[TILE, TILE] float32: of packed rows from at_a on with rows from at_b on, anything beyond the panel. CHUNKED:
    COLUMNS of a row at a time are summed on their own; `-=`, since Triton turns `+=` into one sum over all."""
    total = tl.zeros((TILE, TILE), tl.float32)
    if DESCRIPTORS:
        at_a = at_a.to(tl.int32)
        at_b = at_b.to(tl.int32)
        if SYMMETRIC and at_a == at_b:
            for k in tl.range(0, padded, COLUMNS):
                both = rows.load([at_a, k])
                if CHUNKED:
                    total -= tl.dot(both, tl.trans(both))
                else:
                    total = tl.dot(both, tl.trans(both), total)
        else:
            for k in tl.range(0, padded, COLUMNS, num_stages=3):
                a = rows.load([at_a, k])
                b = columns.load([at_b, k])
                if CHUNKED:
                    total -= tl.dot(a, tl.trans(b))
                else:
                    total = tl.dot(a, tl.trans(b), total)
    else:
        k = tl.arange(0, COLUMNS)
        a = rows + (tl.minimum(at_a + tl.arange(0, TILE), panel - 1) * padded)[:, None] + k[None, :]
        b = columns + (tl.minimum(at_b + tl.arange(0, TILE), panel - 1) * padded)[None, :] + k[:, None]
        for _ in tl.range(0, padded, COLUMNS):
            if CHUNKED:
                total -= tl.dot(tl.load(a), tl.load(b))
            else:
                total = tl.dot(tl.load(a), tl.load(b), total)
            a += COLUMNS
            b += COLUMNS
    return -total if CHUNKED else total


@triton.jit
def halves(tile):
    """The left and the right half of the columns [R, C]."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def add_tile(
    out, errors, total, squares, square_a, index_a, start_a, start_b, end_a, end_b, after, near, units,
    FAST_ROOT: tl.constexpr,
):  # fmt: skip
    """Adds to out, by rows and by columns, the distances d of a tile's pairs, or their errors near / d: d^2 is at least
    near. Returns the largest 1 / d. A quarter of the columns at a time, since all of them need too many registers."""
    left, right = halves(total)
    parts = halves(left) + halves(right)
    width: tl.constexpr = total.shape[1] // 4
    by_row = tl.zeros((total.shape[0],), tl.float32)
    most = tl.zeros((total.shape[0],), tl.float32)
    for part in tl.static_range(4):
        local = part * width + tl.arange(0, width)
        inside = start_b + local < end_b
        square_b = tl.load(squares + start_b + local, inside, other=-1.0)
        pair = index_a[:, None] < tl.where(square_b < 0, -1, after + local)[None, :]
        square = tl.maximum(square_a[:, None] + square_b[None, :] - 2 * parts[part], near)
        if FAST_ROOT:
            inverse = tl.inline_asm_elementwise(
                "rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [square], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            inverse = tl.rsqrt(square)
        inverse = tl.where(pair, inverse, 0.0)
        most = tl.maximum(most, tl.max(inverse, 1))
        value = inverse * tl.where(errors, near, square)
        by_row += tl.sum(value, 1)
        add_fixed(out + start_b + local, tl.sum(value, 0), units, inside)
    local = tl.arange(0, total.shape[0])
    add_fixed(out + start_a + local, by_row, units, start_a + local < end_a)
    return tl.max(most, 0)


@triton.jit
def pair_tiles(
    x,  # Rows
    rows,  # packed panel `first`: a descriptor, or [panel, padded]
    columns,  # packed panel `second`
    tile_offsets,  # [K + 1] of panel `first`
    squares,  # [N] float32
    sums,  # [2, N] int64, added to: distances between the packed rows, and their errors in tiles with close pairs, in
    # 1 / units
    count,  # N
    worst,  # [K] float32, raised to the largest error of a distance in other tiles
    kappa,  # squared distances err by less than kappa (|a| + |b|)^2
    units,
    classes,  # K
    first,
    second,
    panel,
    padded,
    METRIC: tl.constexpr,
    CROSS: tl.constexpr,  # panels differ
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # a tile on the diagonal loads its rows once
    FAST_ROOT: tl.constexpr,
):
    first += tl.zeros((), tl.int64)
    second += tl.zeros((), tl.int64)
    if CROSS:
        c, end_b = step_of(x, classes, first, second, panel)
        end_a = first + panel
        begin_a = tl.maximum(tl.load(x.offsets + tl.minimum(c, classes - 1)), first)
        side = (end_b - second + TILE - 1) // TILE
        tiles = (end_a - begin_a + TILE - 1) // TILE * side
    else:
        tiles = tl.load(tile_offsets + classes)
    local = tl.arange(0, TILE)
    number = tl.program_id(0).to(tl.int64)
    errors = tl.zeros((), tl.int32)
    while number < tiles:
        if CROSS:
            start_a = begin_a + number // side * TILE
            start_b = second + number % side * TILE
        else:
            c, start_a, start_b, end_a = triangle_tile(x, number, tile_offsets, classes, first, panel, TILE)
            end_b = end_a
        at_a = start_a - first
        at_b = start_b - second
        if METRIC == "euclidean":
            total = products(
                rows, columns, at_a, at_b, panel, padded, TILE, COLUMNS, CHUNKED, DESCRIPTORS, SYMMETRIC and not CROSS
            )
        else:
            a = rows + tl.minimum(at_a + local, panel - 1) * padded
            b = columns + tl.minimum(at_b + local, panel - 1) * padded
            total = tl.zeros((TILE, TILE), tl.float32)
            for k in range(0, padded):
                total += tl.abs(tl.load(a + k)[:, None] - tl.load(b + k)[None, :])

        position_a = start_a + local
        position_b = start_b + local
        inside_a = position_a < end_a
        inside_b = position_b < end_b
        square_a = tl.load(squares + position_a, inside_a, other=-1.0)
        square_b = tl.load(squares + position_b, inside_b, other=-1.0)
        index_a = tl.where(square_a < 0, 2 * TILE, local)  # pairs have the smaller one in the row
        after = tl.minimum(start_b - start_a, 1).to(tl.int32) * TILE
        if METRIC == "euclidean":
            length = tl.sqrt(tl.maximum(tl.max(square_a, 0), 0.0)) + tl.sqrt(tl.maximum(tl.max(square_b, 0), 0.0))
            near = kappa * length * length + FLOOR
            most = near * add_tile(
                sums + errors * count, errors != 0, total, squares, square_a, index_a, start_a, start_b, end_a, end_b,
                after, near, units, FAST_ROOT,
            )  # fmt: skip
            # Close pairs are rare, and shall not widen the bounds of all rows: their tile is done again for the errors.
            # Sums of both at once would take registers in every tile.
            close = most * most * CLOSE > near
            if not close:
                tl.atomic_max(worst + c, most, sem="relaxed")
            errors = tl.where(close, 1 - errors, 0)
        else:
            total = tl.where(index_a[:, None] < tl.where(square_b < 0, -1, after + local)[None, :], total, 0.0)
            add_fixed(sums + position_a, tl.sum(total, 1), units, inside_a)
            add_fixed(sums + position_b, tl.sum(total, 0), units, inside_b)
        number += tl.where(errors == 0, tl.num_programs(0), 0)


@triton.jit
def add_fixed(out, value, units, inside):
    tl.atomic_add(out, (value * units).to(tl.int64), inside, sem="relaxed")


@triton.jit
def pair_costs(
    x,  # Rows
    sums,  # [2, N] int64
    count,  # N
    worst,  # [K] float32
    errors,  # [N] float32
    cost,  # [N] out: float64
    bound,  # [N] out: float64, of the cost's error
    relative,  # error of the sums
    units,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0)
    begin = tl.load(x.offsets + c)
    end = tl.load(x.offsets + c + 1)
    counts = tl.zeros((BLOCK,), tl.float64)
    lost = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counts += tl.load(x.alive + at, at < end, other=0).to(tl.float64)
        lost += tl.load(errors + at, at < end, other=0.0).to(tl.float64)
    size = tl.sum(counts, 0)
    common = tl.sum(lost, 0) + tl.load(worst + c).to(tl.float64) * size
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(sums + at, at < end, other=0).to(tl.float64) / units
        off = common + size * tl.load(errors + at, at < end, other=0.0).to(tl.float64)
        off += tl.load(sums + count + at, at < end, other=0).to(tl.float64) / units
        # A unit is lost in each sum of a tile, and a tile has rows of one panel.
        off = 1.001 * off + relative * value + 2 * (end - begin + 64) / units
        tl.store(cost + at, value, at < end)
        tl.store(bound + at, off, at < end)
