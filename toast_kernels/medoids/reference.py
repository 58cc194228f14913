"""class_medoids in plain float64 PyTorch, on any device: the specification in code.

E(i) = sum over j with label_j = label_i of d(x_i, x_j)          medoid of c = argmin of E over class c
"""

import torch

from ..native import widest

METRICS = ("euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys")  # in the order of csrc/medoids.h
TIE = 1e-12  # costs this close, relatively, are a tie: the lowest index wins
COSINE_FLOOR = 1e-28  # and for cosine so are mean distances below it: angles under float64's resolution
TILE = 1 << 22  # elements of the largest temporary


def class_medoids(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    mask,  # [N] bool or None
    num_classes,
    metric,
    ignore_index,
):  # -> [K] int64
    order, counts = by_class(x, labels, mask, num_classes, ignore_index)
    medoids = torch.full((num_classes,), -1, dtype=torch.int64, device=x.device)
    for c, rows in enumerate(order.split(counts.tolist())):
        if len(rows):
            medoids[c] = rows[first_minimum(costs(x, rows, metric), metric)]
    return medoids


def by_class(
    x,  # [N, D]
    labels,  # [N] int64 or int32
    mask,  # [N] bool or None
    num_classes,
    ignore_index,
):  # -> int64 [n], int64 [K]
    """The numbers of the rows that take part, by class, then ascending; and how many each class has."""
    used = (labels != ignore_index) & finite_rows(x)
    if mask is not None:
        used = used & mask
    wrong = (used & ((labels < 0) | (labels >= num_classes))).nonzero()
    if len(wrong):
        raise_label(int(wrong[0]), int(labels[wrong[0]]), num_classes, ignore_index)
    pool = used.nonzero().squeeze(1)
    return pool[labels[pool].argsort(stable=True)], labels[pool].long().bincount(minlength=num_classes)


def raise_label(position, label, num_classes, ignore_index):
    raise IndexError(
        f"labels must be in [0, {num_classes}) (num_classes) or ignore_index = {ignore_index}, "
        f"got {label} at position {position}"
    )


def finite_rows(x):
    """[N] bool: rows without NaN or infinity."""
    step = max(1, TILE // max(1, x.shape[1]))
    return torch.cat([rows.isfinite().all(dim=1) for rows in x.split(step)])


def first_minimum(cost, metric):
    """The lowest index whose cost ties with the smallest. A cost that overflowed is infinite, whatever the order
    of the sum made of it."""
    cost = cost.nan_to_num(nan=torch.inf, posinf=torch.inf)
    slack = COSINE_FLOOR * len(cost) if metric == "cosine" else 0.0
    return (cost <= cost.min() * (1 + TIE) + slack).nonzero()[0, 0]


def costs(x, rows, metric):
    """[n] float64 (`native.widest`): E of one class's rows, a tile of pairs at a time."""
    n, width = len(rows), max(1, x.shape[1])
    step = max(1, min(n, 1024, TILE // width))
    wide = widest(x.device)
    total = torch.zeros(n, dtype=wide, device=x.device)
    for i in range(0, n, step):
        a = features(x[rows[i : i + step]].to(wide), metric)
        for j in range(0, n, step):
            b = features(x[rows[j : j + step]].to(wide), metric)
            tile = distances(a, b, metric)
            if i == j:
                tile.fill_diagonal_(0.0)
            total[i : i + step] += tile.sum(dim=1)
    return total


def features(x, metric):
    """What a metric compares: the rows, the rows at length 1 (a zero row stays zero), or (p, log p)."""
    if metric == "cosine" and x.shape[1]:
        largest = x.abs().amax(dim=1, keepdim=True)
        x = x / largest.where(largest > 0, 1.0)  # so that squares neither over- nor underflow
        return x / x.norm(dim=1, keepdim=True).clamp_min(0.5)
    if metric == "jeffreys":
        log_p = x.log_softmax(dim=1)
        return log_p.exp(), log_p
    return x


def distances(a, b, metric):
    """[r, c] float64 distances, always from differences: products of uncentred rows cancel."""
    if metric == "euclidean":
        return euclidean(a, b)
    if metric == "sqeuclidean":
        return euclidean(a, b).square()
    if metric == "cosine":
        # 1 - cos = |u - v|^2 / 2 keeps its digits for nearly parallel rows. A zero row has no direction: it lies
        # at distance 1 from every other row, as in scikit-learn.
        zero = (a == 0).all(dim=1)[:, None] | (b == 0).all(dim=1)
        return torch.where(zero, 1.0, euclidean(a, b).square() / 2)
    if metric == "cityblock":
        return torch.cdist(a, b, p=1.0)
    # jeffreys: KL(p || q) + KL(q || p) = sum (p - q) (log p - log q), every term >= 0
    (p, log_p), (q, log_q) = a, b
    step = max(1, TILE // max(1, q.numel()))
    tiles = zip(p.split(step), log_p.split(step), strict=True)
    return torch.cat([((s[:, None] - q) * (t[:, None] - log_q)).sum(dim=2) for s, t in tiles])


def euclidean(a, b):
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
