"""Rows for ToastLoss, and what it should make of them: plain float64 PyTorch and SciPy."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from toast_kernels import ToastLoss

CLASSES = 4


def make_rows(rows=40, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(CLASSES, (rows,), generator=generator)


def medoid_targets(logits, labels, temperature=1.0):
    """[C, C] and the medoids' positions, by brute force."""
    logits, medoids = logits.detach(), []
    for c in range(CLASSES):
        rows = np.flatnonzero(labels.numpy() == c)
        values = logits[rows].numpy()
        medoids.append(int(rows[cdist(values, values).sum(1).argmin()]))
    return (logits[medoids] / temperature).softmax(1), medoids


def plain_loss(logits, labels, soft, alpha, past=None, temperature=3.0, past_weight=1.0, **settings):
    """The mean loss in plain PyTorch; past is (rows, their past probabilities)."""
    log_probs = logits.log_softmax(1)
    hard = F.cross_entropy(logits, labels, reduction="none", **settings)
    rows = (1 - alpha) * hard - alpha * (soft[labels.clamp(min=0)] * log_probs).sum(1)
    loss = rows[labels >= 0].mean()
    if past is not None:
        index, probs = past
        kl = F.kl_div((logits[index] / temperature).log_softmax(1), probs, reduction="batchmean")
        loss = loss + past_weight * temperature**2 * kl
    return loss


def exact(**settings):
    """A loss whose pool and soft targets round nothing, and weigh much."""
    settings = {"alpha": 0.8, "past_weight": 1.0, "dtype": torch.float64, **settings}
    return ToastLoss(CLASSES, pool_dtype=torch.float64, **settings)


def equal(found, expected):  # alpha is a float32 tensor
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
