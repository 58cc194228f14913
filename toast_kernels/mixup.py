"""Labels of mixed rows: those behind the dense targets that Mixup and CutMix of timm and torchvision give."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .annotations import Target
from .checks import check_floating, check_labels, check_number, type_of


@torch.no_grad()
def mixup_triple(probs: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The triple (y_a, y_b, lam) with probs = lam * onehot(y_a) + (1 - lam) * onehot(y_b), row by row.

    A loss needs the labels to look up class soft targets; dense targets hide them. y_a is the class with the larger
    share (of equal shares, the lower class), so lam >= 0.5; a row of one class comes back as (y, y, 1).

    Args:
        probs: [N, C] or [N, C, d1, ...] floating, each row with one or two classes above 0 and a sum of 1, up to the
            roundings of its dtype.
        label_smoothing: what `probs` were smoothed with, (1 - label_smoothing) * mixed + label_smoothing / C, as
            timm's Mixup does by default (0.1). It is taken out: the triple holds the labels before smoothing. A row
            that has a class at 0, as torchvision's of three classes or more, was not smoothed and is taken as it is. To
            have the same loss as of smoothed targets, pass the same label_smoothing to toast_loss.

    Returns:
        y_a, y_b: int64, shaped like probs without the class dimension. lam: likewise, float32 or wider.

    Raises:
        TypeError, ValueError: probs of another shape or dtype, or that require a gradient, which labels have none of.
            On a CPU, a row that is no mixture of one or two labels; on a GPU, where nothing waits for it, and under
            torch.compile the lam of that row is NaN, and so is its loss.
    """
    check_floating("probs", probs)
    if probs.dim() < 2 or probs.shape[1] == 0:
        raise ValueError(f"probs must have shape [N, C] or [N, C, d1, ...] with C >= 1, got {list(probs.shape)}")
    if probs.requires_grad:
        raise ValueError("probs must not require a gradient: labels have none")
    check_number("label_smoothing", label_smoothing, 0, 1, "[)")
    probs = probs.movedim(1, -1)
    num_classes, wide = probs.shape[-1], torch.promote_types(probs.dtype, torch.float32)
    largest = min(3, num_classes)
    top, classes = (F.pad(x, (0, 3 - largest)) for x in probs.topk(largest, dim=-1))
    first, second, third = top.to(wide).unbind(-1)
    low = probs.amin(dim=-1).to(wide)

    smoothing = (low > 0).to(wide) * label_smoothing
    floor = smoothing / num_classes  # the share of a class that is not in the mixture
    # Four roundings, of the shares and of the floor: mixing takes up to three, in the dtype of probs.
    number = torch.finfo(probs.dtype)
    rounding = 4 * number.eps / (1 - smoothing)
    floor_rounding = 4 * number.eps * floor.clamp(min=number.smallest_normal)
    single = second - floor <= floor_rounding
    a, b = (first - floor) / (1 - smoothing), torch.where(single, 0, (second - floor) / (1 - smoothing))
    mixed = (third - floor <= floor_rounding) & (low - floor >= -floor_rounding) & ((a + b - 1).abs() <= rounding)

    if probs.device.type == "cpu" and not torch.compiler.is_compiling() and not mixed.all():
        _raise_row(probs, mixed, floor + floor_rounding, label_smoothing)
    y_a, other, _ = classes.unbind(-1)
    y_b = torch.where(single, y_a, other)
    y_a, y_b = torch.where(a == b, y_a.minimum(y_b), y_a), torch.where(a == b, y_a.maximum(y_b), y_b)
    return y_a, y_b, torch.where(mixed, a / (a + b), torch.nan)


def _raise_row(probs: Tensor, mixed: Tensor, floor: Tensor, label_smoothing: float) -> None:
    row = tuple(mixed.logical_not().nonzero()[0].tolist())
    shares = probs[row].to(floor.dtype)
    raise ValueError(
        f"each row of probs must mix one or two labels, smoothed by label_smoothing = {label_smoothing} or not at all; "
        f"row {row[0] if len(row) == 1 else list(row)} has {int((shares > floor[row]).sum())} classes above that and a "
        f"sum of {float(shares.sum()):.4g}. Smoothed targets need the label_smoothing they were made with"
    )


def check_target(target, shape: torch.Size, num_classes: int) -> None:
    """Raises unless it is labels of this shape, class probabilities or a triple."""
    is_triple = isinstance(target, (tuple, list)) and len(target) == 3
    for name, part in (("target[0]", target[0]), ("target[1]", target[1])) if is_triple else (("target", target),):
        if not isinstance(part, Tensor):
            expected = "a tensor" if is_triple else "a tensor or a triple (y_a, y_b, lam)"
            raise TypeError(f"{name} must be {expected}, got {type_of(part)}")
        expected = shape
        if is_triple or not part.is_floating_point():
            check_labels(name, part)
        else:
            name, expected = "target of class probabilities", (*shape[:1], num_classes, *shape[1:])
        if part.shape != expected:
            raise ValueError(f"{name} must have shape {list(expected)} (from logits), got {list(part.shape)}")
    if is_triple:
        check_lam(target[2], shape)


def check_lam(lam, shape: torch.Size) -> None:
    """A tensor's values are not looked at."""
    if not isinstance(lam, Tensor):
        check_number("target[2] (lam)", lam, 0, 1)
    elif lam.is_complex() or lam.dtype == torch.bool:
        raise TypeError(f"target[2] (lam) must be a number or a real tensor, got {type_of(lam)}")
    elif lam.dim() and lam.shape != shape:
        raise ValueError(f"target[2] (lam) must be a number or have shape {list(shape)}, got {list(lam.shape)}")


def main_class(target, min_share: float, ignore_index: int) -> Tensor:
    """int64: the class that each row belongs to with a share of min_share > 0.5, or ignore_index; a label as it is."""
    if isinstance(target, (tuple, list)):
        y_a, y_b, lam = target[0].long(), target[1].long(), target[2]  # ignore_index is no uint8
        if not isinstance(lam, Tensor):
            # Filled there: a copy from here would wait.
            lam = torch.full((), lam, dtype=torch.float32, device=y_a.device)
        lam = lam.to(y_a.device)
        mostly_b = torch.where(1 - lam >= min_share, y_b, ignore_index)
        return torch.where((lam >= min_share) | (y_a == y_b), y_a, mostly_b)
    if target.is_floating_point():
        share, labels = target.max(dim=1)
        return torch.where(share >= min_share, labels, ignore_index)
    return target.long()


def first_rows(target: Target, rows: int) -> Target:
    if isinstance(target, Tensor):
        return target[:rows]
    y_a, y_b, lam = target
    return y_a[:rows], y_b[:rows], lam[:rows] if isinstance(lam, Tensor) and lam.dim() else lam
