"""Medoids from SciPy in float64, which shares no code with the library, and data for the tests."""

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, rel_entr

from toast_kernels.functional import class_medoids
from toast_kernels.medoids.reference import METRICS as METRICS

BACKENDS = ("reference", "cpu")
SHIFT_INVARIANT = ("euclidean", "sqeuclidean", "cityblock", "jeffreys")  # angles do change
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def distances(rows, metric):
    """[n, n] float64."""
    if metric != "jeffreys":
        return cdist(rows, rows, metric)
    p = np.exp(log_softmax(rows, axis=1))
    forward = np.stack([rel_entr(q, p).sum(axis=1) for q in p])
    return forward + forward.T


def scipy_medoids(x, labels, num_classes, metric):
    x, labels = x.double().numpy(), labels.numpy()
    medoids = []
    for c in range(num_classes):
        rows = np.flatnonzero(labels == c)
        if len(rows):
            cost = distances(x[rows], metric).sum(axis=1)
            medoids.append(rows[np.flatnonzero(cost <= cost.min() * (1 + 1e-12))[0]])
        else:
            medoids.append(-1)
    return torch.tensor(medoids)


def logits(rows, width, seed=0, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype)


def random_labels(rows, num_classes, seed=0):
    return torch.randint(num_classes, (rows,), generator=torch.Generator().manual_seed(seed + 1))


def one_class(x, metric, backend="cpu", **kwargs):
    return class_medoids(x, torch.zeros(len(x), dtype=torch.int64), 1, metric=metric, backend=backend, **kwargs).item()
