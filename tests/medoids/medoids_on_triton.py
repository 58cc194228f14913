"""What the tests of class_medoids' Triton backend share: run on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch
from medoid_cases import METRICS, logits, scipy_medoids

pytest.importorskip("triton")

from toast_kernels import backends
from toast_kernels.functional import class_medoids
from toast_kernels.medoids import triton as backend

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
needs_triton = pytest.mark.skipif(not (GPU or backends.interpreted()), reason="neither a GPU nor TRITON_INTERPRET=1")
on_a_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
every_metric = pytest.mark.parametrize("metric", METRICS)
every_formula = pytest.mark.parametrize(  # from pairs and from means; other metrics read rows in the same way
    "metric", [pytest.param(m, marks=[pytest.mark.more] * (m not in ("euclidean", "jeffreys"))) for m in METRICS]
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Few rows span many tiles, pieces and runs."""
    tile = backend.PairTile(16, 64, 4, 1, 2)
    monkeypatch.setattr(backend, "WHOLE", tile)
    monkeypatch.setattr(backend, "CHUNKED", tile)
    monkeypatch.setattr(backend, "POINTERS", tile)
    monkeypatch.setattr(backend, "CITYBLOCK", backend.PairTile(16, 16, 4, 1, 2))
    monkeypatch.setattr(backend, "WHOLE_WIDTH", 200)
    monkeypatch.setattr(backend, "ROW_TILE", (1024, 256))
    monkeypatch.setattr(backend, "BLOCK", 64)
    monkeypatch.setattr(backend, "PIECE", 32)
    monkeypatch.setattr(backend, "RUNS", 2)


@pytest.fixture
def panels(monkeypatch):
    """Sets how many panels the positions are cut into, at most."""

    def set_panels(count):
        monkeypatch.setattr(backend, "PANEL_BYTES", 1)
        monkeypatch.setattr(backend, "MAX_PANELS", count)

    return set_panels


def medoids(x, labels, num_classes, metric, mask=None, **options):
    mask = mask if mask is None else mask.to(DEVICE)
    x, labels = x.to(DEVICE), labels.to(DEVICE)
    return class_medoids(x, labels, num_classes, metric=metric, mask=mask, backend="triton", **options).cpu()


def one_class(x, metric, **options):
    return medoids(x, torch.zeros(len(x), dtype=torch.int64), 1, metric, **options).item()


def expected_of_one_class(x, metric):
    return scipy_medoids(x, torch.zeros(len(x)), 1, metric).item()


def grouped(x, labels, num_classes, metric):
    return backend._Classes(x.to(DEVICE), labels.to(DEVICE), None, num_classes, metric, -100)


def nominated(x, metric, labels=None):
    """(costs, bounds) [N] of x, one class unless labels say otherwise, by row; euclidean and cityblock times a power of
    two of the class, which comes third."""
    labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
    classes = grouped(x, labels, int(labels.max()) + 1, metric)
    cost, bound = classes.nominate()
    back = classes.x.order.argsort()
    most = 1000 if x.dtype == torch.float64 else 93
    exponent = (1023 + 6 - classes.top).clamp(-most, most)[classes.x.keys.long()]
    return cost[back].cpu(), bound[back].cpu(), torch.ldexp(torch.ones_like(cost), exponent[back]).cpu()


CLOUDS = {
    "gaussian": lambda: logits(70, 60),
    "float64": lambda: logits(40, 60, dtype=torch.float64),
    "bfloat16": lambda: logits(40, 40, dtype=torch.bfloat16),
    "far-from-the-origin": lambda: logits(40, 20) + 1000,
    "clusters": lambda: (10 * logits(5, 20)).repeat(8, 1) + 1e-3 * logits(40, 20),
    "duplicates": lambda: logits(10, 20).repeat(4, 1),
    "one-row-many-times": lambda: torch.arange(20.0).expand(40, -1),
    "one-outlier": lambda: torch.cat([1e-6 * logits(40, 20), torch.full((1, 20), 1e6)]),
    "mild-outlier": lambda: torch.cat([logits(40, 20), torch.full((1, 20), 1e6)]),
    "tiny": lambda: logits(40, 20, dtype=torch.float64) * 1e-90,
    "huge": lambda: logits(40, 20, dtype=torch.float64) * 1e90,
    "tiny-float32": lambda: logits(40, 20) * 1e-25,
    "subnormal": lambda: logits(40, 20) * 1e-39,
    "exact-in-float16": lambda: torch.kron(
        torch.tensor([[1], [1], [-1], [-1]]), (200 * logits(10, 100)).round().clamp(-2047, 2047)
    ),
    "subnormal-in-float16": lambda: torch.tensor([[1.0], [-1.0]] * 8) * torch.tensor([64.0] + [2.0**-15] * 29),
    "wide": lambda: logits(20, 300),
    "one-value-a-row": lambda: torch.eye(40) * torch.arange(1, 41)[:, None],
    "powers-of-two": lambda: torch.ldexp(torch.ones(40, 30), torch.randint(-40, 40, (40, 30), generator=generator())),
    "an-outlier-that-the-sample-misses": lambda: torch.cat([logits(1, 20), logits(1, 20, 1) * 1e30, logits(38, 20)]),
}


def generator():
    return torch.Generator().manual_seed(7)
