"""toast_loss's arguments where classes lie over ranks: checked before ranks meet, and what needs all of C after."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Arguments, check, check_device, check_weight, class_dim, label_shape, learned
from ..checks import type_of
from ..soft_targets import SoftTargets


def check_own(given: Arguments, call: str) -> Arguments:
    """Raises for what this rank can tell alone. Returns what to_problem takes: where a rank has no classes, with one
    that is masked, and that nothing is worked out for."""
    logits, target, weight, soft, past = given.logits, given.target, given.weight, given.soft_targets, given.past
    if given.backend != "auto":
        raise ValueError(f'{call} over a process group has backend "auto" alone, got {given.backend!r}')
    if isinstance(logits, Tensor) and logits.dim() and not logits.shape[class_dim(logits)]:
        logits, target, soft, past = (_padded(x) for x in (logits, target, soft, past))
    given = given._replace(logits=logits, target=target, soft_targets=soft, past=past)
    width = given.logits.shape[class_dim(logits)] if isinstance(logits, Tensor) and logits.dim() else 0
    check(given._replace(weight=None, soft_targets=None, past=_as_if_whole(past, width)))
    if isinstance(weight, Tensor):
        check_weight(weight, logits, weight.numel())
    elif weight is not None:
        check_weight(weight, logits, 0)
    for name, table in (("soft_targets", soft), ("past", past)):
        if isinstance(table, SoftTargets):
            check_device(name, table.values, logits)
            if table.encoding != "top-k" and table.num_classes != width:
                raise ValueError(
                    f"{name} must have the columns of this rank's {width} classes (or be top-k rows of all classes), "
                    f"got {table.num_classes}"
                )
    if soft is not None:
        if not isinstance(soft, SoftTargets):
            raise TypeError(f"soft_targets must be SoftTargets, got {type_of(soft)}")
        if isinstance(target, Tensor) and target.is_floating_point():
            raise ValueError("soft_targets are looked up by label, but target holds class probabilities")
    if torch.is_grad_enabled() and (names := learned(given)):
        raise ValueError(f"{names[0]} must not require grad: over a process group {call} gives it no gradient")
    return given


def settings(given: Arguments) -> dict:
    """What must be the same on all ranks, as it is said where it is not."""

    def table(x):
        if not isinstance(x, SoftTargets):
            return x if x is None else f"logits in {list(label_shape(x))} rows"
        whole = f" of {x.num_classes} classes" if x.encoding == "top-k" else ""
        softened = f" at {x.temperature}" if x.encoding == "logits" else ""
        return f"{x.encoding} {x.values.dtype} [{len(x)}, ...]{whole}{softened}"

    target = given.target
    if isinstance(target, Tensor):
        target = "class probabilities" if target.is_floating_point() else "labels"
    else:
        target = "(y_a, y_b, lam)"
    numbers = {
        name: "a tensor" if isinstance(value := getattr(given, name), Tensor) and value.is_cuda else float(value)
        for name in ("alpha", "past_weight", "temperature", "label_smoothing")
    }
    return {
        "shape of labels": list(label_shape(given.logits)),
        "dtype": given.logits.dtype,
        "target": target,
        "weight": given.weight if given.weight is None else list(given.weight.shape),
        "soft_targets": table(given.soft_targets),
        "past": table(given.past),
        "past_index": given.past_index if given.past_index is None else "given",
        **numbers,
        "ignore_index": given.ignore_index,
        "reduction": given.reduction,
        "return_stats": bool(given.return_stats),
    }


def check_widths(given: Arguments, num_classes: int) -> None:
    """Raises, on every rank alike, where all shards' classes are not those of what is given whole."""
    soft, past, weight = given.soft_targets, given.past, given.weight
    of_all = f"C = {num_classes} (from the logits of all ranks)"
    if num_classes == 0:
        raise ValueError("logits must have at least one class on one of the ranks, got none")
    if weight is not None and len(weight) != num_classes:
        raise ValueError(f"weight must have shape [C], of all classes, with {of_all}, got {list(weight.shape)}")
    if soft is not None and len(soft) != num_classes:
        raise ValueError(f"soft_targets must have a row for each class with {of_all}, got {len(soft)} rows")
    for name, rows in (("soft_targets", soft), ("past", past)):
        if isinstance(rows, SoftTargets) and rows.encoding == "top-k" and rows.num_classes != num_classes:
            raise ValueError(f"top-k rows of {name} must be of all classes with {of_all}, got {rows.num_classes}")


def _padded(x):
    """With one class where there is none."""
    if isinstance(x, SoftTargets) and not x.num_classes:
        return SoftTargets(_padded(x.values), x.entropy, x.filled, 1, logsumexp=x.logsumexp, temperature=x.temperature)
    if isinstance(x, Tensor) and x.is_floating_point() and x.dim() and not x.shape[class_dim(x)]:
        shape = list(x.shape)
        shape[class_dim(x)] = 1
        return x.new_full(shape, -torch.inf)
    return x


def _as_if_whole(past, width: int):
    """For `check`, which asks for as many classes as there are columns."""
    if isinstance(past, SoftTargets) and past.encoding == "top-k":
        values, indices = past.values[:, :width], past.indices[:, :width]
        return SoftTargets(values, past.entropy, past.filled, width, indices, None, past.temperature)
    return past
