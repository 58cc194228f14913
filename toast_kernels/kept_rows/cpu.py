"""pool_rows and carry_rows on the CPU: hand tensors, sizes and strides to the C++ kernels."""

import torch

from ..backends import _C
from ..native import DTYPE, rows_of
from .op import raise_label


def pool_rows(
    logits,  # [N, C]
    labels,  # [N]
    memory,
    num_classes,
    ignore_index,
    places,  # [N] or None
):
    logits, (pool, pool_labels, positions, counts) = rows_of(logits), memory
    wrong = _C.pool_rows(
        DTYPE[logits.dtype], logits.data_ptr(), *logits.shape, logits.stride(0), labels.data_ptr(),
        0 if places is None else places.data_ptr(), num_classes, ignore_index, DTYPE[pool.dtype], pool.data_ptr(),
        pool_labels.data_ptr(), positions.data_ptr(), pool.shape[0], counts.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if wrong >= 0:
        raise_label(labels[wrong], num_classes, ignore_index)


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
    if score.dtype not in (torch.float32, torch.float64):
        score = score.float()
    batch = (
        DTYPE[logits.dtype], logits, *logits.shape, logits.stride(0),
        labels, labels_b, lam, DTYPE[score.dtype], score, num_new, ages,
    )  # fmt: skip
    settings = max_age, ignore_index, temperature
    num_slots = slots.filled.shape[0]
    return _C.carry_rows(batch, settings, (num_slots, *slots), torch.get_num_threads()) == num_slots
