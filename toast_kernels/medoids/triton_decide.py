"""class_medoids' Triton kernels that decide: which rows may win, the exact costs of those, the first of the least.

Positions and offsets are those of triton_kernels.py. An item is a row that may win where its class has several; the
items of a class lie side by side, by number.
"""

import triton
import triton.language as tl

from ..triton_common import INF
from .reference import COSINE_FLOOR, TIE
from .triton_kernels import features, load_norms, load_tile, widen

RELATIVE_TIE = tl.constexpr(1 + TIE)
COSINE_TIE = tl.constexpr(COSINE_FLOOR)


@triton.jit
def tie(lowest, size, METRIC: tl.constexpr):
    """The largest cost that ties with the lowest."""
    return lowest * RELATIVE_TIE + (COSINE_TIE * size if METRIC == "cosine" else 0.0)


@triton.jit
def range_of_costs(x, cost, bound, at, inside, rounding):
    """(least, most) [B]: between them lies the exact cost, with its own rounding. Of rows that are not alive both are
    infinite."""
    value = tl.load(cost + at, inside, other=0.0)
    reach = tl.load(bound + at, inside, other=INF) + rounding * tl.abs(value)
    known = tl.abs(value) + reach < INF
    alive = tl.load(x.alive + at, inside, other=0) != 0
    return tl.where(alive, tl.where(known, value - reach, -INF), INF), tl.where(alive & known, value + reach, INF)


@triton.jit
def select(
    x,  # Rows
    cost,  # [N] float64
    bound,  # [N] float64
    medoids,  # [K] out: of classes with at most one row that may win
    items,  # [N] out: positions, ascending in a class
    first_item,  # [K] out: the class's first item
    item_count,  # [K] out: how many it has, 0 where the medoid is known
    counter,  # [1], raised to the number of items
    METRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0)
    begin = tl.load(x.offsets + c)
    end = tl.load(x.offsets + c + 1)
    counts = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counts += tl.load(x.alive + at, at < end, other=0).to(tl.int32)
    size = tl.sum(counts, 0)
    rounding = 2 * (size.to(tl.float64) + x.width + 32) * 2.0**-52
    lowest = tl.full((BLOCK,), INF, tl.float64)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _, most = range_of_costs(x, cost, bound, at, at < end, rounding)
        lowest = tl.minimum(lowest, most)
    highest = tie(tl.min(lowest, 0), size, METRIC)

    count = tl.zeros((), tl.int32)
    first = end
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        least, _ = range_of_costs(x, cost, bound, at, at < end, rounding)
        kept = (least <= highest) & (least < INF)
        count += tl.sum(kept.to(tl.int32), 0)
        first = tl.minimum(first, tl.min(tl.where(kept, at, end), 0))
    tl.store(medoids + c, tl.load(x.order + first, count > 0, other=-1))
    count = tl.where((count == 1) | (size <= 2), 0, count)  # of two rows both have the same cost
    to = tl.atomic_add(counter, count.to(tl.int64), sem="relaxed")
    tl.store(first_item + c, to)
    tl.store(item_count + c, count)
    for start in range(begin, tl.where(count > 0, end, begin), BLOCK):
        at = start + tl.arange(0, BLOCK)
        least, _ = range_of_costs(x, cost, bound, at, at < end, rounding)
        kept = (least <= highest) & (least < INF)
        tl.store(items + to + tl.cumsum(kept.to(tl.int32), 0) - 1, at, kept)
        to += tl.sum(kept.to(tl.int32), 0)


@triton.jit
def hash_items(
    x,  # Rows
    items,  # [N]
    counter,  # [1]
    hashes,  # [N] out: int64, the same for equal rows
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    count = tl.load(counter)
    width = x.width // ALIGN * ALIGN
    for first in range(tl.program_id(0).to(tl.int64) * ROWS, count, tl.num_programs(0).to(tl.int64) * ROWS):
        item = first + tl.arange(0, ROWS)
        row = tl.load(x.order + tl.load(items + item, item < count, other=0))
        hash = tl.zeros((ROWS,), tl.int64)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (item < count)[:, None] & (column < width)[None, :]
            value = widen(load_tile(x, row, column, inside, ALIGN))
            bits = tl.where(value == 0, 0.0, value).to(tl.int64, bitcast=True)  # -0 and 0 are equal
            mixed = (bits + (column.to(tl.int64) * 0x632BE59BD9B4E019)[None, :]) * 0x1E3779B97F4A7C15
            mixed = (mixed ^ (mixed >> 32)) * 0x4F1BBCDCBFA53E0B
            hash += tl.sum(tl.where(inside, mixed, 0), 1)
        tl.store(hashes + item, hash, item < count)


@triton.jit
def find_duplicates(
    x,  # Rows
    items,  # [N]
    first_item,  # [K]
    counter,  # [1]
    hashes,  # [N]
    duplicate,  # [N] out: int8, whether an item equals an earlier one of its class
    ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    width = x.width // ALIGN * ALIGN
    for item in range(tl.program_id(0).to(tl.int64), tl.load(counter), tl.num_programs(0)):
        own = tl.load(items + item)
        hash = tl.load(hashes + item)
        start = tl.load(first_item + tl.load(x.keys + own).to(tl.int32))
        found = item
        while (found == item) & (start < item):
            at = start + tl.arange(0, BLOCK)
            same = (at < item) & (tl.load(hashes + at, at < item, other=0) == hash)
            found = tl.min(tl.where(same, at, item), 0)
            start += BLOCK
        row = tl.load(x.order + own + tl.arange(0, 1))
        other = tl.load(x.order + tl.load(items + found) + tl.arange(0, 1))
        same = (found < item).to(tl.int32)
        for begin in range(0, width * same, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            inside = (column < width)[None, :]
            differs = load_tile(x, row, column, inside, ALIGN) != load_tile(x, other, column, inside, ALIGN)
            same = tl.minimum(same, 1 - tl.max(tl.max(differs.to(tl.int32), 1), 0))
        tl.store(duplicate + item, same.to(tl.int8))


@triton.jit
def runs_of(count, slots, RUNS: tl.constexpr):
    """Into how many runs a class is cut for an exact cost, so that there are no more partial costs than slots."""
    return tl.maximum(tl.minimum(slots // tl.maximum(count, 1), RUNS), 1)


@triton.jit
def exact_costs(
    x,  # Rows
    items,  # [N]
    duplicate,  # [N] int8
    counter,  # [1]
    costs,  # [slots] out: float64, [items, runs] of an item to the rows of one run; of duplicates undefined
    slots,
    METRIC: tl.constexpr,
    ALIGN: tl.constexpr,
    RUNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    width = x.width // ALIGN * ALIGN
    count = tl.load(counter)
    runs = runs_of(count, slots, RUNS)
    for number in range(tl.program_id(0).to(tl.int64), count * runs, tl.num_programs(0)):
        own = tl.load(items + number // runs)
        c = tl.load(x.keys + own).to(tl.int32)
        begin = tl.load(x.offsets + c)
        end = tl.load(x.offsets + c + 1)
        length = (end - begin + runs - 1) // runs
        begin += number % runs * length
        end = tl.minimum(end, begin + length)
        end = tl.where(tl.load(duplicate + number // runs) != 0, begin, end)
        own_row = tl.load(x.order + own + tl.arange(0, 1))
        own_first, own_second = load_norms(x, own + tl.arange(0, 1), METRIC)
        total = tl.zeros((ROWS,), tl.float64)
        for start in range(begin, end, ROWS):
            position = start + tl.arange(0, ROWS)
            others = (position < end) & (position != own)
            others &= tl.load(x.alive + position, position < end, other=0) != 0
            row = tl.load(x.order + position, position < end, other=0)
            first, second = load_norms(x, tl.minimum(position, end - 1), METRIC)
            distance = tl.zeros((ROWS,), tl.float64)
            for start_column in range(0, width, COLUMNS):
                column = start_column + tl.arange(0, COLUMNS)
                used = (column < width)[None, :]
                inside = others[:, None] & used
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
            total += tl.where(others, distance, 0.0)
        tl.store(costs + number, tl.sum(total))


@triton.jit
def load_exact(costs, duplicate, item, inside, runs, RUNS: tl.constexpr):
    """[B] float64: exact costs of items; infinite for duplicates, and where a cost overflows."""
    run = tl.arange(0, RUNS)
    used = inside[:, None] & (run < runs)[None, :]
    cost = tl.sum(tl.load(costs + (item * runs)[:, None] + run[None, :], used, other=0.0), 1)
    known = inside & (tl.load(duplicate + item, inside, other=1) == 0) & (cost < INF)
    return tl.where(known, cost, INF)


@triton.jit
def decide(
    x,  # Rows
    items,  # [N]
    first_item,  # [K]
    item_count,  # [K]
    counter,  # [1]
    duplicate,  # [N] int8
    costs,  # [slots] float64
    medoids,  # [K] out: of classes with items
    slots,
    METRIC: tl.constexpr,
    RUNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0)
    count = tl.load(item_count + c)
    if count > 0:
        first = tl.load(first_item + c)
        runs = runs_of(tl.load(counter), slots, RUNS)
        lowest = tl.full((BLOCK,), INF, tl.float64)
        for start in range(0, count, BLOCK):
            k = start + tl.arange(0, BLOCK)
            lowest = tl.minimum(lowest, load_exact(costs, duplicate, first + k, k < count, runs, RUNS))
        highest = tie(tl.min(lowest, 0), tl.load(x.offsets + c + 1) - tl.load(x.offsets + c), METRIC)
        found = count
        for start in range(0, count, BLOCK):
            k = start + tl.arange(0, BLOCK)
            cost = load_exact(costs, duplicate, first + k, k < count, runs, RUNS)
            found = tl.minimum(found, tl.min(tl.where((k < count) & (cost <= highest), k, count), 0))
        tl.store(medoids + c, tl.load(x.order + tl.load(items + first + found)))
