"""pool_rows and carry_rows on a GPU: one launch each of the kernels in triton_kernels.py."""

import torch
import triton

from ..native import rows_of
from ..triton_launch import Launch, keep
from .triton_kernels import carry_rows_kernel, pool_rows_kernel

MOST_CLASSES = 4096  # of a tile
MOST_ROWS = 1024  # whose scores are looked at together
WARPS = 4

_launches = {}


def pool_rows(
    logits,  # [N, C]
    labels,  # [N]
    pool,  # [R, C]
    pool_labels,  # [R]
    start,
    ignore_index,
):
    logits = rows_of(logits)
    rows, classes = logits.shape
    with torch.cuda.device_of(logits):
        pool_rows_kernel[(rows,)](
            logits, logits.stride(0), labels, pool, pool_labels, start, len(pool), classes,
            COUNTED=not isinstance(start, int), BLOCK=_tile(classes, MOST_CLASSES), num_warps=WARPS,
        )  # fmt: skip


def carry_rows(
    logits,  # [N, C]
    labels,  # [N] or None
    labels_b,  # [N] or None
    lam,  # [N] or None
    score,  # [N]
    num_new,
    ages,  # [N - num_new] or None
    slots,
    max_age,
    ignore_index,
    temperature,
):
    logits = rows_of(logits)
    rows, classes = logits.shape
    if max_age == 1:
        ages = None  # no carried row may be carried again
    elif ages is not None and ages.data_ptr() == slots.age.data_ptr():
        ages = ages.clone()  # programs write the new ones while others still read
    count = len(slots.filled)
    tensors = logits, labels, labels_b, lam, score, ages, *slots
    kind = (
        rows, classes, count, num_new, logits.stride(0), logits.dtype, score.dtype, logits.device, max_age,
        ignore_index, temperature, *(x is None for x in tensors),
    )  # fmt: skip
    with torch.cuda.device_of(logits):
        if launch := _launches.get(kind):
            launch(*(x.data_ptr() for x in tensors if x is not None))
            return
        launch = Launch(
            carry_rows_kernel, (rows,),
            logits, logits.stride(0), labels, labels_b, lam, score, num_new, ages, max_age, ignore_index, *slots,
            rows, classes, count, TEMPERATURE=temperature,
            ROWS=_tile(rows, MOST_ROWS), BLOCK=_tile(classes, MOST_CLASSES), num_warps=WARPS,
        )  # fmt: skip
        keep(_launches, kind, launch)


def _tile(size: int, most: int) -> int:
    return min(triton.next_power_of_2(size), most)
