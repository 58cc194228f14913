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
from .triton_kernels import blended_kl_kernel, normalisers_kernel, scale_kernel
from .triton_parts import Labels, Table


class Config(NamedTuple):
    ROWS: int  # rows of a program
    BLOCK: int  # classes of a tile
    SINGLE_PASS: bool  # the tile is the whole row
    num_warps: int
    maxnreg: int | None = None  # registers a thread; with more, fewer programs would share a multiprocessor


# By the number of classes, up to.
SINGLE_PASS = (
    (128, Config(16, 128, True, 4)),
    (256, Config(8, 256, True, 4)),
    (512, Config(1, 512, True, 1)),
    (1024, Config(1, 1024, True, 1)),
    (2048, Config(1, 2048, True, 2, 168)),
    (4096, Config(1, 4096, True, 4, 168)),
    (8192, Config(1, 8192, True, 8, 128)),
    (16384, Config(1, 16384, True, 16)),
)
TWO_PASSES = Config(1, 2048, False, 8)
NORMALISER_ROWS = 1024  # rows of a program of normalisers_kernel, up to MOST_NORMALISER_BLOCKS programs
MOST_NORMALISER_BLOCKS = 64
GROUP = 256  # programs whose losses one of them adds up
MOST_SPARSE_CLASSES = 128
NO_TABLE = declared.Table(None, None, None, None, None, 1.0)


def configuration(num_classes: int, dtype: torch.dtype, many_registers: bool) -> Config:
    """many_registers: there is more to hold than logits and two tables of probabilities."""
    config = next((config for most, config in SINGLE_PASS if num_classes <= most), TWO_PASSES)
    if many_registers and config.ROWS > 1:
        config = config._replace(ROWS=config.ROWS // 2)
    if many_registers and config.num_warps == 16:
        config = TWO_PASSES
    # AMD's compiler knows no such option.
    limited = not (many_registers or dtype == torch.float32 or torch.version.hip)
    return config if limited else config._replace(maxnreg=None)


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
        many_registers = (
            problem.target_b is not None
            or soft.logsumexp is not None
            or past.logsumexp is not None
            or problem.need_stats
        )
        config = configuration(num_classes, problem.logits.dtype, many_registers)
        programs = triton.cdiv(num_rows, config.ROWS)
        blocks = min(triton.next_power_of_2(triton.cdiv(num_rows, NORMALISER_ROWS)), MOST_NORMALISER_BLOCKS)
        groups = triton.cdiv(programs, GROUP)
        self.grid, self.normaliser_grid = (programs,), (blocks,)
        # sums, finished, partial, group_sums: pieces of one tensor, each at a multiple of 16 bytes
        self.pieces = (
            ((2, blocks), torch.float32),
            ((1 + groups,), torch.int32),
            ((programs,), torch.float32),
            ((groups,), torch.float64),
        )
        sizes = [triton.cdiv(math.prod(shape) * dtype.itemsize, 16) * 16 for shape, dtype in self.pieces]
        *self.offsets, self.workspace_size = accumulate(sizes, initial=0)

        lists = [table.values.shape[1] for table in (soft, past) if table.indices is not None]
        # What is loaded many elements at a time; lists are gathered.
        dense = [table.values for table in (soft, past) if table.values is not None and table.indices is None]
        strides = [values.stride(0) for values in (problem.logits, *dense)]
        self.floats = float(problem.label_smoothing), temperature, 1 / temperature
        self.constants = dict(
            SMOOTHED=problem.label_smoothing != 0,
            MEAN=problem.reduction == "mean",
            NORMALISER_BLOCKS=blocks,
            POWER=int(temperature) if temperature in (1, 2, 3, 4) else 0,
            LIST_BITS=max(lists, default=0).bit_length(),
            SPARSE_CLASSES=min(triton.next_power_of_2(2 + 2 * sum(lists)), MOST_SPARSE_CLASSES),
            ALIGN=math.gcd(16, num_classes, *strides),
            EXACT=num_classes % config.BLOCK == 0,
            GROUP=GROUP,
            enable_fp_fusion=True,
            **{key: value for key, value in config._asdict().items() if value is not None},
        )
        self.memory = problem.logits.new_empty(0, dtype=torch.uint8)  # like it the workspace is allocated
        self.launch = _once
        self.kernel = self.normalisers = None  # kept launches

    def __call__(self, problem: Problem) -> declared.Outputs:
        """With an upstream gradient the loss is multiplied by it too."""
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
        if self.kernel is None:
            self._launch_whole(problem, labels, soft, alpha, past, past_weight, outputs, workspace)
            self.launch = KernelLaunch
            return outputs

        # The tensors and floats of _launch_whole's arguments, in the same order.
        pieces = []
        if workspace is not None:
            start = workspace.data_ptr()
            pieces = [start + offset for offset in self.offsets]
            self.normalisers(*_values(*labels, problem.past_index, past.filled), *pieces[:2])
        given = _values(
            problem.logits, *labels, *soft, *alpha, *past, problem.past_index, *past_weight, problem.upstream, *outputs
        )
        self.kernel(*given, *pieces, *self.floats)
        return outputs

    def _launch_whole(self, problem, labels, soft, alpha, past, past_weight, outputs, workspace):
        launch = self.launch
        (num_rows, num_classes), upstream = problem.logits.shape, problem.upstream
        past_rows = 0 if past.values is None else len(past.values)
        pieces = [None] * 4
        if workspace is not None:
            pieces = [
                workspace[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
                for start, (shape, dtype) in zip(self.offsets, self.pieces, strict=True)
            ]
            sums, finished, _, _ = pieces
            self.normalisers = launch(
                normalisers_kernel, self.normaliser_grid,
                labels, problem.past_index, past.filled, past_rows, sums, finished, len(finished),
                num_rows, num_classes, problem.ignore_index, BLOCK=NORMALISER_ROWS, num_warps=8,
            )  # fmt: skip
        self.kernel = launch(
            blended_kl_kernel, self.grid,
            problem.logits, problem.logits.stride(0), labels, _with_layout(soft), *alpha,
            _with_layout(past), past_rows, problem.past_index, *past_weight,
            upstream, 0 if upstream is None else upstream.dim(), outputs, *pieces,
            num_rows, num_classes, problem.ignore_index, *self.floats, **self.constants,
        )  # fmt: skip

    def _tables(self, problem):
        """(soft, past). Class probabilities are soft targets whose row i is that of row i."""
        soft = problem.soft if self.has_labels else NO_TABLE._replace(values=problem.target)
        return soft or NO_TABLE, problem.past or NO_TABLE


def _once(kernel, grid, *arguments, **keywords):
    kernel[grid](*arguments, **keywords)


def _with_layout(table):
    values = table.values
    return Table(*((0, 0) if values is None else (values.stride(0), values.shape[1])), *table)


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
