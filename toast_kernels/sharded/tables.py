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


class Dense(NamedTuple):
    """Mass of the slice's classes."""

    mass: Tensor  # [R, width], or [1, width] for all rows

    def cross_entropy(self, log_p: Tensor) -> Tensor:
        """[R] - sum mass log_p, with 0 * -inf = 0."""
        dot = (self.mass * log_p).sum(1)
        if dot.device.type == "cpu" and not dot.isnan().any():  # which 0 * -inf would make
            return -dot
        return -product(self.mass, log_p).sum(1)

    def entropy(self) -> Tensor:
        """[R] - sum mass log mass. Not by special.entr, which takes 5 times as long on a CPU."""
        least = torch.finfo(self.mass.dtype).tiny
        return -(self.mass * self.mass.clamp(min=least).log_()).sum(1)

    def subtract_from(self, gradient: Tensor, coefficient: Tensor) -> None:
        """gradient [R, width] -= coefficient [R] times the mass."""
        gradient.addcmul_(self.mass, as_column(coefficient, gradient.dtype), value=-1)


class Listed(NamedTuple):
    """Mass of top-k rows on the slice: the same for all classes, but for masked and for listed ones."""

    tail: Tensor  # [R], of a class
    column: Tensor  # [R, k] int64 of the listed; 0 for those of other ranks
    values: Tensor  # [R, k]: their mass; 0 for those of other ranks
    above: Tensor  # [R, k]: that, less the tail
    unlisted: Tensor  # [R]: how many classes have the tail
    masked: Tensor | None  # bool [R, width]

    def cross_entropy(self, log_p: Tensor) -> Tensor:
        """As Dense's."""
        all_classes = (log_p if self.masked is None else log_p.masked_fill(self.masked, 0)).sum(1)
        return -product(self.tail, all_classes) - product(self.above, log_p.gather(1, self.column)).sum(1)

    def entropy(self) -> Tensor:
        return torch.special.entr(self.values).sum(1) + self.unlisted * torch.special.entr(self.tail)

    def subtract_from(self, gradient: Tensor, coefficient: Tensor) -> None:
        tail, column = as_column(coefficient * self.tail, gradient.dtype), as_column(coefficient, gradient.dtype)
        gradient -= tail if self.masked is None else torch.where(self.masked, 0, tail)
        gradient.scatter_add_(1, self.column, -column * self.above)


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
        """[N], of which `total` makes what `rows` wants: the logsumexp of the columns of logits, the sum of
        columns of probabilities, or the number of the columns that share a top-k row's tail."""
        index = self.index
        if self.table.logsumexp is not None:
            return self.table.logsumexp[index].double()
        if self.table.indices is None:
            return self.table.values[index].sum(1, dtype=torch.float64)
        return self._listed(z, torch.ones_like(self.used, dtype=z.dtype), own).unlisted.double()

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

    def rows(self, z: Tensor, total: Tensor, own: Slice) -> Dense | Listed:
        """In the dtype of z: a copy."""
        index, temperature = self.index, self.table.temperature
        if self.table.indices is not None:
            return self._listed(z, total, own)
        mass = self.table.values[index].to(z.dtype)
        if self.table.logsumexp is not None:
            mass = log_probabilities(mass, temperature, total).exp_()
        if mass.device.type != "cpu" or not self.used.all():
            mass = mass.masked_fill_(~self.used[:, None], 0)
        return Dense(mass)

    def _listed(self, z: Tensor, total: Tensor, own: Slice) -> Listed:
        masked = masked_of(z)
        column, here = own.local(self.table.indices[self.index].long())
        values = torch.where(self.used[:, None], self.table.values[self.index].to(z.dtype), 0)
        tail = torch.where(self.used, (1 - values.sum(1)).clamp(min=0) / total.clamp(min=1).to(z.dtype), 0)
        has_tail, unmasked = here, own.width
        if masked is not None:
            has_tail, unmasked = here & ~masked.gather(1, column), own.width - masked.sum(1)
        values = torch.where(here, values, 0)
        above = values - torch.where(has_tail, tail[:, None], 0)
        return Listed(tail, column, values, above, unmasked - has_tail.sum(1), masked)


def masked_of(z: Tensor) -> Tensor | None:
    """bool [R, width], where logits are -inf; None where, as a CPU sees at once, none is."""
    if z.device.type == "cpu" and (z.amin(1) > -torch.inf).all():
        return None
    return z == -torch.inf


def product(mass: Tensor, log_p: Tensor) -> Tensor:
    """With 0 * -inf = 0."""
    return torch.where(mass != 0, mass * log_p, 0)


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
