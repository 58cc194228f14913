"""The Triton kernel of softmax_statistics: a program a row, which it reads once."""

import triton
import triton.language as tl

from ..triton_common import INF

LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(1e30)  # a finite distance, whose exponential is 0: 0 * FAR = 0


@triton.jit
def rescaled(whole, rest, product, distance):
    """A lane's sums [LANES] float32, held against a maximum that is larger by `distance` <= 0: then what was largest
    is one of the rest."""
    rest = tl.where(distance < 0, whole, rest)
    scale = tl.exp2(distance)
    return whole * scale, rest * scale, (product + distance * rest) * scale


@triton.jit
def tile_sums(x, base, scale):
    """Of [LANES, WIDTH] logits to [LANES] sums."""
    d = (x - base[:, None]) * scale
    e = tl.exp2(d)
    return tl.sum(e, 1), tl.sum(tl.where(d == 0, 0.0, e), 1), tl.sum(tl.maximum(d, -FAR) * e, 1)


@triton.jit(do_not_specialize=["stride", "shift", "C"])  # of any width and place the same is made
def statistics_kernel(
    logits,  # [R, C] from the `shift`th element on, rows `stride` apart
    stride,
    shift,
    logsumexp,  # [R] out: float64
    entropy,  # [R] out: float32
    C,
    scale,  # log2(e) / T
    temperature: tl.float64,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,  # logits in 16 bytes
):
    """By lanes, with d = (z - max) / T for the maximum of a lane's own logits: the sum of exp(d) over all of them and
    over all but the largest, and the sum of d exp(d), d in units of ln 2. Lanes meet after the last logit.

    Beside the largest, exp(0) = 1, a float32 loses the small exponentials, which are all that the entropy of a peaked
    row is made of: so they have a sum of their own."""
    row = tl.program_id(0).to(tl.int64)
    first = row * stride + shift
    whole_first = (first + WIDTH - 1) // WIDTH * WIDTH  # of the vectors that lie in the row whole
    lead = (whole_first - first).to(tl.int32)
    inside = tl.maximum(C - lead, 0) // WIDTH * WIDTH
    lane = tl.arange(0, LANES)

    # What lies before and after them: a logit a lane.
    edge = tl.where(lane < WIDTH, lane, lead + inside + lane - WIDTH)
    mask = (edge < C) & tl.where(lane < WIDTH, lane < lead, lane < 2 * WIDTH)
    top = tl.load(logits + first + edge, mask=mask, other=-INF).to(tl.float32)
    whole = tl.exp2(top - tl.where(top == -INF, 0.0, top))
    rest = tl.zeros((LANES,), tl.float32)
    product = rest

    z = logits + whole_first
    at = lane[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for start in range(0, inside, 2 * LANES * WIDTH):
        j = start + at
        k = j + LANES * WIDTH
        x = tl.load(z + j, mask=j < inside, other=-INF, eviction_policy="evict_first").to(tl.float32)
        y = tl.load(z + k, mask=k < inside, other=-INF, eviction_policy="evict_first").to(tl.float32)
        new = tl.maximum(top, tl.maximum(tl.max(x, 1), tl.max(y, 1)))
        base = tl.where(new == -INF, 0.0, new)
        whole, rest, product = rescaled(whole, rest, product, tl.maximum((top - base) * scale, -FAR))
        x_whole, x_rest, x_product = tile_sums(x, base, scale)
        y_whole, y_rest, y_product = tile_sums(y, base, scale)
        whole += x_whole + y_whole
        rest += x_rest + y_rest
        product += x_product + y_product
        top = new

    highest = tl.max(top, 0)
    base = tl.where(highest == -INF, 0.0, highest)
    whole, rest, product = rescaled(whole, rest, product, tl.maximum((top - base) * scale, -FAR))
    whole, rest, product = tl.sum(whole, 0), tl.sum(rest, 0), tl.sum(product, 0)
    others = rest.to(tl.float64)
    log = tl.log(tl.where(whole < 1.5, 1.0 + others, whole.to(tl.float64)))  # below 2 there is one largest
    log = tl.where(whole < 1.00001, others - 0.5 * others * others, log)
    tl.store(logsumexp + row, highest.to(tl.float64) / temperature + log)
    tl.store(entropy + row, log.to(tl.float32) - LN2 * (product / whole))
