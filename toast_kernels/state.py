"""What the modules with state share: how it keeps its dtypes, and whose state it is."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor


def keeping_dtypes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What nn.Module._apply is to put in place of each tensor where `fn` is .half() and the like: the tensor where fn
    would put it, of its own dtype."""

    def apply(tensor: Tensor) -> Tensor:
        like = fn(tensor.new_empty(0))
        return fn(tensor) if like.dtype == tensor.dtype else tensor.to(like.device)

    return apply


def of_another_version(state: dict, prefix: str, errors: list[str]) -> bool:
    """Whether a module's state was saved before states held tensors only; then `errors` says so."""
    if f"{prefix}_extra_state" not in state:
        return False
    errors.append(
        f"{prefix or 'the state'} is of a toast_kernels in which states were not tensors only, and cannot be loaded: "
        "train on from the epoch's start with a fresh loss, whose soft targets are there after one epoch"
    )
    return True


def state_rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
