"""class_medoids on the CPU: the C++ kernel (csrc/medoids.h)."""

import torch

from ..backends import _C
from ..native import DTYPE
from .reference import METRICS, raise_label


def class_medoids(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    mask,  # [N] bool or None
    num_classes,
    metric,
    ignore_index,
):  # -> [K] int64
    medoids = torch.empty(num_classes, dtype=torch.int64, device="cpu")
    wrong = _C.class_medoids(
        (DTYPE[x.dtype], x, *x.shape, *x.stride()),
        (labels, labels.dtype == torch.int64, labels.stride(0), mask, 0 if mask is None else mask.stride(0),
         ignore_index, num_classes),
        METRICS.index(metric), medoids, torch.get_num_threads(),
    )  # fmt: skip
    if wrong >= 0:
        raise_label(wrong, int(labels[wrong]), num_classes, ignore_index)
    return medoids
