"""Tiles of classes in blended_kl's Triton kernels: how they lie in threads, and how they are read and written."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from ..triton_common import INF

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# Of [ROWS, SEGMENTS, WIDTH] or [SEGMENTS, ROWS, WIDTH], and of LANES and VECTORS. A warp's lanes shall lie along WIDTH
# and then along rows, so that a row's sums are made in few lanes (of a row in LANES, in each by itself): after the last
# axis, Triton 3.6 takes the first, and later ones the second.
ROW_AXIS = tl.constexpr(0 if triton.__version__.startswith("3.6.") else 1)


class Vectors(NamedTuple):
    """The whole vectors of 16 bytes of a block of logits, in a row that begins anywhere in a vector."""

    start: Any  # of the block, counted in logits from the vector with the row's first
    lead: Any  # logits of that vector before the row


@triton.jit
def widened(x):
    """x as float32. Two bfloat16 in a register take an instruction each, where Triton's conversion takes three."""
    if x.dtype == tl.bfloat16 and not INTERPRETED and is_cuda():
        two: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        return tl.inline_asm_elementwise(two, "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2)
    else:
        return x.to(tl.float32)


@triton.jit
def wide(x, at):
    """What belongs to a row, over a tile of its classes `at`."""
    if len(x.shape) == 0 or len(x.shape) == len(at.shape):
        return x
    else:
        x = x[:, None]
        return x[:, None, :] if ROW_AXIS == 0 else x[None, :, :]


@triton.jit
def across(ROWS: tl.constexpr):
    """0 to ROWS - 1 along a tile's rows or lanes."""
    return tl.arange(0, ROWS)[:, None, None] if ROW_AXIS == 0 else tl.arange(0, ROWS)[None, :, None]


@triton.jit
def along(SEGMENTS: tl.constexpr):
    """0 to SEGMENTS - 1 along a tile's segments or vectors."""
    return tl.arange(0, SEGMENTS)[None, :, None] if ROW_AXIS == 0 else tl.arange(0, SEGMENTS)[:, None, None]


@triton.jit
def sums_along(x):
    """[ROWS] or [LANES] of a tile. What a thread has by itself comes first: fewer numbers are exchanged then."""
    return tl.sum(tl.sum(x, 1 - ROW_AXIS), 1)


@triton.jit
def maxima_along(x):
    """As sums_along."""
    return tl.max(tl.max(x, 1 - ROW_AXIS), 1)


@triton.jit
def minima_along(x):
    """As sums_along."""
    return tl.min(tl.min(x, 1 - ROW_AXIS), 1)


@triton.jit
def load(pointer, at, C, allowed, other, EXACT: tl.constexpr, POLICY: tl.constexpr):
    """pointer[at], float32; `other` beyond the last class (EXACT: there is none beyond) and in rows that are not
    allowed (None: all are)."""
    pointer = wide(pointer, at) + at
    if allowed is None:
        if EXACT:
            return widened(tl.load(pointer, eviction_policy=POLICY))
        mask = at < C
    elif len(allowed.shape) > 0:
        mask = (at < C) & wide(allowed, at)
    else:
        mask = at < tl.where(allowed, C, 0)
    return widened(tl.load(pointer, mask=mask, other=other, eviction_policy=POLICY))


@triton.jit
def there(at, C, FULL: tl.constexpr):
    """Whether a row has the classes `at`; known when compiled for the first FULL."""
    return (at < FULL) | (at < C)


@triton.jit
def inside(at, C):
    """0 <= at < C, in one comparison."""
    return at.to(tl.uint32) < C


@triton.jit
def block_of(vectors, start, tile, lead, C, EXACT: tl.constexpr, WIDTH: tl.constexpr, POLICY: tl.constexpr):
    """(classes, logits) of a block of a row that begins at `vectors`; or `lead` logits behind it, where lead is not
    None: whole vectors are read then, and what is not the row's is set to -inf, since a load with a mask that changes
    within vectors would go logit by logit."""
    if lead is None:
        at = start + tile
        return at, load(vectors, at, C, None, -INF, EXACT, POLICY)
    else:
        at = start + tile - lead
        z = load(vectors, start + tile, (lead + C + WIDTH - 1) // WIDTH * WIDTH, None, -INF, False, POLICY)
        return at, tl.where(inside(at, C), z, -INF)


@triton.jit
def store_block(vectors, start, tile, lead, g, C, EXACT: tl.constexpr, WIDTH: tl.constexpr):
    """Where block_of has a lead, the vectors that are the row's alone: see store_edges."""
    at = start + tile
    if lead is not None:
        first = at // WIDTH * WIDTH
        tl.store(vectors + at, g, mask=(first >= lead) & (first + WIDTH <= lead + C), eviction_policy="evict_first")
    elif EXACT:
        tl.store(vectors + at, g, eviction_policy="evict_first")
    else:
        tl.store(vectors + at, g, mask=at < C, eviction_policy="evict_first")


@triton.jit
def load_realigned(pointer, first, at, vectors, C, allowed, other, POLICY: tl.constexpr):
    """load(pointer + first, at, ...) of the classes `at` of `vectors`, from a row that begins elsewhere in its vectors
    than that of the logits: each vector is put together from the two that it lies in, which are read whole. pointer is
    a multiple of 16 bytes."""
    ELEMENT: tl.constexpr = pointer.dtype.element_ty
    BFLOAT16: tl.constexpr = pointer.dtype.element_ty == tl.bfloat16
    WIDTH: tl.constexpr = at.shape[2]
    LANES: tl.constexpr = at.shape[ROW_AXIS]
    VECTORS: tl.constexpr = at.shape[1 - ROW_AXIS]
    HALVES: tl.constexpr = ELEMENT.primitive_bitwidth == 16  # two in a word of 32 bits, of which a vector has 4
    start, lead = vectors
    shift = ((first - lead + WIDTH) % WIDTH).to(tl.int32)
    words = pointer.to(tl.pointer_type(tl.uint32)) + (first - lead - shift) // WIDTH * 4
    begin = (lead + shift) // WIDTH * 4  # the vectors with something of the row
    end = tl.where(allowed, (lead + shift + C + WIDTH - 1) // WIDTH * 4, 0)
    place = start // WIDTH * 4 + across(LANES) * 4 + along(VECTORS) * (LANES * 4) + tl.arange(0, 4)[None, None, :]
    low = tl.load(words + place, mask=(place >= begin) & (place < end), other=0, eviction_policy=POLICY)
    high = tl.load(words + place + 4, mask=place + 4 < end, other=0, eviction_policy=POLICY)
    w02, w13 = low.reshape(low.shape[0], low.shape[1], 2, 2).split()
    w46, w57 = high.reshape(low.shape[0], low.shape[1], 2, 2).split()
    w0, w2 = w02.split()
    w1, w3 = w13.split()
    w4, w6 = w46.split()
    w5, w7 = w57.split()
    step = shift // 2 if HALVES else shift
    two = step >= 2
    w0, w1, w2 = tl.where(two, w2, w0), tl.where(two, w3, w1), tl.where(two, w4, w2)
    w3, w4, w5 = tl.where(two, w5, w3), tl.where(two, w6, w4), tl.where(two, w7, w5)
    one = step % 2 == 1
    w0, w1, w2 = tl.where(one, w1, w0), tl.where(one, w2, w1), tl.where(one, w3, w2)
    w3, w4 = tl.where(one, w4, w3), tl.where(one, w5, w4)
    if HALVES:
        bits = shift % 2 * 16
        w0, w1, w2, w3 = later(w0, w1, bits), later(w1, w2, bits), later(w2, w3, bits), later(w3, w4, bits)
    value = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    if BFLOAT16:
        value = tl.join(value << 16, value & 0xFFFF0000)  # as float32
    elif HALVES:
        value = tl.join(value & 0xFFFF, value >> 16).to(tl.uint16)
    value = value.reshape(at.shape[0], at.shape[1], WIDTH)
    value = value.to(tl.float32 if BFLOAT16 else ELEMENT, bitcast=True).to(tl.float32)
    return tl.where(inside(at, C), value, other)


@triton.jit
def later(low, high, bits):
    """The 32 bits from `bits` on, of low and then high."""
    return (((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> bits.to(tl.uint64)).to(tl.uint32)
