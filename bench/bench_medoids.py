"""class_medoids beside its peers: SciPy, torch.cdist, a torch sort, kmedoids, PyKeOps.

    pytest bench/bench_medoids.py          (make bench; results are appended to bench/results/medoids.csv)

Every peer's medoids are checked to be ours before anything is timed.
"""

import sys
from pathlib import Path

import pytest
import torch
from scipy.spatial.distance import cdist

from toast_kernels.functional import class_medoids

sys.path.insert(0, str(Path(__file__).parent))
from harness import interleave, ratio, report

SHAPES = {"10000x100, 20 classes": (10_000, 100, 20), "1300x1000, 1 class": (1300, 1000, 1)}


def pool(rows, width, num_classes):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(rows, width, generator=generator)
    return x, torch.randint(num_classes, (rows,), generator=generator)


def by_class(medoid, x, labels, num_classes):
    """The loop a user writes: `medoid` of each class's rows."""
    medoids = []
    for c in range(num_classes):
        rows = (labels == c).nonzero().squeeze(1)
        medoids.append(rows[medoid(x[rows])])
    return torch.stack(medoids)


def scipy_medoid(metric):
    return lambda rows: int(cdist(rows.numpy(), rows.numpy(), metric).sum(axis=1).argmin())


def torch_cdist_medoid(p):
    return lambda rows: torch.cdist(rows, rows, p=p).sum(dim=1).argmin()


def torch_mean_medoid(rows):
    return (rows - rows.mean(dim=0)).square().sum(dim=1).argmin()


def torch_cosine_medoid(rows):
    unit = torch.nn.functional.normalize(rows, dim=1)
    return (unit @ unit.sum(dim=0)).argmax()


def torch_jeffreys_medoid(rows):
    log_p = rows.log_softmax(dim=1)
    p = log_p.exp()
    return ((p - p.mean(dim=0)) * (log_p - log_p.mean(dim=0))).sum(dim=1).argmin()


def torch_sort_medoid(rows):
    """sum over j of |v_i - v_j| from ranks and prefix sums, a column each."""
    n = len(rows)
    values, order = rows.sort(dim=0)
    before = values.cumsum(dim=0)
    rank = torch.arange(1, n + 1, dtype=rows.dtype)[:, None]
    cost = (2 * rank - n) * values - 2 * before + before[-1]
    return torch.zeros_like(rows).scatter_(0, order, cost).sum(dim=1).argmin()


def kmedoids_medoid(rows):
    import kmedoids

    return int(kmedoids.fasterpam(torch.cdist(rows, rows).numpy(), 1, random_state=0).medoids[0])


def pykeops_medoid():
    try:
        from pykeops.torch import LazyTensor

        LazyTensor(torch.rand(4, 1, 2)).sqdist(LazyTensor(torch.rand(1, 4, 2))).sum(dim=1)
    except Exception as error:
        print(f"  PyKeOps is left out: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        return None

    def medoid(rows):
        return (LazyTensor(rows[:, None]) - LazyTensor(rows[None])).square().sum(-1).sqrt().sum(dim=1).argmin()

    return medoid


def peers(metric):
    """{name: medoid of one class's rows}; the first is the one to beat."""
    if metric == "euclidean":
        found = {"torch.cdist": torch_cdist_medoid(2.0), "kmedoids": kmedoids_medoid, "scipy": scipy_medoid(metric)}
        keops = pykeops_medoid()
        return found | ({"pykeops": keops} if keops else {})
    if metric == "cityblock":
        return {"torch sort": torch_sort_medoid, "torch.cdist": torch_cdist_medoid(1.0), "scipy": scipy_medoid(metric)}
    if metric == "sqeuclidean":
        return {"torch mean": torch_mean_medoid, "scipy": scipy_medoid(metric)}
    if metric == "cosine":
        return {"torch sum": torch_cosine_medoid, "scipy": scipy_medoid(metric)}
    return {"torch mean": torch_jeffreys_medoid}


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys"])
@pytest.mark.parametrize("shape", SHAPES)
def test_medoids(benchmark, shape, metric):
    x, labels = pool(*SHAPES[shape])
    num_classes = SHAPES[shape][2]
    cases = {"toast_kernels": lambda: class_medoids(x, labels, num_classes, metric=metric)}
    for name, medoid in peers(metric).items():
        cases[name] = lambda medoid=medoid: by_class(medoid, x, labels, num_classes)
    expected = cases["toast_kernels"]()
    for name, run in cases.items():
        assert run().equal(expected), f"{name} finds other medoids"
    # A read of the pool and no more: what no selection can beat.
    cases["reading x"] = lambda: x.sum()

    print(f"\n{shape}, {metric}, float32, {torch.get_num_threads()} threads")
    times = interleave(cases)
    report(times, "toast_kernels", "medoids", shape=shape, metric=metric)
    benchmark.pedantic(cases["toast_kernels"], rounds=3)
    benchmark.extra_info.update({name: ratio(times, "toast_kernels", name)[0] for name in cases})
