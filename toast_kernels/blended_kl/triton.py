"""blended_kl on a GPU: launches the Triton kernels, in a configuration that depends on the row's size."""

import math
from itertools import accumulate
from typing import NamedTuple

import torch
import triton

from ..triton_launch import Launch as KernelLaunch
from ..triton_launch import keep
from . import problem as declared
from .problem import Problem, allocate
from .triton_arguments import Inputs, Labels, Reduction, Settings, Table
from .triton_kernels import normalisers_kernel, row_kernel, scale_kernel, short_rows_kernel
from .triton_reduction import MOST_PARTS


class Tile(NamedTuple):
    """How a program works on rows, and what the kernels are compiled with."""

    kind: str  # "short": several rows in a tile | "held": a row in a tile | "long": a row in tiles, read twice
    logits: int  # of a thread in a tile
    num_warps: int
    maxnreg: int | None = None  # registers a thread; with more, fewer programs would share a multiprocessor


# By what is read beside the logits and by the number of classes, up to. Measured on an H200 in bfloat16 with Triton 3.6
# on kernels of this design: the speed of loss and gradient, in % of that of a copy of the same bytes.
PLAIN = (
    (512, Tile("short", 16, 2, 40)),  # 100 classes: 82
    (1024, Tile("held", 32, 1, 64)),  # 1000: 97
    (2048, Tile("held", 32, 2, 48)),
    (4096, Tile("held", 32, 4, 48)),  # 96
    (8192, Tile("held", 32, 8, 48)),  # 94
    (16384, Tile("held", 64, 8, 80)),  # 95
    (65536, Tile("long", 32, 8, 64)),  # 32,768: 88
    (math.inf, Tile("long", 32, 16, 64)),  # 128,256: 76
)
DENSE = (  # with a past, half of the rows
    (512, Tile("short", 16, 2, 96)),  # 100: 66
    (1024, Tile("held", 32, 1, 128)),  # 1000: 82
    (2048, Tile("held", 32, 2, 128)),
    (4096, Tile("held", 32, 4, 128)),  # 75
    (8192, Tile("long", 8, 8)),  # 77
    (16384, Tile("long", 16, 8, 64)),  # 78
    (math.inf, Tile("long", 16, 16, 64)),  # 32,768: 79
)
TOP_K = (
    (16384, Tile("long", 16, 2, 56)),  # 4096, 64 of them listed: 73
    (65536, Tile("long", 16, 16, 64)),
    (math.inf, Tile("long", 16, 32)),  # 128,256: 68
)
# Chosen by the neighbouring even numbers of classes.
SHIFTED = (
    (16384, Tile("long", 16, 2)),
    (math.inf, Tile("long", 16, 16, 64)),  # 32,768: 87
)
SHIFTED_DENSE = Tile("long", 8, 8, 64)
# Where rows of more than 16,384 classes are read logit by logit. 21,841: 57, with dense tables 31.
SINGLE_PLAIN, SINGLE_DENSE = Tile("long", 8, 8), Tile("long", 4, 8)
NORMALISER_ROWS = 1024  # rows of a program of normalisers_kernel, up to MOST_NORMALISER_BLOCKS programs
MOST_NORMALISER_BLOCKS = MOST_PARTS.value
GROUP = 256  # programs whose losses one of them adds up
VECTOR = 16  # bytes
NO_TABLE = declared.Table(None, None, None, None, None, 1.0)


def tile_of(problem: Problem, reads: str) -> Tile:
    """Of a layout. reads: "vectors", "shifted" vectors (see triton_passes.block_of), or "single" logits."""
    num_classes = problem.logits.shape[1]
    tables = [table for table in (problem.soft, problem.past) if table is not None]
    if any(table.indices is not None for table in tables):
        measured = TOP_K
    elif tables or not problem.has_labels or (problem.weight is not None and problem.label_smoothing):
        measured = DENSE
    else:
        measured = PLAIN
    if num_classes > 16384 and reads == "single":
        return SINGLE_DENSE if measured is DENSE else SINGLE_PLAIN
    # What was measured needs fewer registers: within its limits Triton 3.9 would spill 20 to 100 times in short rows of
    # labels, and 180 to 330 in dense ones of 1024 classes and one warp.
    many_registers = problem.need_stats or problem.target_b is not None
    if measured is PLAIN and num_classes <= 512 and many_registers:
        return Tile("short", 16, 2)
    if measured is DENSE and 512 < num_classes <= 2048 and (many_registers or reads != "vectors"):
        return Tile("held", 16, 2 if num_classes <= 1024 else 4)
    if reads == "shifted" and num_classes > 2048 and measured is DENSE:
        return SHIFTED_DENSE
    if reads == "shifted" and num_classes > 512 and measured is not DENSE:
        measured = SHIFTED
    return next(tile for most, tile in measured if num_classes <= most)


class Launch:
    """Launches the kernels for problems of one layout: that of the problem it is made from, whose values and addresses
    it does not keep. float16, bfloat16 or float32 logits; alpha and past_weight as tensors have any float dtype.

    The first call launches as Triton does. To keep what was compiled takes as long as ten calls: so does the second,
    and the calls from then on hand over addresses and numbers alone.
    """

    def __init__(self, problem: Problem):
        (num_rows, num_classes), temperature = problem.logits.shape, problem.temperature
        self.has_labels = problem.has_labels
        soft, past = self._tables(problem)
        smoothing, weight = problem.label_smoothing, problem.weight
        by_weights = weight is not None and (smoothing != 0 or not self.has_labels)
        class_tile = by_weights or (soft.values is not None and soft.indices is None)
        past_tile = past.values is not None and past.indices is None
        uniform = soft.indices is not None or past.indices is not None or (smoothing != 0 and weight is None)
        self.flags = [1 if there else None for there in (class_tile, past_tile, uniform)]
        self.smoothing = float(smoothing) if smoothing else None
        self.floats = [temperature] if self.smoothing is None else [self.smoothing, temperature]

        # What is loaded many elements at a time; lists are gathered.
        dense = [table.values for table in (soft, past) if table.values is not None and table.indices is None]
        stride = problem.logits.stride(0)
        align = math.gcd(16, num_classes, stride, *(values.stride(0) for values in dense))
        vector = VECTOR // problem.logits.element_size()
        reads = "vectors" if align % vector == 0 else "single"
        alike = all(values.element_size() == problem.logits.element_size() for values in dense)
        if reads == "single" and stride == num_classes and alike and not (by_weights or self._misaligned(problem)):
            reads = "shifted"
        tile = tile_of(problem, reads)
        if torch.version.hip:  # warps have 64 lanes and programs 1024 at most; the compiler knows no maxnreg
            tile = tile._replace(num_warps=min(tile.num_warps, 16), maxnreg=None)
        self.shifted = reads == "shifted" and tile.kind == "long"
        self.misaligned = None  # a Launch for such logits, where this one wants them aligned
        width = vector if self.shifted else math.gcd(align, vector)
        self.function, rows, shape = _shape(tile, num_classes, width, self.shifted)
        programs = triton.cdiv(num_rows, rows)
        self.parts = min(triton.next_power_of_2(triton.cdiv(num_rows, NORMALISER_ROWS)), MOST_NORMALISER_BLOCKS)
        groups = triton.cdiv(programs, GROUP)
        self.grid = (programs,)
        # sums, finished, partial, group_sums: pieces of one tensor, each at a multiple of 16 bytes
        self.pieces = (
            ((2, self.parts), torch.float32),
            ((1 + groups,), torch.int32),
            ((programs,), torch.float32),
            ((groups,), torch.float64),
        )
        sizes = [triton.cdiv(math.prod(shape) * dtype.itemsize, 16) * 16 for shape, dtype in self.pieces]
        *self.offsets, self.workspace_size = accumulate(sizes, initial=0)
        self.mean = problem.reduction == "mean"

        self.constants = dict(
            POWER=int(temperature) if temperature in (1, 2, 3, 4) else 0, ALIGN=align, GROUP=GROUP,
            num_warps=tile.num_warps, enable_fp_fusion=True, **shape,
        )  # fmt: skip
        if tile.maxnreg is not None and problem.logits.dtype != torch.float32:  # measured for half types
            self.constants["maxnreg"] = tile.maxnreg
        self.memory = problem.logits.new_empty(0, dtype=torch.uint8)  # like it the workspace is allocated
        self.launch = _once
        self.kept = None  # launches of both kernels, set at once: threads may share this

    def __call__(self, problem: Problem) -> declared.Outputs:
        """With an upstream gradient the loss is multiplied by it too."""
        if self.shifted and self._misaligned(problem):
            self.misaligned = self.misaligned or Launch(problem)
            return self.misaligned(problem)
        outputs = allocate(problem)
        if self.grid == (0,):
            outputs.loss.fill_(math.nan if problem.reduction == "mean" else 0)
            return outputs
        labels = Labels(problem.target if self.has_labels else None, problem.target_b, problem.lam, problem.weight)
        soft, past = self._tables(problem)
        alpha, past_weight = number(problem.alpha), number(problem.past_weight)
        workspace = None
        if problem.reduction != "none":
            workspace = self.memory.new_empty(self.workspace_size)
        kept = self.kept
        if kept is None:
            launch, self.launch = self.launch, KernelLaunch
            kept = self._launch_whole(launch, problem, labels, soft, alpha, past, past_weight, outputs, workspace)
            if launch is KernelLaunch:
                self.kept = kept
            return outputs
        normalisers, kernel = kept

        # The tensors and floats of _launch_whole's arguments, in the same order.
        pieces = []
        if workspace is not None:
            start = workspace.data_ptr()
            pieces = [start + offset for offset in self.offsets]
            normalisers(*_values(*labels, problem.past_index, past.filled), *pieces[:2])
        if not self.mean:
            pieces = pieces[1:]
        given = _values(
            problem.logits, *labels, *soft, *past, problem.past_index, *alpha, *past_weight, problem.upstream,
            *self.floats, *outputs,
        )  # fmt: skip
        kernel(*given, *pieces)
        return outputs

    def _launch_whole(self, launch, problem, labels, soft, alpha, past, past_weight, outputs, workspace):
        """What `launch` makes of each kernel."""
        (num_rows, num_classes), upstream = problem.logits.shape, problem.upstream
        past_rows = 0 if past.values is None else len(past.values)
        reduction, normalisers = Reduction(None, self.parts, None, None, None), None
        if workspace is not None:
            sums, *pieces = [
                workspace[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
                for start, (shape, dtype) in zip(self.offsets, self.pieces, strict=True)
            ]
            reduction = Reduction(sums if self.mean else None, self.parts, *pieces)
            normalisers = launch(
                normalisers_kernel, (self.parts,),
                labels, problem.past_index, past.filled, past_rows, sums, reduction.finished, len(reduction.finished),
                num_rows, num_classes, problem.ignore_index, BLOCK=NORMALISER_ROWS, num_warps=8,
            )  # fmt: skip
        settings = Settings(
            *alpha, *past_weight, upstream, 0 if upstream is None else upstream.dim(),
            self.smoothing, problem.temperature, problem.ignore_index,
        )  # fmt: skip
        inputs = Inputs(
            problem.logits, problem.logits.stride(0), labels, _with_layout(soft), _with_layout(past),
            problem.past_index, settings, *self.flags,
        )  # fmt: skip
        kernel = launch(
            self.function, self.grid, inputs, outputs, reduction, past_rows, num_rows, num_classes, **self.constants
        )
        return normalisers, kernel

    def _misaligned(self, problem):
        tables = [table for table in self._tables(problem) if table.values is not None and table.indices is None]
        return any(x.data_ptr() % VECTOR for x in [problem.logits, *(table.values for table in tables)])

    def _tables(self, problem):
        """(soft, past). Class probabilities are soft targets whose row i is that of row i."""
        soft = problem.soft if self.has_labels else NO_TABLE._replace(values=problem.target)
        return soft or NO_TABLE, problem.past or NO_TABLE


def _shape(tile: Tile, num_classes: int, vector: int, shifted: bool):
    """(kernel, rows of a program, constants that say so), for vectors of so many logits."""
    size = tile.logits * 32 * tile.num_warps
    lanes = (64 if torch.version.hip else 32) * tile.num_warps
    if tile.kind == "short":
        row = triton.next_power_of_2(num_classes)
        width = max(8, row * lanes // size) * vector  # that many lanes work on a row, and a thread on one row
        row = max(row, width)
        rows = min(lanes // 8, size // row)
        whole = num_classes // width * width
        return short_rows_kernel, rows, dict(FULL=whole, ROWS=rows, SEGMENTS=row // width, WIDTH=width)
    if shifted:  # by whole vectors, of which AMD's more lanes want more
        size = max(size, lanes * vector)
    vector = min(vector, size // lanes)
    held = tile.kind == "held"
    full = num_classes // (size // 4) * (size // 4) if held else size * (num_classes % size == 0)
    constants = dict(
        HELD=held, FULL=full, SHIFTED=shifted,
        LANES=lanes, VECTORS=size // (lanes * vector), WIDTH=vector,
    )  # fmt: skip
    return row_kernel, 1, constants


def _once(kernel, grid, *arguments, **keywords):
    kernel[grid](*arguments, **keywords)


def _with_layout(table):
    values = table.values
    if values is None:
        return Table(0, 0, 0, *table)
    width = values.shape[1]
    return Table(values.stride(0), width, 1 << max(width.bit_length() - 1, 0), *table)


def _values(*arguments):
    """What a kept launch is called with: addresses of tensors, and floats."""
    return [x if type(x) is float else x.data_ptr() for x in arguments if x is not None]


def number(setting):
    """(its value, None), or (0.0, itself) where it is a tensor on the GPU, which is read there."""
    return (0.0, setting) if isinstance(setting, torch.Tensor) else (float(setting or 0), None)


_scale_launches = {}


def scale_(gradient, upstream):
    """Multiplies the gradient in place by a number on the device; returns at once where that is 1."""
    size, block = gradient.numel(), 2048
    if not size:
        return
    torch.autograd.graph.increment_version(gradient)
    kind = size, gradient.dtype, upstream.dtype, gradient.device
    launch = _scale_launches.get(kind)
    if launch is not None:
        launch(gradient.data_ptr(), upstream.data_ptr())
        return
    programs = min(triton.cdiv(size, block), 1024)
    launch = KernelLaunch(scale_kernel, (programs,), gradient, upstream, size, BLOCK=block, num_warps=8)
    keep(_scale_launches, kind, launch)
