"""What ranks with a slice of the classes each tell one another in a call, and how a failure of one reaches all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..blended_kl.problem import is_traced
from ..distributed import ProcessGroup, Ranks


class Exchange:
    """A call that every rank of a group makes: `meet`, then the same `gather`, `add` and `settle`, then `finish`.

    What may fail on one rank goes into `attempt`. A rank that failed takes part in all exchanges, so nobody waits for
    it, and in `settle`, or in `finish` at the latest, all raise.
    """

    def __init__(self, process_group: ProcessGroup | str, call: str):
        self.ranks = Ranks(process_group, call)
        if is_traced() or torch._C._are_functorch_transforms_active():
            raise RuntimeError(f"{call} over a process group runs eagerly: not in torch.export, make_fx or torch.func")
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "process_group must be None where there are no groups: torch.distributed.init_process_group was not "
                f"called, got {process_group!r}"
            )
        if process_group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("process_group must be a group that this process is a member of")
        self.size = self.ranks.size
        self.rank = self.ranks.rank if self.size > 1 else 0
        self.error = None
        self.differing = {}  # name -> bool [] on the device: whether ranks were given different ones

    @contextmanager
    def attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error

    def meet(self, width: int, settings: dict[str, Any]) -> list[int]:
        """Every rank's width, in their order.

        Raises:
            ValueError: on every rank, if they differ in a setting; what failed before, as `finish` does.
        """
        digest = int.from_bytes(hashlib.sha256(repr(settings).encode()).digest()[:7], "big")
        own = torch.tensor([self.error is not None, digest, width], dtype=torch.int64, device="cpu")
        failed, digests, widths = self.gather(own).unbind(1)
        if failed.any():
            self._raise()
        if (digests != digest).any():
            self.ranks.agree(**settings)
        return widths.tolist()

    def settle(self) -> None:
        """Raises on every rank, if one failed, as `finish` does."""
        if self.gather(torch.tensor(self.error is not None, dtype=torch.int64, device="cpu")).any():
            self._raise()

    def gather(self, own: Tensor) -> Tensor:
        """[world, ...]: each rank's tensor, bit for bit the same on every rank. One small all-reduce, which all
        backends have."""
        if self.size == 1:
            return own[None]
        slots = own.new_zeros(self.size, *own.shape)
        slots[self.rank] = own
        return self.ranks.all_reduce(slots)

    def add(self, own: Tensor) -> Tensor:
        """The sum of the ranks' tensors. May overwrite this one's."""
        return own if self.size == 1 else self.ranks.all_reduce(own)

    def compare(self, name: str, rows: Tensor) -> None:
        """Of what was gathered of something that must be the same on every rank, [world, ...]: for `finish`."""
        differs = (rows != rows[:1]).any()
        self.differing[name] = differs | self.differing[name] if name in self.differing else differs

    def finish(self, own: Tensor) -> Tensor:
        """The sum [...] of the ranks' tensors, in the order of the ranks.

        Raises:
            RuntimeError: on every rank, if one failed, with what it failed with; where all failed alike, just that.
            ValueError: on every rank, if they differ in something compared.
        """
        parts = self.gather(torch.cat([own.new_full((1,), self.error is not None), own]))
        failed, *differing = torch.stack([parts[:, 0].any(), *self.differing.values()]).tolist()  # waits for a GPU
        if failed:
            self._raise()
        for name, differs in zip(self.differing, differing, strict=True):
            if differs:
                raise ValueError(f"{name} must be the same on every rank of the process group, got different values")
        return parts[:, 1:].sum(0)

    def _raise(self) -> None:
        error, self.error = self.error, None  # a backward pass may be run again
        said = self.ranks.all_gather_object(error and f"{type(error).__name__}: {error}")
        if len(set(said)) == 1:
            raise error
        self.ranks.raise_failures(error)
