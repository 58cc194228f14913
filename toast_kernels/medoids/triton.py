"""class_medoids on a GPU: launches of the Triton kernels (triton_*.py) and one sort.

Nothing waits for the GPU: what depends on the data (how many tiles, which candidates) stays on it, in tensors whose
sizes follow from N, D and K. So a call can be captured in a CUDA graph.
"""

import math
from typing import NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from . import triton_decide as decide
from . import triton_kernels as kernels
from . import triton_means as means
from . import triton_pack as packing
from . import triton_pairs as pairs
from .reference import raise_label

UNIT = 2.0**-24  # unit roundoff of float32
MAX_WIDTH = 1 << 20  # beyond that float32 sums bound nothing
SAMPLE = 16  # rows of a class that its centre and scale are taken from
PIECE = 256  # rows added up by one program
RUNS = 16  # runs of rows of a class that are added up side by side for an exact cost,
SLOTS = 1 << 21  # fewer where there would be more partial costs than this and N
PANEL_BYTES, MAX_PANELS = 1 << 29, 8  # packed rows are held a panel at a time, two where a class lies in several
BLOCK = 1024  # numbers that a program holds where it has one a row
ROW_TILE = (4096, 1024)  # elements that a program holds where it reads x, and columns at most
PROGRAMS = 8  # a multiprocessor, of kernels that loop over what is left


class PairTile(NamedTuple):
    """How pair_tiles is launched."""

    tile: int
    columns: int
    warps: int
    stages: int
    programs: int  # a multiprocessor


# The fast formulas that nominate: from pairs of rows, or from means. A metric in neither has none: exact costs decide.
FROM_PAIRS = ("euclidean", "cityblock")
FROM_MEANS = ("sqeuclidean", "cosine", "jeffreys")

CITYBLOCK = PairTile(64, 16, 4, 1, 2)
# The fastest of those tried on an H200: products summed over the whole row, and, of wide rows, in chunks.
WHOLE, CHUNKED = PairTile(128, 64, 4, 3, 2), PairTile(128, 128, 8, 5, 1)
WHOLE_WIDTH = 2048
POINTERS = PairTile(128, 32, 8, 3, 1)  # where there are no tensor descriptors


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
    if not x.shape[1]:
        x = x.new_zeros(len(x), 1)
    with torch.cuda.device_of(x):
        classes = _Classes(x, labels, mask, num_classes, metric, ignore_index)
        return classes.decide(*classes.nominate())


class _Classes:
    """The rows by class; see triton_kernels.py."""

    def __init__(self, x, labels, mask, num_classes, metric, ignore_index):
        self.metric, self.num_classes, self.device, self.dtype = metric, num_classes, x.device, x.dtype
        self.rows, self.width = x.shape
        matrix = kernels.Matrix(x, *x.stride(), self.width)
        self.align = _alignment(x)
        columns = min(ROW_TILE[1], max(16, triton.next_power_of_2(self.width)))
        self.tile = {"ROWS": min(64, ROW_TILE[0] // columns), "COLUMNS": columns}
        # Elements that are wide, or read one by one, need more registers each.
        wide = self.align * x.element_size() >= 16 and x.dtype != torch.float64
        self.on_x = {"ALIGN": self.align, **self.tile, "warps": 4 if wide else 8}

        keys = self._empty(self.rows, dtype=torch.int16 if num_classes < 1 << 15 else torch.int32)
        first_wrong = torch.full((1,), self.rows, dtype=torch.int64, device=self.device)
        self._launch(
            kernels.make_keys, (_ceil(self.rows, BLOCK // 4),),
            matrix, labels, labels.stride(0), mask, 0 if mask is None else mask.stride(0), keys, first_wrong,
            self.rows, num_classes, ignore_index, ALIGN=self.align, ROWS=BLOCK // 4, COLUMNS=8,
        )  # fmt: skip
        self._refuse(first_wrong, labels, ignore_index)
        keys, order = keys.sort(stable=True)
        offsets = self._empty(num_classes + 1, dtype=torch.int64)
        self.top = self._empty(num_classes, dtype=torch.int32)
        self.worst = self._empty(num_classes, dtype=torch.float32)
        self.counter = self._empty(1, dtype=torch.int64)
        self._launch(
            kernels.find_offsets, (_ceil(num_classes + 1, BLOCK),),
            keys, offsets, self.top, self.worst, self.counter, self.rows, num_classes,
            STEPS=self.rows.bit_length(), BLOCK=BLOCK,
        )  # fmt: skip
        norms = self._empty(self.rows if metric in ("cosine", "jeffreys") else 1, 2)
        self.x = kernels.Rows(*matrix, order, keys, offsets, self._empty(self.rows, dtype=torch.int8), norms)

    def _refuse(self, first_wrong, labels, ignore_index):
        if self.device.type == "cpu":
            at = int(first_wrong)
            if at < self.rows:
                raise_label(at, int(labels[at]), self.num_classes, ignore_index)
        else:
            torch._assert_async(
                first_wrong == self.rows,
                f"labels must be in [0, {self.num_classes}) (num_classes) or ignore_index = {ignore_index}",
            )

    def nominate(self):
        """Of each position a cost [N] and a bound [N] on its error, float64; an infinite bound says nothing. Also fills
        alive."""
        if self.metric in FROM_PAIRS and self.width < MAX_WIDTH:
            return self._from_pairs()
        if self.metric in FROM_MEANS:
            return self._from_means()
        self._scan()
        nothing = torch.zeros(self.rows, dtype=torch.float64, device=self.device)
        return nothing, nothing + math.inf

    def _from_pairs(self):
        """euclidean, cityblock: sums over all pairs of a class, in multiples of a power of two of the class's own."""
        euclidean = self.metric == "euclidean"
        tile, columns, chunked = self._pair_tile()
        padded = _ceil(self.width, columns) * columns
        depth = ROW_TILE[0] // 128 + 7 + _ceil(padded, self.tile["COLUMNS"])  # of the sums that make |y|^2
        kappa = squared_error(padded, columns if chunked else padded, depth)
        relative = (160 + (0 if euclidean else 1.06 * (self.width + 8))) * UNIT
        largest = 2**16 * (math.sqrt(padded) if euclidean else padded)  # distance
        units = 2.0 ** min(20, 61 - math.ceil(math.log2(self.rows * largest)))

        itemsize = 2 if euclidean else 4
        panels = min(MAX_PANELS, _ceil(self.rows * padded * itemsize, PANEL_BYTES))
        panel = _ceil(_ceil(self.rows, panels), tile.tile) * tile.tile
        panels = _ceil(self.rows, panel)
        offsets = self._count_parts(tile.tile, panels, panel, TRIANGLE=True)
        sparse = self.num_classes > self.rows // 3 + 1
        # 0 for classes of one or two rows, which are not looked at, but must not make numbers of what is not one.
        centres = torch.zeros(
            min(self.num_classes, self.rows // 3 + 1), self.width, dtype=self.dtype, device=self.device
        )
        sampled = max(16, self.tile["COLUMNS"] // 4)  # columns
        self._launch(
            packing.sample_classes, (self.num_classes, _ceil(self.width, sampled)),
            self.x, centres, self.top,
            SPARSE=sparse, ALIGN=self.align, SAMPLE=SAMPLE, COLUMNS=sampled,
        )  # fmt: skip

        packed = self._empty(min(2, panels), panel, padded, dtype=torch.float16 if euclidean else torch.float32)
        squares, errors = self._empty(2, self.rows, dtype=torch.float32)
        sums = torch.zeros(2, self.rows, dtype=torch.int64, device=self.device)
        descriptors = euclidean and _has_descriptors()
        for a in range(panels):
            for b in range(a, panels):
                of_a, of_b = packed[0], packed[min(b - a, 1)]
                step = self.num_classes, a * panel, b * panel, panel, padded
                blocks = _ceil(panel, self.tile["ROWS"])
                self._launch(
                    packing.pack, (blocks if a == b else min(blocks, self._programs(PROGRAMS)),),
                    self.x, centres, self.top, of_b, squares, errors, *step,
                    SPARSE=sparse, METRIC=self.metric, TILE=tile.tile, **self.on_x,
                )  # fmt: skip
                if descriptors:
                    of_a, of_b = (TensorDescriptor.from_tensor(y, [tile.tile, columns]) for y in (of_a, of_b))
                self._launch(
                    pairs.pair_tiles, (self._programs(tile.programs),),
                    self.x, of_a, of_b, offsets[a], squares, sums, self.rows, self.worst, kappa, units, *step,
                    METRIC=self.metric, CROSS=a != b, TILE=tile.tile, COLUMNS=columns, CHUNKED=chunked,
                    DESCRIPTORS=descriptors, SYMMETRIC=chunked, FAST_ROOT=_is_cuda(),
                    warps=tile.warps, stages=tile.stages, fused=True,
                )  # fmt: skip
        cost, bound = self._empty(2, self.rows)
        self._launch(
            pairs.pair_costs, (self.num_classes,),
            self.x, sums, self.rows, self.worst, errors, cost, bound, relative, units, BLOCK=BLOCK,
        )  # fmt: skip
        return cost, bound

    def _pair_tile(self):
        """(configuration, columns, whether products are summed in chunks of so many)"""
        if self.metric == "cityblock":
            return CITYBLOCK, CITYBLOCK.columns, False
        # For compute capability 10 Triton 3.6 does not compile sums over the whole row.
        chunked = self.width > WHOLE_WIDTH or (_is_cuda() and _compute_capability() >= 100)
        tile = (CHUNKED if chunked else WHOLE) if _has_descriptors() else POINTERS
        return tile, min(tile.columns, max(16, triton.next_power_of_2(self.width))), chunked

    def _from_means(self):
        """sqeuclidean, cosine, jeffreys: E_i = n F_i . G_i + sum of F_j . G_j, but for a factor; README.md."""
        width = self.width * (2 if self.metric == "jeffreys" else 1)
        pieces = min(self.rows, self.num_classes) + self.rows // PIECE
        offsets = self._count_parts(PIECE, 1, self.rows, TRIANGLE=False)
        sums, mean = self._empty(pieces, width), self._empty(self.num_classes, width)
        constants = {"METRIC": self.metric, "PIECE": PIECE, **self.on_x}
        squared = self.metric == "sqeuclidean"
        if squared:
            self.x.alive.fill_(1)
        else:
            self._scan()
        for again in (False, True) if squared else (False,):
            self._launch(
                means.add_features, (pieces, _ceil(self.width, self.tile["COLUMNS"])),
                self.x, offsets, sums, self.num_classes, AGAIN=again, **(constants | {"warps": 8}),
            )  # fmt: skip
        self._launch(
            means.class_means, (self.num_classes, _ceil(width, 256)),
            self.x, offsets, sums, mean, width, METRIC=self.metric, ROWS=8, COLUMNS=256,
        )  # fmt: skip
        deviations = self._empty(self.rows, 3)
        self._launch(
            means.deviations, (pieces,),
            self.x, offsets, mean, deviations, self.num_classes, **constants,
        )  # fmt: skip
        cost, bound = self._empty(2, self.rows)
        self._launch(
            means.mean_costs, (self.num_classes,),
            self.x, deviations, mean, cost, bound, METRIC=self.metric, BLOCK=BLOCK,
        )  # fmt: skip
        return cost, bound

    def decide(self, cost, bound):
        """[K] int64: of each class the row with the smallest exact cost, -1 where there is none."""
        medoids, items = self._empty(self.num_classes, dtype=torch.int64), self._empty(self.rows, dtype=torch.int64)
        first_item = self._empty(self.num_classes, dtype=torch.int64)
        item_count = self._empty(self.num_classes, dtype=torch.int32)
        self._launch(
            decide.select, (self.num_classes,),
            self.x, cost, bound, medoids, items, first_item, item_count, self.counter,
            METRIC=self.metric, BLOCK=BLOCK,
        )  # fmt: skip
        duplicate = self._duplicates(items, first_item)
        slots = max(SLOTS, self.rows)
        costs = self._empty(slots)
        self._launch(
            decide.exact_costs, (self._programs(PROGRAMS),),
            self.x, items, duplicate, self.counter, costs, slots, METRIC=self.metric, RUNS=RUNS, **self.on_x,
        )  # fmt: skip
        self._launch(
            decide.decide, (self.num_classes,),
            self.x, items, first_item, item_count, self.counter, duplicate, costs, medoids, slots,
            METRIC=self.metric, RUNS=RUNS, BLOCK=128,
        )  # fmt: skip
        return medoids

    def _duplicates(self, items, first_item):
        hashes, duplicate = self._empty(self.rows, dtype=torch.int64), self._empty(self.rows, dtype=torch.int8)
        programs = (self._programs(PROGRAMS),)
        self._launch(decide.hash_items, programs, self.x, items, self.counter, hashes, **self.on_x)
        self._launch(
            decide.find_duplicates, programs,
            self.x, items, first_item, self.counter, hashes, duplicate,
            ALIGN=self.align, COLUMNS=self.tile["COLUMNS"], BLOCK=BLOCK, warps=4,
        )  # fmt: skip
        return duplicate

    def _scan(self):
        blocks = _ceil(self.rows, self.tile["ROWS"])
        self._launch(kernels.scan_rows, (blocks,), self.x, self.rows, METRIC=self.metric, **self.on_x)

    def _count_parts(self, part, panels, panel, **constants):
        offsets = self._empty(panels, self.num_classes + 1, dtype=torch.int64)
        self._launch(
            kernels.count_parts, (panels,),
            self.x.offsets, offsets, self.num_classes, panel, PART=part, BLOCK=BLOCK, **constants,
        )  # fmt: skip
        return offsets

    def _programs(self, a_multiprocessor):
        if self.device.type == "cpu":
            return a_multiprocessor
        return a_multiprocessor * torch.cuda.get_device_properties(self.device).multi_processor_count

    def _launch(self, kernel, grid, *arguments, warps=4, stages=1, fused=False, **constants):
        """Not fused: multiplications and additions on their own, so that features are the same in every kernel."""
        kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=fused)

    def _empty(self, *shape, dtype=torch.float64):
        return torch.empty(shape, dtype=dtype, device=self.device)


def squared_error(width, chunk, depth):
    """kappa: |a|^2 + |b|^2 - 2 a . b of float16 rows errs by less than kappa (|a| + |b|)^2, where the product is summed
    in chunks and these one by one, and |a|^2 in a tree of some depth. README.md has the proof."""
    return 1.01 * (2 * (chunk + 16) + 0.6 * width / chunk + depth + 4) * UNIT


def _alignment(x):
    """The largest power of two up to 16 that divides a row's width and stride in elements."""
    return math.gcd(16, x.stride(0), x.shape[1]) if x.stride(1) == 1 else 1


def _is_cuda():
    return not triton.knobs.runtime.interpret and triton.runtime.driver.active.get_current_target().backend == "cuda"


def _has_descriptors():
    """The interpreter has them too."""
    if triton.knobs.runtime.interpret:
        return True
    return _is_cuda() and _compute_capability() >= 90


def _compute_capability():
    """90 for 9.0."""
    return triton.runtime.driver.active.get_current_target().arch


def _ceil(number, divisor):
    return (number + divisor - 1) // divisor
