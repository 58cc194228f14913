"""Checks of toast_loss's arguments: each error names the argument, what was expected and what came."""

import torch

from .soft_targets import SoftTargets

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def as_rows(x, class_dim):
    """[C] -> [1, C]; [N, C, d1, ...] -> [N * d1 * ..., C], a copy unless the classes lie together."""
    if x.dim() == 2:
        return x
    return x.unsqueeze(0) if x.dim() == 1 else x.movedim(class_dim, -1).flatten(0, -2)


def flatten_target(target, class_dim):
    if isinstance(target, tuple):
        return tuple(x.reshape(-1) for x in target)
    return as_rows(target, class_dim) if target.is_floating_point() else target.reshape(-1)


def check_target(target, logits, label_shape, ignore_index):
    if isinstance(target, (tuple, list)):
        if len(target) != 3:
            raise ValueError(f"target as a tuple must be (y_a, y_b, lam), got {len(target)} items")
        y_a, y_b = (_check_labels(f"target[{i}]", y, logits, label_shape) for i, y in enumerate(target[:2]))
        return y_a, y_b, _check_lam(target[2], logits, label_shape)
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor or a triple (y_a, y_b, lam), got {describe(target)}")
    if not target.is_floating_point():
        return _check_labels("target", target, logits, label_shape)
    _check_device("target", target, logits)
    if target.shape != logits.shape:
        raise ValueError(
            f"target of class probabilities must be shaped like logits {list(logits.shape)}, got {list(target.shape)}"
        )
    if ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative with class probabilities as target, got {ignore_index}")
    return target


def _check_labels(name, labels, logits, label_shape):
    if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must hold int64 or int32 labels, got {describe(labels)}")
    _check_device(name, labels, logits)
    if labels.shape != label_shape:
        raise ValueError(
            f"{name} must have shape {list(label_shape)} (logits {list(logits.shape)} without the class dimension), "
            f"got {list(labels.shape)}"
        )
    return labels.long()


def _check_lam(lam, logits, label_shape):
    if isinstance(lam, torch.Tensor) and lam.dim() and lam.shape != label_shape:
        raise ValueError(f"target[2] (lam) must be a number or have shape {list(label_shape)}, got {list(lam.shape)}")
    if not isinstance(lam, torch.Tensor):
        if not 0 <= lam <= 1:
            raise ValueError(f"target[2] (lam) must be in [0, 1], got {lam}")
        return logits.new_full(label_shape, lam, dtype=torch.promote_types(logits.dtype, torch.float32))
    lam = lam.detach().to(logits.device).expand(label_shape)
    if lam.device.type == "cpu" and not torch.compiler.is_compiling() and not ((lam >= 0) & (lam <= 1)).all():
        raise ValueError(f"target[2] (lam) must be in [0, 1], got values from {lam.min()} to {lam.max()}")
    return lam


def check_weight(weight, logits, num_classes):
    if weight is None:
        return None
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor, got {describe(weight)}")
    _check_device("weight", weight, logits)
    if weight.shape != (num_classes,):
        raise ValueError(f"weight must have shape [C] with C = {num_classes} (from logits), got {list(weight.shape)}")
    return weight.detach()


def check_scalar(name, value, largest, logits):
    if isinstance(value, torch.Tensor):
        if value.dim():
            raise ValueError(f"{name} must be a number or a 0-d tensor, got a tensor of shape {list(value.shape)}")
        if value.device.type != "cpu":
            _check_device(name, value, logits)
        if value.device.type != "cpu" or torch.compiler.is_compiling():
            return  # its value is not read here: that would wait for the device
        value = value.item()
    if not 0 <= value <= largest:
        allowed = f"in [0, {largest}]" if largest == 1 else "at least 0"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_soft_targets(soft_targets, alpha, target, logits, num_classes):
    if soft_targets is None:
        if not isinstance(alpha, torch.Tensor) and alpha > 0:
            raise ValueError(f"alpha = {alpha} needs soft_targets, got None")
        return None
    if not isinstance(soft_targets, SoftTargets):
        raise TypeError(f"soft_targets must be SoftTargets, got {describe(soft_targets)}")
    _check_device("soft_targets", soft_targets.values, logits)
    if len(soft_targets) != num_classes or soft_targets.num_classes != num_classes:
        raise ValueError(
            f"soft_targets must have one row of C probabilities per class with C = {num_classes} (from logits), "
            f"got {len(soft_targets)} rows of {soft_targets.num_classes}"
        )
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        raise ValueError(
            "soft_targets are looked up by label, but target holds class probabilities: pass labels, or the "
            "(y_a, y_b, lam) triple, which mixup_triple recovers from mixed one-hot targets"
        )
    return soft_targets


def check_past(past, past_index, logits, label_shape, class_dim, temperature):
    if past is None:
        if past_index is not None:
            raise ValueError("past_index needs past, got None")
        return None, None
    if isinstance(past, torch.Tensor):
        if not past.is_floating_point() or past.dim() == 0:
            raise TypeError(f"past must be SoftTargets or a tensor of logits, got {describe(past)}")
        past = SoftTargets.view_logits(as_rows(past.detach(), class_dim), temperature)
    if not isinstance(past, SoftTargets):
        raise TypeError(f"past must be SoftTargets or a tensor of logits, got {describe(past)}")
    _check_device("past", past.values, logits)
    num_classes = logits.shape[class_dim]
    if past.num_classes != num_classes:
        raise ValueError(f"past must have C = {num_classes} classes (from logits), got {past.num_classes}")
    if past.temperature is not None and past.temperature != temperature:
        raise ValueError(f"past was softened at temperature {past.temperature}, but temperature is {temperature}")
    num_rows = label_shape.numel()
    if past_index is None:
        if len(past) != num_rows:
            raise ValueError(f"past_index may be left out only if past has a row for each of the {num_rows} rows of "
                             f"logits, got {len(past)} rows")  # fmt: skip
        return past, torch.arange(num_rows, device=logits.device)
    if not isinstance(past_index, torch.Tensor) or past_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"past_index must be an int64 tensor, got {describe(past_index)}")
    _check_device("past_index", past_index, logits)
    if past_index.shape != label_shape:
        raise ValueError(f"past_index must have the labels' shape {list(label_shape)}, got {list(past_index.shape)}")
    return past, past_index.reshape(-1).long()


def _check_device(name, tensor, logits):
    if tensor.device != logits.device:
        raise ValueError(f"{name} must be on the device of logits, {logits.device}, got {tensor.device}")


def describe(value):
    return f"a {value.dtype} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
