"""pool_rows and carry_rows on a GPU: one launch each of the kernels in triton_kernels.py."""

import torch
import triton

from ..native import rows_of
from ..triton_launch import Launch, keep
from .reference import places_in_order
from .triton_kernels import carry_rows_kernel, pool_rows_kernel

MOST_CLASSES = 4096  # of a tile
MOST_ROWS = 1024  # whose scores, or labels, are looked at together
MOST_COUNTED = 4096  # rows whose places the kernel that pools them counts: N^2 labels are read, 128 MB from the cache
WARPS = 4

_launches = {}


def pool_rows(
    logits,  # [N, C]
    labels,  # [N]
    memory,
    num_classes,
    ignore_index,
    places,  # [N] or None
):
    logits = rows_of(logits)
    rows, classes = logits.shape
    if places is None and rows > MOST_COUNTED:
        places = places_in_order(labels, memory.counts, ignore_index)
    tensors = logits, labels, places, *memory
    capacity = len(memory.logits)
    kind = (
        "pool", rows, classes, logits.stride(0), logits.dtype, memory.logits.dtype, capacity, logits.device,
        ignore_index, places is None,
    )  # fmt: skip
    with torch.cuda.device_of(logits):
        if launch := _launches.get(kind):
            launch(*(x.data_ptr() for x in tensors if x is not None))
            return
        launch = Launch(
            pool_rows_kernel, (rows,),
            logits, logits.stride(0), labels, places, *memory, capacity, ignore_index, rows, classes,
            ROWS=_tile(rows, MOST_ROWS), BLOCK=_tile(classes, MOST_CLASSES), num_warps=WARPS,
        )  # fmt: skip
        keep(_launches, kind, launch)


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
        "carry", rows, classes, count, num_new, logits.stride(0), logits.dtype, score.dtype, logits.device, max_age,
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
