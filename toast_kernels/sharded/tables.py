"""A slice of the classes, and rows of tables on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..blended_kl.problem import Table

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Slice(NamedTuple):
    """The classes [start, start + width) of num_classes."""

    start: int
    width: int
    num_classes: int

    def local(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of classes as columns, and where they are; 0 where they are not."""
        column = classes - self.start
        here = (column >= 0) & (column < self.width)
        return torch.where(here, column, 0), here


class Lookup(NamedTuple):
    """A row of a table for each row of logits. A top-k table is whole; of others a rank has its columns."""

    table: Table
    index: Tensor  # [N] int64, in range
    used: Tensor  # [N] bool: elsewhere the row is 0

    def checksum(self) -> Tensor:
        """[N] integers, of what ranks have whole: whether there is a row, and what a top-k table has in it."""
        table, index = self.table, self.index
        held = [] if table.indices is None else [checksums(x[index]) for x in (table.values, table.indices)]
        return torch.where(self.used, 1 + sum(held), 0)

    def statistic(self, z: Tensor, own: Slice) -> Tensor:
        """[N], of which `total` makes what `probabilities` wants: the logsumexp of the columns of logits, the sum of
        columns of probabilities, or the number of the columns that share a top-k row's tail."""
        index = self.index
        if self.table.logsumexp is not None:
            return self.table.logsumexp[index].double()
        if self.table.indices is None:
            return self.table.values[index].sum(1, dtype=torch.float64)
        unmasked = z != -torch.inf
        column, here = own.local(self.table.indices[index].long())
        return (unmasked.sum(1) - (unmasked.gather(1, column) & here).sum(1)).double()

    def total(self, statistics: Tensor) -> Tensor:
        """[N] of the ranks' statistics [world, N]."""
        return statistics.sum(0) if self.table.logsumexp is None else statistics.logsumexp(0)

    def sums(self, total: Tensor) -> Tensor:
        """[N]: the mass of the rows, over all classes."""
        if self.table.logsumexp is not None:
            mass = torch.ones_like(total)
        elif self.table.indices is None:
            mass = total
        else:
            listed = self.table.values[self.index].sum(1, dtype=torch.float64)
            mass = listed + torch.where(total > 0, (1 - listed).clamp(min=0), 0)
        return torch.where(self.used, mass, 0)

    def probabilities(self, z: Tensor, total: Tensor, own: Slice) -> Tensor:
        """[N, width] in the dtype of z: a copy."""
        index = self.index
        if self.table.logsumexp is not None:
            values = self.table.values[index].to(z.dtype)
            probs = log_probabilities(values, self.table.temperature, total).exp_()
        elif self.table.indices is None:
            probs = self.table.values[index].to(z.dtype)
        else:
            values = self.table.values[index].to(z.dtype)
            tail = (1 - values.sum(1)).clamp(min=0) / total.clamp(min=1).to(z.dtype)
            column, here = own.local(self.table.indices[index].long())
            probs = z.new_zeros(len(z), own.width + 1)  # the last is for what is listed of other ranks' classes
            probs[:, : own.width] = torch.where(z != -torch.inf, tail[:, None], 0)
            probs = probs.scatter_(1, torch.where(here, column, own.width), values)[:, : own.width]
        if probs.device.type == "cpu" and self.used.all():
            return probs
        return probs.masked_fill_(~self.used[:, None], 0)


def checksums(
    rows: Tensor,  # [N, K]
) -> Tensor:
    """[N] float64 that are integers below 2^48, the same of the same bits on every device and however they are strided:
    each row's bit patterns as integers, times 1, 3, 5, ..., added up."""
    bits = rows.view(_INTEGERS[rows.element_size()]).long()
    places = torch.arange(1, 2 * rows.shape[1], 2, dtype=torch.int64, device=rows.device)
    return ((bits * places).sum(1) & ((1 << 48) - 1)).double()


def log_probabilities(
    z: Tensor,  # [R, width]
    temperature: float,
    logsumexp: Tensor,  # [R] float64, of z / temperature over all classes
) -> Tensor:
    """z / temperature - logsumexp in the dtype of z: in two steps, as a float32 loses digits of a large logsumexp."""
    high = as_column(logsumexp, z.dtype)
    log_p = z - high if temperature == 1 else (z / temperature).sub_(high)
    if z.dtype != torch.float64:
        log_p.sub_(as_column(logsumexp - high[:, 0], z.dtype))
    return log_p


def as_column(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)[:, None]


def parts_of(num_rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, num_rows)) for start in range(0, max(num_rows, 1), step)]
