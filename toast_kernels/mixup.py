"""mixup_triple: the labels behind the dense targets that Mixup and CutMix of timm and torchvision give."""

import torch
from torch import Tensor


@torch.no_grad()
def mixup_triple(probs: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The triple (y_a, y_b, lam) with probs = lam * onehot(y_a) + (1 - lam) * onehot(y_b), row by row.

    A loss needs the labels to look up class soft targets; dense targets hide them. y_a is the class with the larger
    share (of equal shares, the lower class), so lam >= 0.5; a row of one class comes back as (y, y, 1).

    Args:
        probs: [N, C] floating, each row with one or two classes above 0 and a sum of 1.
        label_smoothing: what `probs` were smoothed with, (1 - label_smoothing) * mixed + label_smoothing / C, as
            timm's Mixup does by default (0.1). It is taken out: the triple holds the labels before smoothing. To have
            the same loss, pass the same label_smoothing to toast_loss.

    Returns:
        y_a, y_b: int64 [N]. lam: [N], float32 or wider.

    Raises:
        TypeError, ValueError: probs of another shape or dtype; a row that is no mixture of one or two labels. On a
            GPU this look at the values is a host sync.
    """
    if not isinstance(probs, Tensor) or not probs.is_floating_point():
        raise TypeError(f"probs must be a floating-point tensor, got {getattr(probs, 'dtype', type(probs).__name__)}")
    if probs.dim() != 2 or probs.shape[1] == 0:
        raise ValueError(f"probs must have shape [N, C] with C >= 1, got {list(probs.shape)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    rounding = 4 * torch.finfo(probs.dtype).eps
    shares = probs.to(torch.promote_types(probs.dtype, torch.float32))
    if label_smoothing:
        shares = (shares - label_smoothing / shares.shape[1]) / (1 - label_smoothing)
        shares = torch.where(shares.abs() <= rounding, 0, shares)

    wrong = (shares < 0).any(dim=1) | ~((shares.sum(dim=1) - 1).abs() <= rounding) | ((shares > 0).sum(dim=1) > 2)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        count, total = int((shares[row] > 0).sum()), float(probs[row].sum())
        raise ValueError(
            f"each row of probs must mix one or two labels, smoothed by label_smoothing = {label_smoothing}; "
            f"row {row} has {count} classes above that and a sum of {total:.4g}. "
            "Smoothed targets need the label_smoothing they were made with"
        )
    y_a = shares.argmax(dim=1)
    lam, others = shares.gather(1, y_a[:, None]), shares.scatter(1, y_a[:, None], 0)
    single = (others == 0).all(dim=1)
    y_b = torch.where(single, y_a, others.argmax(dim=1))
    return y_a, y_b, torch.where(single, 1, lam[:, 0])
