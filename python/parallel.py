"""Under torchrun: one training by several processes, each with its share of every batch. Alone: nothing happens.

Gradients are averaged after each step and BatchNorm's statistics after each epoch; class medoids are chosen among the
rows of all (ToastLoss). Each process replays rows of its own and saves a checkpoint of its own; the first one reports.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device: torch.device) -> torch.device:
    """This process's device, once all have come."""
    if SIZE > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def everyones(value) -> list:
    """Each process's value, once all have come."""
    values = [value] * SIZE
    if SIZE > 1:
        dist.all_gather_object(values, value)
    return values


def share(rows: Tensor, rank: int = RANK) -> Tensor:
    """Those of a batch's rows that a process draws."""
    return rows.tensor_split(SIZE)[rank]


def generator_seed(seed: int) -> int:
    return seed + (RANK << 32)


def add_up(tensor: Tensor) -> None:
    """In place."""
    if SIZE > 1:
        dist.all_reduce(tensor)


def average_gradients(model: nn.Module) -> None:
    _average([parameter.grad for parameter in model.parameters()])


def average_statistics(model: nn.Module) -> None:
    _average([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def any_asked(asked: bool, device: torch.device) -> bool:
    """Whether one has, the same in all: in that step all stop."""
    if SIZE == 1:
        return asked
    number = torch.tensor(asked, dtype=torch.int64, device=device)
    add_up(number)
    return number.item() > 0


def _average(tensors: list[Tensor]) -> None:
    if SIZE > 1:
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        for tensor, mean in zip(tensors, (together / SIZE).split([x.numel() for x in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))
