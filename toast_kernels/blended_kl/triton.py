"""blended_kl on a GPU: hands tensors to the Triton kernels, in a configuration that depends on the row's size."""

import math
from typing import NamedTuple

import torch
import triton

from ..native import rows_of
from .problem import Outputs, Problem
from .triton_kernels import blended_kl_kernel, normalisers_kernel, scale_kernel


class Config(NamedTuple):
    ROWS: int  # rows of a program
    BLOCK: int  # classes of a tile
    HELD: bool  # the tile is the whole row
    num_warps: int
    maxnreg: int | None = None  # registers a thread; with more, fewer programs would share a multiprocessor


# By the number of classes, up to.
HELD = (
    (128, Config(16, 128, True, 4)),
    (256, Config(8, 256, True, 4)),
    (512, Config(1, 512, True, 1)),
    (1024, Config(1, 1024, True, 1)),
    (2048, Config(1, 2048, True, 2, 168)),
    (4096, Config(1, 4096, True, 4, 168)),
    (8192, Config(1, 8192, True, 8, 128)),
    (16384, Config(1, 16384, True, 16)),
)
IN_BLOCKS = Config(1, 2048, False, 8, None)
SUMMED_ROWS = 1024  # rows of a program of normalisers_kernel, up to MOST_PARTS programs
MOST_PARTS = 64
GROUP = 256  # programs whose losses one of them adds up
MOST_SINGLES = 128


def configuration(num_classes: int, dtype: torch.dtype, heavy: bool) -> Config:
    """heavy: there is more to hold in registers than logits and two tables of probabilities."""
    config = next((config for most, config in HELD if num_classes <= most), IN_BLOCKS)
    if heavy and config.ROWS > 1:
        config = config._replace(ROWS=config.ROWS // 2)
    if heavy and config.num_warps == 16:
        config = IN_BLOCKS
    # AMD's compiler knows no such option.
    return config._replace(maxnreg=None) if heavy or dtype == torch.float32 or torch.version.hip else config


class Launch:
    """Runs problems of one layout."""

    def __init__(self, problem: Problem):
        pass

    def __call__(self, problem: Problem) -> Outputs:
        return _run(
            problem, *_NONE if problem.soft is None else problem.soft, *_NONE if problem.past is None else problem.past
        )


_NONE = (None, None, None, None, None, 1.0)


def _run(
    problem, soft_values, soft_indices, soft_logsumexp, _, soft_filled, soft_temperature,
    past_values, past_indices, past_logsumexp, past_entropy, past_filled, temperature,
):  # fmt: skip
    logits, target, target_b, lam, weight, _, alpha, _, past_index, past_weight, upstream, *settings = problem
    temperature, ignore_index, label_smoothing, reduction, need_gradient, need_stats = settings
    """With an upstream gradient the loss is multiplied by it too."""
    num_rows, num_classes = logits.shape
    logits = rows_of(logits)
    loss = logits.new_empty(num_rows if reduction == "none" else (), dtype=torch.float32)
    gradient = logits.new_empty((num_rows, num_classes) if need_gradient else 0)
    stats = logits.new_empty((2, num_rows if need_stats else 0), dtype=torch.float32)
    argmax = logits.new_empty(num_rows if need_stats else 0, dtype=torch.int64)
    if num_rows == 0:
        return Outputs(loss.fill_(math.nan if reduction == "mean" else 0), gradient, stats, argmax)

    probabilities = target.is_floating_point()
    if probabilities:
        soft_values, target = target, None
    soft_values, past_values = (None if x is None else rows_of(x) for x in (soft_values, past_values))
    labels = [contiguous(x) for x in (target, target_b, lam, weight)]
    past_index, upstream = contiguous(past_index), contiguous(upstream)
    soft = [contiguous(x) for x in (soft_indices, soft_logsumexp, soft_filled)]
    past = [contiguous(x) for x in (past_indices, past_logsumexp, past_filled, past_entropy)]
    past_rows = 0 if past_values is None else past_values.shape[0]

    heavy = target_b is not None or soft_logsumexp is not None or past_logsumexp is not None or need_stats
    config = configuration(num_classes, logits.dtype, heavy)
    programs = triton.cdiv(num_rows, config.ROWS)
    parts, sums, finished, partial, group_sums = 1, None, None, None, None
    if reduction != "none":
        parts = min(triton.next_power_of_2(triton.cdiv(num_rows, SUMMED_ROWS)), MOST_PARTS)
        sums = logits.new_empty((2, parts), dtype=torch.float32)
        partial = logits.new_empty(programs, dtype=torch.float32)
        group_sums = logits.new_empty(triton.cdiv(programs, GROUP), dtype=torch.float64)
        finished = logits.new_empty(1 + len(group_sums), dtype=torch.int32)
        normalisers_kernel[(parts,)](
            *labels, past_index, past_filled, past_rows, sums, finished, len(finished),
            num_rows, num_classes, ignore_index, BLOCK=SUMMED_ROWS, num_warps=8,
        )  # fmt: skip

    def stride(values):
        return 0 if values is None else values.stride(0)

    def width(values):
        return 0 if values is None else values.shape[1]

    lists = [x.shape[1] for x in (soft_indices, past_indices) if x is not None]
    # What is loaded many elements at a time; lists are gathered.
    tables = [logits, soft_values if soft_indices is None else None, past_values if past_indices is None else None]
    singles = 2 + 2 * sum(lists)
    blended_kl_kernel[(programs,)](
        logits, logits.stride(0), *labels,
        soft_values, stride(soft_values), width(soft_values), *soft, soft_temperature, *number(alpha),
        past_values, stride(past_values), width(past_values), *past, past_rows, past_index, *number(past_weight),
        upstream, 0 if upstream is None or upstream.dim() == 0 else 1,
        sums, finished, partial, group_sums,
        loss, gradient if need_gradient else None, stats if need_stats else None, argmax,
        num_rows, num_classes, ignore_index, label_smoothing, temperature, 1 / temperature,
        SMOOTHED=label_smoothing != 0,
        MEAN=reduction == "mean",
        PARTS=parts,
        POWER=int(temperature) if temperature in (1, 2, 3, 4) else 0,
        LIST_BITS=max(lists, default=0).bit_length(),
        SINGLES=min(triton.next_power_of_2(singles), MOST_SINGLES),
        ALIGN=math.gcd(16, num_classes, *(stride(x) for x in tables if x is not None)),
        EXACT=num_classes % config.BLOCK == 0,
        GROUP=GROUP,
        enable_fp_fusion=True,
        **{key: value for key, value in config._asdict().items() if value is not None},
    )  # fmt: skip
    return Outputs(loss, gradient if need_gradient else None, stats if need_stats else None, argmax)


def contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def scale_(gradient, upstream):
    """Multiplies the gradient in place by a number on the device; returns at once where that is 1."""
    block = 2048
    programs = min(triton.cdiv(gradient.numel(), block), 1024)
    if programs:
        scale_kernel[(programs,)](gradient, upstream, gradient.numel(), BLOCK=block, num_warps=8)


def number(setting):
    """(its value, None), or (0, itself) where it is a tensor on the GPU, which is read there."""
    return (0.0, setting) if isinstance(setting, torch.Tensor) else (setting or 0.0, None)
