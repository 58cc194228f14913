"""toast_loss's arguments: checked, each error naming the argument, what was expected and what came; then a Problem."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import FLOATS
from .blended_kl.problem import Problem, Table, is_traced, loss_dtype, number
from .checks import came, check_floating, check_int64, check_labels, check_number, type_of
from .mixup import check_lam
from .native import rows_of, widest
from .soft_targets import SoftTargets


class Arguments(NamedTuple):
    """As the caller gave them. In every call they are a plain tuple in this order: it takes a fifth of the time."""

    logits: Any
    target: Any
    weight: Any
    soft_targets: Any
    alpha: Any
    past: Any
    past_index: Any
    past_weight: Any
    temperature: Any
    ignore_index: Any
    label_smoothing: Any
    reduction: Any
    return_stats: Any
    backend: Any


def check(given: Arguments) -> None:
    """Raises for everything that shapes, dtypes, devices and settings tell."""
    logits, ignore_index = given.logits, given.ignore_index
    if not isinstance(logits, Tensor) or logits.dtype not in FLOATS:
        raise TypeError(f"logits must be a float64, float32, bfloat16 or float16 tensor, got {type_of(logits)}")
    if logits.dim() == 0 or logits.shape[class_dim(logits)] == 0:
        raise ValueError(f"logits must have shape [C], [N, C] or [N, C, d1, ...] with C >= 1, got {list(logits.shape)}")
    num_classes = logits.shape[class_dim(logits)]
    check_int64("ignore_index", ignore_index)
    _check_target(given.target, logits, ignore_index)
    check_weight(given.weight, logits, num_classes)
    for name, *interval in (("label_smoothing", 0, 1), ("temperature", 0, math.inf, "()")):
        value = getattr(given, name)
        _check_scalar(name, value, logits, *interval)
        if isinstance(value, Tensor):
            if value.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{name} must not require grad: nothing gives it a gradient, detach it")
            check_number(name, value.item(), *interval)
    if given.reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {given.reduction!r}')
    if given.alpha is not None:
        _check_scalar("alpha", given.alpha, logits, 0, 1)
    _check_scalar("past_weight", given.past_weight, logits, 0, math.inf, "[)")
    _check_soft_targets(given.soft_targets, given.target, logits, num_classes)
    _check_past(given.past, given.past_index, logits, given.temperature)
    if given.alpha is None:
        raise ValueError("alpha must be given with soft_targets: their share, in [0, 1], got None")


def check_settings(num_classes: int, *, weight: Tensor | None, **settings) -> None:
    """Raises for settings of toast_loss that no call can be made with."""
    device = weight.device if isinstance(weight, Tensor) else "cpu"
    nothing = torch.empty(0, num_classes, dtype=torch.float32, device=device)
    labels = torch.empty(0, dtype=torch.int64, device=device)
    without = {"soft_targets": None, "alpha": 0.0, "past": None, "past_index": None, "return_stats": False}
    given = Arguments(logits=nothing, target=labels, weight=weight, **without, **settings)
    check(given)
    numbers(given)


def numbers(given: tuple) -> tuple:
    """(alpha, past_weight) as `number` gives them, of Arguments in order.

    Raises for what values tell. Those on a GPU are not read: that would wait for it.
    """
    target, soft_targets, given_alpha, past_weight = given[1], given[3], given[4], given[7]
    alpha, past_weight = number(given_alpha), number(past_weight)
    if type(alpha) is float or not isinstance(alpha, Tensor):
        if not 0 <= alpha <= 1:  # in every call: check_number would take longer
            check_number("alpha", alpha, 0, 1)
        if alpha > 0 and soft_targets is None and not isinstance(given_alpha, Tensor):
            raise ValueError(f"alpha = {alpha} needs soft_targets, got None")
    if (type(past_weight) is float or not isinstance(past_weight, Tensor)) and not 0 <= past_weight < math.inf:
        check_number("past_weight", past_weight, 0, math.inf, "[)")
    if type(target) is not Tensor and isinstance(target, (tuple, list)):
        _check_lam(target[2])
    return alpha, past_weight


def learned(given: Arguments) -> tuple[str, ...]:
    """The names of the arguments besides the logits that require grad and that the loss depends on."""
    target = given.target
    arguments = {
        "weight": given.weight,
        "alpha": None if given.soft_targets is None else given.alpha,
        "past_weight": None if given.past is None else given.past_weight,
        **({"target": target} if isinstance(target, Tensor) else {"lam": target[2]}),
    }
    return tuple(name for name, x in arguments.items() if isinstance(x, Tensor) and x.requires_grad)


def class_dim(logits: Tensor) -> int:
    return min(1, logits.dim() - 1)


def label_shape(logits: Tensor) -> torch.Size:
    """The shape of logits without its classes."""
    if logits.dim() == 2:
        return logits.shape[:1]
    at = class_dim(logits)
    return logits.shape[:at] + logits.shape[at + 1 :]


def to_problem(given: tuple, alpha, past_weight, need_gradient: bool) -> Problem:
    """Of checked Arguments in order: rows of classes, int64 labels, operands in the loss's dtype. Copies only what must
    be copied, which the kind of call tells."""
    (
        logits, target, weight, soft, _, past, past_index, _, temperature, ignore_index, label_smoothing, reduction,
        need_stats, _,
    ) = given  # fmt: skip
    temperature = float(temperature)
    dtype = loss_dtype(logits.dtype)
    rows = rows_of(as_rows(logits))
    y_b = lam = None
    if isinstance(target, Tensor):
        target = rows_of(as_rows(target)) if target.is_floating_point() else _labels(target)
    else:
        y_a, y_b, lam = target
        target, y_b = _labels(y_a), _labels(y_b)
        if isinstance(lam, Tensor):
            lam = lam.to(logits.device).expand(label_shape(logits)).reshape(-1)
            lam = _operand(lam, dtype)
        else:
            lam = rows.new_full(target.shape, lam, dtype=dtype)
    if weight is not None:
        weight = _operand(weight, dtype)
    if soft is None:
        alpha = None
    else:
        soft = _table(soft, soft.temperature or 1.0, dtype)
    if past is None:
        past_weight = None
    else:
        if isinstance(past, Tensor):
            past = SoftTargets.view_logits(as_rows(past.detach()), temperature)
        past = _table(past, temperature, dtype)
        if past_index is None:
            past_index = torch.arange(len(rows), dtype=torch.int64, device=rows.device)
        else:
            past_index = _labels(past_index)
    ignore_index = check_int64("ignore_index", ignore_index)  # NumPy's too
    return Problem(
        rows, target, y_b, lam, weight, soft, alpha, past, past_index, past_weight, None,
        temperature, ignore_index, float(label_smoothing), reduction, need_gradient, bool(need_stats),
    )  # fmt: skip


def as_rows(x: Tensor) -> Tensor:
    """[C] -> [1, C]; [N, C, d1, ...] -> [N * d1 * ..., C], a copy unless the classes lie together."""
    if x.dim() == 2:
        return x
    return x.unsqueeze(0) if x.dim() == 1 else x.movedim(1, -1).flatten(0, -2)


def _labels(labels: Tensor) -> Tensor:
    """[N] int64, contiguous."""
    if labels.dim() != 1:
        labels = labels.reshape(-1)
    return _operand(labels, torch.int64)


def _operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.resolve_neg() if tensor.dtype == dtype else tensor.to(dtype)  # .to resolves it too
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _table(targets: SoftTargets, temperature: float, dtype: torch.dtype) -> Table:
    """The rows as kernels take them: the same tensors where they can, and then the same Table again."""
    tables = {} if torch.compiler.is_compiling() else targets.__dict__.setdefault("_tables", {})
    table = tables.get((temperature, dtype))
    if table is not None:
        return table
    values, indices, logsumexp, entropy, filled, _ = own = targets.table
    table = Table(
        rows_of(values),
        None if indices is None else _operand(indices, torch.int32),
        None if logsumexp is None else _operand(logsumexp, widest(logsumexp.device)),
        _operand(entropy, dtype),
        _operand(filled, torch.bool),
        temperature,
    )
    if all(x is y for x, y in zip(table[:-1], own[:-1], strict=True)):
        tables[temperature, dtype] = table
    return table


def _check_target(target, logits, ignore_index):
    if isinstance(target, (tuple, list)):
        if len(target) != 3:
            raise ValueError(f"target as a tuple must be (y_a, y_b, lam), got {len(target)} items")
        for i, y in enumerate(target[:2]):
            _check_labels(f"target[{i}]", y, logits)
        return check_lam(target[2], label_shape(logits))
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor or a triple (y_a, y_b, lam), got {type_of(target)}")
    if not target.is_floating_point():
        return _check_labels("target", target, logits)
    check_device("target", target, logits)
    if target.shape != logits.shape:
        raise ValueError(
            f"target of class probabilities must be shaped like logits {list(logits.shape)}, got {list(target.shape)}"
        )
    if ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative with class probabilities as target, got {ignore_index}")


def _check_labels(name, labels, logits):
    check_labels(name, labels)
    check_device(name, labels, logits)
    if labels.shape != label_shape(logits):
        raise ValueError(
            f"{name} must have shape {list(label_shape(logits))} (logits {list(logits.shape)} without the classes, "
            f"dimension {class_dim(logits)}), got {list(labels.shape)}"
        )


def _check_lam(lam):
    if not isinstance(lam, Tensor):
        if not 0 <= lam <= 1:
            check_number("target[2] (lam)", lam, 0, 1)
    elif lam.device.type == "cpu" and not is_traced() and not ((lam >= 0) & (lam <= 1)).all():
        raise ValueError(f"target[2] (lam) must be in [0, 1], got values from {lam.min()} to {lam.max()}")


def check_weight(weight, logits, num_classes):
    if weight is None:
        return
    check_floating("weight", weight)
    check_device("weight", weight, logits)
    if weight.shape != (num_classes,):
        raise ValueError(f"weight must have shape [C] with C = {num_classes} (from logits), got {list(weight.shape)}")


def _check_scalar(name, value, logits, *interval):
    """A number; or a 0-d tensor, whose value is not looked at."""
    if not isinstance(value, Tensor):
        check_number(name, value, *interval)
    elif value.dim() or value.is_complex():
        raise ValueError(f"{name} must be a number or a real 0-d tensor, got {came(value)}")
    elif value.device.type != "cpu":
        check_device(name, value, logits)


def _check_soft_targets(soft_targets, target, logits, num_classes):
    if soft_targets is None:
        return
    if not isinstance(soft_targets, SoftTargets):
        raise TypeError(f"soft_targets must be SoftTargets, got {type_of(soft_targets)}")
    check_device("soft_targets", soft_targets.values, logits)
    if len(soft_targets) != num_classes or soft_targets.num_classes != num_classes:
        raise ValueError(
            f"soft_targets must have one row of C probabilities per class with C = {num_classes} (from logits), "
            f"got {len(soft_targets)} rows of {soft_targets.num_classes}"
        )
    if isinstance(target, Tensor) and target.is_floating_point():
        raise ValueError(
            "soft_targets are looked up by label, but target holds class probabilities: pass labels, or the "
            "(y_a, y_b, lam) triple, which mixup_triple recovers from mixed one-hot targets"
        )


def _check_past(past, past_index, logits, temperature):
    if past is None:
        if past_index is not None:
            raise ValueError("past_index needs past, got None")
        return
    if isinstance(past, Tensor) and past.is_floating_point() and past.dim():
        values, (num_past, past_classes), past_temperature = past, as_rows(past).shape, temperature
    elif isinstance(past, SoftTargets):
        values, num_past, past_classes, past_temperature = past.values, len(past), past.num_classes, past.temperature
    else:
        raise TypeError(f"past must be SoftTargets or a tensor of logits, got {type_of(past)}")
    check_device("past", values, logits)
    num_classes = logits.shape[class_dim(logits)]
    if past_classes != num_classes:
        raise ValueError(f"past must have C = {num_classes} classes (from logits), got {past_classes}")
    if past_temperature is not None and past_temperature != temperature:
        raise ValueError(f"past was softened at temperature {past_temperature}, but temperature is {temperature}")
    shape = label_shape(logits)
    if past_index is None:
        if num_past != shape.numel():
            raise ValueError(
                f"past_index may be left out only if past has a row for each of the {shape.numel()} rows of logits, "
                f"got {num_past} rows"
            )
        return
    if not isinstance(past_index, Tensor) or past_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"past_index must be an int64 or int32 tensor, got {type_of(past_index)}")
    check_device("past_index", past_index, logits)
    if past_index.shape != shape:
        raise ValueError(f"past_index must have the labels' shape {list(shape)}, got {list(past_index.shape)}")


def check_device(name, tensor, logits):
    if tensor.device != logits.device:
        raise ValueError(f"{name} must be on the device of logits, {logits.device}, got {tensor.device}")
