"""What the modules with state share: how it keeps its dtypes, whose state it is, and where a warning points."""

import math
import sys
import warnings
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

LARGE = 2 * 2**30  # bytes that are worth a warning


def keeping_dtypes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What nn.Module._apply is to put in place of each tensor where `fn` is .half() and the like: the tensor where fn
    would put it, of its own dtype."""

    def apply(tensor: Tensor) -> Tensor:
        like = fn(tensor.new_empty(0))
        return fn(tensor) if like.dtype == tensor.dtype else tensor.to(like.device)

    return apply


def warn(message: str) -> None:
    """A UserWarning at the line that called into this package, past its own frames and those of nn.Module."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (__package__, "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def state_rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def of_another_loss(loss, state: dict, prefix: str, errors: list[str]) -> bool:
    """Whether a state is of other settings; then `errors` says so. It may have some of the names only."""
    bank, wrong = loss.bank, []
    values, entropy, temperature = (state.get(prefix + x) for x in ("values", "entropy", "soft_temperature"))
    if loss.max_alpha > 0 and values is not None and entropy is not None:
        top_k = values.shape[1] if f"{prefix}indices" in state else None
        wrong += [("num_classes", len(entropy), bank.num_classes), ("top_k", top_k, bank.top_k)]
    if loss.max_alpha > 0 and temperature is not None and not temperature.is_meta:
        near = math.isclose(temperature, bank.temperature, rel_tol=1e-2)  # averages and half types round
        wrong.append(("soft_temperature", bank.temperature if near else float(temperature), bank.temperature))
    wrong = [f"{name} = {of_state}, and here it is {here}" for name, of_state, here in wrong if of_state != here]
    errors += [f"{prefix or 'the state '}is of a loss with {text}" for text in wrong]
    return bool(wrong)
