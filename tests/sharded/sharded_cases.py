"""Slices of the classes of what a test has whole, and what a call raises."""

import time
from dataclasses import replace

import torch

from toast_kernels import SoftTargets

CLASSES, ROWS = 13, 9
WIDTHS = {"two": [3, 10], "three": [6, 0, 7], "four": [4, 4, 4, 1]}  # of the ranks' slices
IMAGE = torch.randn(2, CLASSES, 3, 2, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(12).reshape(2, 3, 2)


def slice_of(widths, rank):
    return slice(sum(widths[:rank]), sum(widths[: rank + 1]))


def slice_of_table(table, own):
    """Of what is no table, or a top-k one, all."""
    if isinstance(table, torch.Tensor) and table.dim() == 2:  # past logits
        return table[:, own]
    if not isinstance(table, SoftTargets) or table.encoding == "top-k":
        return table
    values = table.values[:, own]
    if table.encoding == "logits" and values.shape[1]:
        return replace(SoftTargets.view_logits(values, table.temperature), filled=table.filled)
    nothing = None if table.logsumexp is None else torch.full_like(table.logsumexp, -torch.inf)
    return replace(table, values=values, num_classes=values.shape[1], logsumexp=nothing)


def error_of(call):
    started = time.perf_counter()
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        assert time.perf_counter() - started < 20
