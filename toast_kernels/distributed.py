"""Class medoids of rows that lie on several ranks of torch.distributed, the same on every rank, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from .functional import class_medoids
from .medoids.reference import by_class

ProcessGroup = dist.ProcessGroup if dist.is_available() else type(None)
SLAB = 1 << 26  # bytes of rows that a rank sends, and as many that it receives, at a time


class Ranks:
    """The processes that pool their rows together.

    Args:
        process_group: a group of torch.distributed; "world", the default group of the time of each call, so that this
            may be made before init_process_group; or None: every process on its own.
        collective: the call that every rank must make, for the error where one does not.
    """

    def __init__(self, process_group: ProcessGroup | str | None = "world", collective: str = "MedoidBank.compute"):
        outside = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else None  # new_group's for such a process
        if process_group not in (None, "world", outside) and not isinstance(process_group, ProcessGroup):
            raise ValueError(f'process_group must be a process group, "world" or None, got {process_group!r}')
        self.process_group = process_group
        self.collective = collective

    def __deepcopy__(self, memo) -> Ranks:
        return self  # a group cannot be copied

    @property
    def size(self) -> int:
        """How many they are: 1 before init_process_group, and for a process outside of the group."""
        if self.process_group is None or not (dist.is_available() and dist.is_initialized()):
            return 1
        return max(1, dist.get_world_size(self._group))

    @property
    def rank(self) -> int:
        """This process's number among them."""
        return dist.get_rank(self._group)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Work of one rank, without communication, between exchanges: an exception in it is raised on every rank.

        Raises:
            RuntimeError: on every rank, with the number in the default group of each rank that failed, and why; or a
                rank did not come here within the group's timeout.
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.all_reduce(torch.tensor(error is not None, dtype=torch.int64, device="cpu"), "MAX"):
            self.raise_failures(error)

    def raise_failures(self, error: Exception | None) -> NoReturn:
        """RuntimeError on every rank, when each knows that one of them failed; error: what failed on this one."""
        reasons = self.all_gather_object(error and f"{type(error).__name__}: {error}")
        said = [f"{self._name(rank)} failed with {reason}" for rank, reason in enumerate(reasons) if reason]
        raise RuntimeError("; ".join(said)) from error

    def agree(self, **settings: Any) -> None:
        """Raises ValueError on every rank if they differ in a setting."""
        first, *others = self.all_gather_object(settings)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise ValueError(
                        f"ranks differ in {name}: {value} on {self._name(0)}, {other[name]} on {self._name(rank)}"
                    )

    def all_gather_object(self, value: Any) -> list:
        """Every rank's value, in their order."""
        values = [value] * self.size
        if self.size > 1:
            with self._nobody_missing():
                dist.all_gather_object(values, value, self._group)
        return values

    def all_reduce(self, tensor: Tensor, op: str = "SUM") -> Tensor:
        """The ranks' tensors reduced, on this one's device. May overwrite it."""
        backends = self._backends()
        reduced = tensor if tensor.device.type in backends else tensor.to(next(iter(backends)))
        with self._nobody_missing():
            dist.all_reduce(reduced, getattr(dist.ReduceOp, op), self._group)
        return reduced.to(tensor.device)

    def all_to_all(self, rows: Tensor, for_each: list[int], from_each: list[int]) -> Tensor:
        """Sends so many rows to each rank, one after the other; returns those for this one, in the order of the ranks
        that they come from."""
        with self.in_step():
            received = rows.new_empty(sum(from_each), *rows.shape[1:])
        with self._nobody_missing():
            dist.all_to_all_single(received, rows, from_each, for_each, self._group)
        return received

    def exchange_device(self, device: torch.device, types: set[str]) -> torch.device:
        """Where rows are exchanged that lie on `device` here, and on devices of these types somewhere: there, or on the
        CPU where gloo would copy them to it."""
        backends = self._backends()
        fast = [kind for kind in sorted(types) if kind != "cpu" and backends.get(kind, "gloo") != "gloo"]
        kind = fast[0] if fast else "cpu" if "cpu" in backends else next(iter(backends))
        return device if device.type == kind else torch.empty(0, dtype=torch.uint8, device=kind).device

    @contextmanager
    def _nobody_missing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"a rank failed or did not come: {self.collective} is collective, every rank of the process group must "
                f"call it (see the argument process_group): {error}"
            ) from error

    @property
    def _group(self) -> ProcessGroup | None:
        return None if self.process_group == "world" else self.process_group

    def _name(self, rank: int) -> str:
        group = dist.group.WORLD if self._group is None else self._group
        return f"rank {dist.get_global_rank(group, rank)}"

    def _backends(self) -> dict[str, str]:
        """By type of device, the CPU first."""
        pairs = dist.get_backend_config(self._group).split(",")
        return dict(sorted((pair.split(":") for pair in pairs), key=lambda pair: pair[0] != "cpu"))


@torch.no_grad()
def distributed_class_medoids(
    x: Tensor,  # [n, C] on this rank
    labels: Tensor,  # [n] int64 or int32
    positions: Tensor,  # int64 [n]
    num_positions: int,
    num_classes: int,
    store: Callable[[Tensor, Tensor], None],
    predicted: Tensor,  # [n, P] on this rank
    *,
    metric: str,
    ignore_index: int,
    backend: str,
    ranks: Ranks,
) -> Tensor:  # int64 [K] on the CPU
    """class_medoids of all ranks' rows, concatenated in the order of the ranks.

    Returns each medoid's position, or -1. A rank's rows have these positions among num_positions, and those of the
    ranks before it come before them.

    Every rank of the group must call it, also one without rows (whose x may be on any device); the result is the same
    on each. Calls store(classes, rows) on every rank, with the medoids' rows of predicted: int64 [k] on the CPU,
    ascending, and [k, P] like predicted. Together these calls name each class that has a medoid once.

    The rows of a class go to one rank, its owner, which runs class_medoids on them. They go slab by slab: at a time a
    rank sends and receives at most SLAB bytes of rows each, or one class where that has more; beyond that memory is
    O(n + K). Between two exchanges the others wait for the slowest owner, which must be done within the group's
    timeout.

    Raises:
        RuntimeError: on every rank, if one failed; see Ranks.in_step.
        ValueError: on every rank, if they differ in C, dtype or an argument.
    """
    with ranks.in_step():
        pool = _Pool(x, labels, num_classes, ignore_index)
    ranks.agree(
        C=x.shape[1], dtype=x.dtype, num_classes=num_classes, metric=metric, ignore_index=ignore_index, backend=backend
    )
    sizes, spans, devices = zip(*ranks.all_gather_object((len(x), num_positions, x.device.type)), strict=True)
    device = ranks.exchange_device(x.device, {kind for kind, size in zip(devices, sizes, strict=True) if size})
    selects_on = x.device if device.type == "cpu" else device
    offset, span_offset = sum(sizes[: ranks.rank]), sum(spans[: ranks.rank])
    limit = max(1, SLAB // pool.row_bytes)
    total, most = ranks.all_reduce(pool.counts.clone()), ranks.all_reduce(pool.counts.clone(), "MAX")

    medoids = torch.zeros(num_classes, dtype=torch.int64, device="cpu")  # 1 + row of all; 0: another rank knows
    for owned in _slabs(total.tolist(), most.tolist(), ranks.size, limit):
        mine = owned[ranks.rank]
        classes_of_each = [len(classes) for classes in owned]
        with ranks.in_step():
            numbers, chosen = pool.rows_of([c for classes in owned for c in classes])
            for_each = [part.sum().item() for part in numbers.split(classes_of_each)]
            numbers, rows, places = (sent.to(device) for sent in (numbers, _bytes_of(x, chosen), chosen + offset))
        numbers = ranks.all_to_all(numbers, classes_of_each, [len(mine)] * ranks.size)
        from_each = numbers.view(ranks.size, len(mine)).sum(1).tolist()
        rows = ranks.all_to_all(rows, for_each, from_each)
        places = ranks.all_to_all(places, for_each, from_each)
        with ranks.in_step():
            if mine:
                own = torch.arange(len(mine), dtype=torch.int64, device=device)
                own_labels = own.repeat(ranks.size).repeat_interleave(numbers)
                best = class_medoids(
                    rows.view(x.dtype).to(selects_on), own_labels.to(selects_on), len(mine), metric=metric,
                    ignore_index=-1, backend=backend,
                )  # fmt: skip
                medoids[mine] = 1 + places[best.to(device)].cpu()
    medoids = ranks.all_reduce(medoids) - 1

    found = torch.zeros_like(medoids)  # 1 + position
    row_bytes = predicted.shape[1] * predicted.element_size()
    for classes in (medoids >= 0).nonzero()[:, 0].split(max(1, SLAB // row_bytes)):
        with ranks.in_step():
            row = medoids[classes] - offset
            here = (row >= 0) & (row < len(x))
            rows = torch.zeros(len(classes), row_bytes, dtype=torch.uint8, device=device)
            row = row[here].to(x.device)
            rows[here.to(device)] = _bytes_of(predicted, row).to(device)
            found[classes[here]] = 1 + span_offset + positions[row].cpu()
        rows = ranks.all_reduce(rows)  # bytes: those of the one rank that has the row, and zeros
        with ranks.in_step():
            store(classes, rows.view(predicted.dtype).to(x.device))
    return ranks.all_reduce(found) - 1


class _Pool:
    """One rank's rows, by class."""

    def __init__(self, x: Tensor, labels: Tensor, num_classes: int, ignore_index: int):
        self.row_bytes = x.shape[1] * x.element_size()
        self.order, counts = by_class(x, labels, None, num_classes, ignore_index)
        self.counts = counts.cpu()
        self.starts = self.counts.cumsum(0) - self.counts

    def rows_of(self, classes: list[int]) -> tuple[Tensor, Tensor]:
        """How many rows each of the classes has, on the CPU, and the numbers of those rows, class by class."""
        counts = self.counts[classes]
        skipped = self.starts[classes] - (counts.cumsum(0) - counts)
        places = torch.arange(counts.sum(), dtype=torch.int64, device="cpu") + skipped.repeat_interleave(counts)
        return counts, self.order[places.to(self.order.device)]


def _bytes_of(x: Tensor, rows: Tensor) -> Tensor:
    """[n, D * itemsize] uint8, which every backend sends."""
    return x.index_select(0, rows).contiguous().view(torch.uint8)


def _slabs(total: list[int], most: list[int], size: int, limit: int) -> Iterator[list[list[int]]]:
    """Cuts the classes that have rows into slabs; gives each as a list of the classes that every rank owns in it.

    total: rows of each class; most: rows of it that a single rank has. Unless it is of one class only, a slab has no
    more than `limit` rows for one owner to receive, nor for one rank to send. The classes are dealt out in turn, the
    largest first, so that the owners have much the same to do.
    """
    slab, received, sent = [[] for _ in range(size)], [0] * size, 0
    largest_first = sorted((c for c, rows in enumerate(total) if rows), key=lambda c: -total[c])
    for turn, c in enumerate(largest_first):
        owner = turn % size
        if sent and (received[owner] + total[c] > limit or sent + most[c] > limit):
            yield slab
            slab, received, sent = [[] for _ in range(size)], [0] * size, 0
        slab[owner].append(c)
        received[owner] += total[c]
        sent += most[c]
    if sent:
        yield slab
