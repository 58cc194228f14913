"""class_medoids on a GPU: Triton kernels (triton_kernels.py, triton_pairs.py), sorts and selections by torch.

Nothing waits for the GPU: what depends on the data (how many tiles, which candidates) stays on it, in tensors whose
sizes follow from N, D and K.
"""

import math
from typing import NamedTuple

import torch
import triton

from . import triton_kernels as kernels
from . import triton_pairs as pairs
from .reference import COSINE_FLOOR, TIE, raise_label

EPS = 2.0**-52
UNIT = 2.0**-24  # unit roundoff of float32
SMALLEST = 2.0**-1022
RADIUS = {torch.float64: 2.0**400}  # classes with a larger one, or one smaller than its inverse, get exact costs only
MAX_WIDTH = 1 << 20  # beyond that float32 sums bound nothing
PIECE = 512  # rows added up by one program
RUNS = 16  # runs of rows of a class that are added up side by side for an exact cost,
SLOTS = 1 << 21  # fewer where there would be more partial costs than this


class Config(NamedTuple):
    """How a kernel is launched: rows and columns of what a program holds at a time."""

    rows: int
    columns: int
    warps: int
    stages: int
    programs: int = 1  # a multiprocessor, for kernels whose programs loop over tiles or candidates
    fused: bool = False  # multiply-add; without it a row's features are the same numbers in every kernel


# The fast formulas that nominate: from pairs of rows, with their tiles, or from means. A metric in neither has none:
# exact costs alone decide.
FROM_MEANS = ("sqeuclidean", "cosine", "jeffreys")

# Chosen without a GPU, by what the compilers make of them (tests/compile_only.py).
ROW_TILE = Config(16, 32, 8, 1, programs=4)
REDUCTION = Config(32, 64, 8, 1)
PAIR_TILES = {
    "euclidean": Config(64, 64, 8, 2, programs=2, fused=True),
    "cityblock": Config(64, 1, 4, 1, programs=2, fused=True),
}
WIDE_PAIR_TILE = Config(128, 64, 16, 2, fused=True)  # euclidean where rows are read in 16 bytes, on sm_80 and sm_90


def class_medoids(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    mask,  # [N] bool or None
    num_classes,
    metric,
    ignore_index,
):  # -> [K] int64
    if not len(x):
        return torch.full((num_classes,), -1, dtype=torch.int64, device=x.device)
    with torch.cuda.device_of(x):
        classes = _Classes(x, labels, mask, num_classes, metric, ignore_index)
        return classes.decide(classes.candidates(*classes.fast_costs()))


class _Classes:
    """The rows that are used, by class: order [N], offsets [K + 1] into it, class_of [N], the class at each position.

    Arrays [N] are by position, and at positions from offsets[K] on (rows that are left out) they hold anything.
    """

    def __init__(self, x, labels, mask, num_classes, metric, ignore_index):
        self.metric, self.num_classes, self.device = metric, num_classes, x.device
        self.rows, self.width = x.shape
        self.x = kernels.Matrix(x, *x.stride(), self.width)
        self.align = _alignment(x)
        self.dtype = x.dtype
        finite, self.hashes = self._empty(self.rows, dtype=torch.bool), self._empty(self.rows, dtype=torch.int64)
        self.norms = self._empty(self.rows, 2)
        self._launch(
            kernels.scan_rows, ROW_TILE, (_ceil(self.rows, ROW_TILE.rows),),
            self.x, self.rows, finite, self.hashes, self.norms, METRIC=metric, ALIGN=self.align,
        )  # fmt: skip

        labels = labels.long()
        used = finite & (labels != ignore_index)
        if mask is not None:
            used = used & mask
        wrong = used & ((labels < 0) | (labels >= num_classes))
        self._refuse(wrong, labels, ignore_index)
        key = labels.where(used & ~wrong, num_classes)
        by_hash = self.hashes.argsort(stable=True)  # equal rows of a class come to lie side by side, in their order
        self.class_of, by_class = key[by_hash].sort(stable=True)
        self.order = by_hash[by_class]
        self.offsets = torch.searchsorted(
            self.class_of, torch.arange(num_classes + 1, dtype=torch.int64, device=self.device)
        )
        self.used = self.class_of < num_classes
        self.class_of = self.class_of.clamp_max(num_classes - 1)
        self.sizes = self.offsets.diff()

    def _refuse(self, wrong, labels, ignore_index):
        if self.device.type == "cpu":
            if wrong.any():
                at = int(wrong.nonzero()[0])
                raise_label(at, int(labels[at]), self.num_classes, ignore_index)
        else:
            torch._assert_async(
                ~wrong.any(),
                f"labels must be in [0, {self.num_classes}) (num_classes) or ignore_index = {ignore_index}",
            )

    def fast_costs(self):
        """Of each row a cost [N] and a bound [N] on its error, float64; an infinite bound says nothing."""
        if self.metric in PAIR_TILES:
            return self.costs_from_pairs()
        if self.metric in FROM_MEANS:
            return self.costs_from_means()
        nothing = torch.zeros(self.rows, dtype=torch.float64, device=self.device)
        return nothing, nothing + math.inf

    def costs_from_pairs(self):
        """euclidean, cityblock: sums over all pairs of a class, in multiples of a power of two of the class's own."""
        config, (rows, width) = self._pair_tile(), (self.rows, self.width)
        means = self._sums_of_features() / self.sizes[:, None]
        size = self._deviations(means)[:, 1]
        radius = -self._by_class(-size, "min")
        if self.metric == "euclidean":
            radius = radius.sqrt()
            slope = math.sqrt(2 * (width + 32) * UNIT)
        else:
            slope = 1.06 * (width + 8) * UNIT
        largest = RADIUS.get(self.dtype, 2.0**100)
        scored = (radius > 1 / largest) & (radius < largest) & (width < MAX_WIDTH)

        squares, errors = self._empty(2, rows, dtype=torch.float32)
        self._over_pieces(
            pairs.measure_rounding, ROW_TILE, ROW_TILE.rows,
            means, radius, squares, errors, self.num_classes, METRIC=self.metric,
        )  # fmt: skip
        tiles = _ceil(self.sizes, config.rows)
        costs, bounds = torch.zeros(2, rows, dtype=torch.int64, device=self.device)
        self._launch(
            pairs.pair_tiles, config, (self._programs(config),),
            self.x, self.order, self.offsets, _offsets((tiles * (tiles + 1) // 2).where(scored, 0)), means, radius,
            squares, errors, costs, bounds, slope, self.num_classes,
            METRIC=self.metric, ALIGN=self.align, names=("TILE", "COLUMNS"),
        )  # fmt: skip
        cost = costs.double() / pairs.UNITS.value
        bound = 1.001 * bounds.double() / pairs.UNITS.value + 160 * UNIT * cost
        return cost, bound.where(scored[self.class_of], math.inf)

    def costs_from_means(self):
        """sqeuclidean, cosine, jeffreys: E_i = n F_i . G_i + sum of F_j . G_j, but for a factor; README.md."""
        sums, size = self._sums_of_features(), self.sizes.double()
        count, half, zero = size, 1.0, torch.zeros_like(self.used)
        if self.metric == "cosine":
            half, zero = 0.5, self.norms[self.order, 1] == 0
            count = self._by_class((~zero).double(), "sum")
        means = sums / count.clamp_min(1)[:, None]
        deviations = self._deviations(means)
        dots, ff, gg = self._by_class(deviations, "sum").unbind(1)
        mean_f, mean_g = (
            mean.norm(dim=1) + (square / count.clamp_min(1)).sqrt()
            for mean, square in ((means[:, : self.width], ff), (means[:, -self.width :], gg))
        )
        products = ff.sqrt() * gg.sqrt()

        dot, f, g = deviations[:, 0], deviations[:, 1].sqrt(), deviations[:, 2].sqrt()
        count, size, dots, products, mean_f, mean_g = (
            value[self.class_of] for value in (count, size, dots, products, mean_f, mean_g)
        )
        zeros = size - count
        cost = (half * (count * dot + dots) + zeros).where(~zero, size - 1)
        terms = half * (count * (f * g + f * mean_g + g * mean_f) + products) + zeros
        return cost, self._rounding(size) * terms.where(~zero, size) + size * self.width * SMALLEST

    def candidates(self, cost, bound):
        """[N] bool: rows that may be the medoid, of equal ones the first."""
        reach = bound + self._rounding(self.sizes.double()[self.class_of]) * cost
        reach = reach.where(cost.abs() + reach < math.inf, math.inf)  # which says nothing: the row stays
        highest = self._by_class((cost + reach).where(reach < math.inf, math.inf), "min")
        kept = self.used & ((reach == math.inf) | (cost - reach <= self._tie(highest)[self.class_of]))
        duplicate = torch.empty_like(kept)
        self._launch(
            pairs.find_duplicates, ROW_TILE, (_ceil(self.rows, ROW_TILE.rows),),
            self.x, self.order, self.class_of, self.hashes, kept, duplicate, self.rows, ALIGN=self.align,
        )  # fmt: skip
        return kept & ~duplicate

    def decide(self, kept):
        """[K] int64: of each class the candidate with the smallest exact cost, -1 where there is none."""
        runs = max(1, min(RUNS, SLOTS // self.rows))
        costs = self._empty(self.rows, runs)
        first_kept = (~kept).byte().argsort(stable=True)
        self._launch(
            pairs.exact_costs, ROW_TILE, (self._programs(ROW_TILE),),
            self.x, self.order, self.offsets, self.class_of, self.norms, first_kept, kept.sum(),
            self._by_class(kept.double(), "sum"), costs, runs, METRIC=self.metric, ALIGN=self.align,
        )  # fmt: skip
        cost = costs.sum(dim=1).where(kept, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
        tied = kept & (cost <= self._tie(self._by_class(cost, "min"))[self.class_of])
        first = self._by_class(self.order.double().where(tied, math.inf), "min")
        return first.where(self.sizes > 0, -1).long()

    def _tie(self, lowest):
        """[K]: the largest cost that ties with the lowest."""
        slack = COSINE_FLOOR * self.sizes if self.metric == "cosine" else 0.0
        return lowest * (1 + TIE) + slack

    def _rounding(self, size):
        """Relative rounding error of adding up `size` distances in float64, generously."""
        return 2 * (size + self.width + 32) * EPS

    def _sums_of_features(self):
        """[K, D] float64, jeffreys [K, 2 D]."""
        width = self.width * (2 if self.metric == "jeffreys" else 1)
        partial = self._empty(self._max_pieces(PIECE), width)
        offsets = self._over_pieces(
            kernels.add_features, REDUCTION, PIECE, self.norms, partial, self.num_classes,
            columns=self.width, METRIC=self.metric, PIECE=PIECE,
        )  # fmt: skip
        return self._by_class(partial, "sum", offsets)

    def _deviations(self, means):
        out = self._empty(self.rows, 3)
        self._over_pieces(
            kernels.deviations, ROW_TILE, ROW_TILE.rows, self.norms, means, out, self.num_classes, METRIC=self.metric
        )
        return out

    def _by_class(self, values, op, offsets=None):
        """[K] or [K, W]: the sum or the smallest of each class's rows, always taken in the same order."""
        columns = 1 if values.dim() == 1 else values.shape[1]
        out = self._empty(self.num_classes, *values.shape[1:])
        config = REDUCTION if columns > 4 else REDUCTION._replace(rows=512, columns=4)
        self._launch(
            kernels.reduce_rows, config, (self.num_classes, _ceil(columns, config.columns)),
            values.contiguous(), self.offsets if offsets is None else offsets, out, columns, OP=op,
        )  # fmt: skip
        return out

    def _over_pieces(self, kernel, config, piece, *arguments, columns=None, **constants):
        """A program for each piece of so many rows (and each block of columns); returns the pieces' offsets."""
        offsets = _offsets(_ceil(self.sizes, piece))
        grid = (self._max_pieces(piece), *([] if columns is None else [_ceil(columns, config.columns)]))
        self._launch(
            kernel, config, grid, self.x, self.order, self.offsets, offsets, *arguments, ALIGN=self.align, **constants
        )
        return offsets

    def _pair_tile(self):
        if self.metric == "euclidean" and not triton.knobs.runtime.interpret:
            target = triton.runtime.driver.active.get_current_target()
            reads_wide = self.dtype != torch.float64 and self.align * self.dtype.itemsize >= 16
            if reads_wide and target.backend == "cuda" and target.arch < 100:
                return WIDE_PAIR_TILE
        return PAIR_TILES[self.metric]

    def _max_pieces(self, piece):
        return min(self.rows, self.num_classes) + self.rows // piece

    def _programs(self, config):
        if self.device.type == "cpu":
            return config.programs
        return config.programs * torch.cuda.get_device_properties(self.device).multi_processor_count

    def _launch(self, kernel, config, grid, *arguments, names=("ROWS", "COLUMNS"), **constants):
        kernel[grid](
            *arguments, **constants, **dict(zip(names, config[:2], strict=True)),
            num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=config.fused,
        )  # fmt: skip

    def _empty(self, *shape, dtype=torch.float64):
        return torch.empty(shape, dtype=dtype, device=self.device)


def _alignment(x):
    """The largest power of two up to 16 that divides a row's width and stride in elements."""
    return math.gcd(16, x.stride(0), x.shape[1]) if x.stride(1) == 1 else 1


def _ceil(number, divisor):
    return (number + divisor - 1) // divisor


def _offsets(counts):
    """[K + 1] int64: the sum of the counts before each, and the total."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
