"""Slices of the classes of what a test has whole."""

from dataclasses import replace

import torch

from toast_kernels import SoftTargets


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
