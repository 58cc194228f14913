"""What a classifier is judged by, from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

ECE_BINS = 15


def judged(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: which of the five best classes is the target [N, 5], -log p of the target [N], the largest p [N]."""
    log_probs = logits.float().log_softmax(dim=1)
    best = log_probs.topk(min(5, log_probs.shape[1]), dim=1)
    return best.indices == target[:, None], -log_probs.gather(1, target[:, None])[:, 0], best.values[:, 0].exp()


def scores(hits: Tensor, nll: Tensor, confidence: Tensor) -> dict[str, float]:
    """top1 and top5 accuracy, nll (mean cross-entropy) and ece, of what `judged` says of all rows."""
    return {
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits.any(dim=1).double().mean().item(),
        "nll": nll.double().mean().item(),
        "ece": expected_calibration_error(confidence, hits[:, 0]),
    }


def expected_calibration_error(confidence: Tensor, hit: Tensor, bins: int = ECE_BINS) -> float:
    """Guo et al. 2017: mean of |accuracy - confidence| over equal bins of confidence, weighted by their rows."""
    bin_of = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, bin_of, hit.double() - confidence.double())
    return (gap.abs().sum() / len(hit)).item()
