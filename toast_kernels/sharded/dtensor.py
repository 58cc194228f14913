"""DTensors whose classes are sharded: this rank's slices, and the process group."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..arguments import Arguments, class_dim

if TYPE_CHECKING:
    from torch import Tensor

    from ..distributed import ProcessGroup


def is_dtensor(x) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")  # takes a second to import; without it there are none
    return tensor is not None and isinstance(x, tensor.DTensor)


def local(given: Arguments) -> Arguments:
    """With DTensors as slices where they hold classes and whole where they do not."""
    target = given.target
    if isinstance(target, (tuple, list)):
        target = tuple(whole(f"target[{i}]", x) for i, x in enumerate(target))
    elif is_dtensor(target) and target.is_floating_point():
        target = slice_of("target of class probabilities", target)
    else:
        target = whole("target", target)
    names = ("weight", "alpha", "past_index", "past_weight")
    rest = {name: whole(name, getattr(given, name)) for name in names}
    logits, past = slice_of("logits", given.logits), slice_of("past", given.past)
    return given._replace(logits=logits, target=target, past=past, **rest)


def group_of(name: str, x, process_group: ProcessGroup | str | None) -> ProcessGroup | str | None:
    """That given, or of a DTensor's mesh. All else that may be wrong with x is for `check_one_group` and `slice_of`,
    which a rank can tell the others."""
    if process_group is not None or not is_dtensor(x):
        return process_group
    mesh = x.device_mesh
    if mesh.ndim != 1:
        raise ValueError(
            f"{name} must be a DTensor on a mesh of one dimension, over which its classes lie, got one of {mesh.ndim}; "
            f"the rows of each rank are its own"
        )
    if mesh.mesh.tolist() != sorted(mesh.mesh.tolist()):
        raise ValueError(f"the mesh of {name} must have its ranks in ascending order, got {mesh.mesh.tolist()}")
    return mesh.get_group()


def check_one_group(name: str, x, process_group: ProcessGroup | str | None) -> None:
    if process_group is not None and is_dtensor(x):
        raise ValueError(f"process_group must be None where {name} is a DTensor: it is that of the mesh")


def slice_of(name: str, x, dim: int | None = None):
    """This rank's classes, which lie along `dim`, of a DTensor; what is none stays as it is."""
    if not is_dtensor(x):
        return x
    dim = class_dim(x) if dim is None else dim
    if len(x.placements) != 1 or not x.placements[0].is_shard(dim):
        raise ValueError(f"{name} must be a DTensor sharded on its class dimension, {dim}, got {x.placements}")
    return x.to_local()


def whole(name: str, x):
    """A DTensor that every rank has all of; what is none stays as it is."""
    if not is_dtensor(x):
        return x
    if not all(placement.is_replicate() for placement in x.placements):
        raise ValueError(f"{name} must be a replicated DTensor or a tensor, got {x.placements}")
    return x.to_local()


def arrived(x: Tensor) -> Tensor:
    """What a tensor holds that functional collectives are still writing, which kernels cannot be handed; detached."""
    x = x.detach()
    return x.trigger_wait() if hasattr(x, "trigger_wait") else x
