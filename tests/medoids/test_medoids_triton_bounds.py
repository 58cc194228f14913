"""The Triton backend of class_medoids: the bounds of the costs that nominate hold, on hostile data too."""

import numpy as np
import pytest
import torch
from medoid_cases import logits
from medoids_on_triton import (
    CLOUDS,
    DEVICE,
    backend,
    grouped,
    needs_triton,
    nominated,
    panels,  # noqa: F401
    small_tiles,  # noqa: F401
)
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

pytestmark = needs_triton
WIDE_BOUNDS = ("one-outlier", "mild-outlier", "an-outlier-that-the-sample-misses")


def errors(x, metric, labels=None):
    """(costs, errors, bounds) [N] against sums of differences in float64."""
    cost, bound, factor = nominated(x, metric, labels)
    rows = x.double().numpy()
    distance = cdist(rows, rows, metric)
    if labels is not None:
        distance *= (labels[:, None] == labels).numpy()
    exact = torch.from_numpy(distance.sum(axis=1)) * factor
    return cost, (cost - exact).abs() - 1e-12 * exact, bound


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize("name", CLOUDS)
def test_bounds_of_pair_sums_hold(name, metric):
    cost, error, bound = errors(CLOUDS[name](), metric)
    assert bound.isfinite().all() or name in WIDE_BOUNDS
    assert (error <= bound).all()
    if name in ("gaussian", "far-from-the-origin", "tiny", "huge"):  # and they say something
        assert (bound < (1e-3 if metric == "euclidean" else 3e-5) * cost).all()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_bounds_of_classes_far_from_each_other(metric, count, panels):  # noqa: F811
    """Each has its own centre and scale, whichever panels it lies in: no pair is missed, and none counts twice."""
    panels(count)
    labels = torch.arange(100) % 7 // 2
    x = (logits(100, 20) + 1000 * labels[:, None]) * 10.0 ** labels[:, None]
    cost, error, bound = errors(x, metric, labels)
    assert (error <= bound).all()
    assert (bound < (1e-3 if metric == "euclidean" else 3e-5) * cost).all()


@pytest.mark.more
def test_bounds_of_the_widest_rows_hold(monkeypatch):
    monkeypatch.setattr(backend, "ROW_TILE", (1 << 18, 1 << 18))
    monkeypatch.setattr(backend, "CHUNKED", backend.PairTile(16, 1 << 14, 4, 1, 2))
    _, error, bound = errors(logits(3, backend.MAX_WIDTH - 1), "euclidean")
    assert bound.isfinite().all()
    assert (error <= bound).all()


def test_one_pair_of_equal_rows_does_not_widen_the_bounds_of_others():
    x = logits(60, 40)
    alone = nominated(x, "euclidean")[1]
    x[1] = x[0]
    assert (nominated(x, "euclidean")[1][2:] < 1.1 * alone[2:]).all()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_bounds_of_many_small_classes(metric):
    """More classes than a third of the rows."""
    labels = torch.arange(16) // 4 * 7
    x = logits(16, 20) + 1000 * labels[:, None]
    cost, error, bound = errors(x, metric, labels)
    assert (error <= bound).all()
    assert (bound < (1e-3 if metric == "euclidean" else 3e-5) * cost).all()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_rows_that_are_not_finite_have_no_pairs(metric):
    x = logits(40, 20)
    finite = torch.arange(40) % 5 > 0
    holed = torch.where(finite[:, None] | (torch.arange(20) < 19), x, torch.inf)
    cost, bound, factor = nominated(holed, metric)
    exact = torch.from_numpy(cdist(x[finite].double(), x[finite].double(), metric).sum(axis=1)) * factor[finite]
    assert ((cost[finite] - exact).abs() <= bound[finite]).all()
    assert (bound[finite] < (1e-3 if metric == "euclidean" else 3e-5) * cost[finite]).all()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "jeffreys"])
def test_rows_that_are_not_finite_have_no_part_in_means(metric):
    x = logits(90, 20)  # three pieces, of which the last has none
    finite = (torch.arange(90) % 7 > 0) | (torch.arange(90) > 63)
    holed = torch.where(finite[:, None] | (torch.arange(20) < 19), x, torch.nan)
    alone, cost = nominated(x[finite], metric)[0], nominated(holed, metric)[0][finite]
    assert torch.allclose(cost, alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("equal_rows", [False, True])
def test_the_errors_of_all_products_are_in_the_bound(equal_rows):
    """What a product may err by is asked of the bound: the interpreter errs by less. Rows are symmetric about 0 and
    exact in float16: nothing else adds to the bound."""
    x = (300 * logits(7, 30)).round().clamp(-1023, 1023)
    if equal_rows:
        x[4:] = x[0]
    x = torch.cat([x, -x])
    _, error, bound = errors(x, "euclidean")
    factor = nominated(x, "euclidean")[2]
    y = (x.double() * factor[:, None]).numpy()
    of_sums = 160 * backend.UNIT * cdist(y, y).sum(axis=1)
    length = np.linalg.norm(y, axis=1)
    near = backend.squared_error(32, 32, 0) * (length[:, None] + length) ** 2
    pairs = near / np.maximum(cdist(y, y), np.sqrt(near))
    assert (error <= bound).all()
    assert (bound.numpy() - of_sums >= pairs.sum(axis=1) - np.diag(pairs)).all()
    if equal_rows:
        assert (bound[[1, 2, 3, 8, 9, 10]] < 0.2 * bound[0]).all()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize(
    "name",
    ["gaussian", "float64", "bfloat16", "subnormal", "subnormal-in-float16", "powers-of-two", "one-value-a-row"],
)
def test_what_rounding_took_off_is_measured(name, metric, monkeypatch):
    seen, launch = {}, backend._Classes._launch

    def record(self, kernel, grid, *arguments, **constants):
        launch(self, kernel, grid, *arguments, **constants)
        seen[kernel.fn.__name__] = arguments

    monkeypatch.setattr(backend._Classes, "_launch", record)
    x = CLOUDS[name]()
    width, factor = x.shape[1], nominated(x, metric)[2]
    centres, packed, squares, rounding = (seen["pack"][i].cpu() for i in (1, 3, 4, 5))
    z = (x.double() - centres[0].double()) * factor[:, None]  # one class, whose rows stay in their order
    y = packed[: len(x), :width].double()
    off = (z - y).norm(p=2 if metric == "euclidean" else 1, dim=1)
    if x.dtype != torch.float64:  # subnormal x, centres and differences may be taken as 0
        off += 3 * 2.0**-126 * factor * (width**0.5 if metric == "euclidean" else width)
    assert (off <= rounding).all()
    if metric == "euclidean":
        lost = y.where(y.abs() < 2.0**-14, 0.0).norm(dim=1)  # where a matrix unit takes them as 0
        assert (off + 2 * lost <= rounding).all()
        assert (rounding <= 1.01 * off + 3e-7 * y.norm(dim=1) + 2.1 * 2.0**-14 * 64**0.5 + 1e-6).all()
        assert torch.allclose(squares.double(), y.square().sum(dim=1), rtol=10 * 2.0**-24, atol=0)
    assert not packed[: len(x), width:].any()


@pytest.mark.parametrize("term", ["rounded-rows", "products", "close-pairs", "sums", "truncation"])
def test_each_term_alone_is_in_the_bound(term):
    """Of one class, a row of which is not finite."""
    n, unit, relative = 70, 2.0**-20, 1e-5
    values = torch.rand(5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float() + 1
    alive = torch.arange(n) != 40
    errors = values[0] * (alive if term == "rounded-rows" else 0)
    worst = values[1, :1] * (term == "products")
    of_sums, of_close = ((values[2:4] * 1000).long() << 20) * torch.tensor([[term == "sums"], [term == "close-pairs"]])
    classes = grouped(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), 1, "euclidean")
    classes.x.alive.copy_(alive)
    cost, bound = classes._empty(2, n)
    classes._launch(
        backend.pairs.pair_costs, (1,), classes.x, torch.stack([of_sums, of_close]).to(DEVICE), n,
        worst.to(DEVICE), errors.to(DEVICE), cost, bound, relative, 1 / unit, BLOCK=64,
    )  # fmt: skip
    demanded = {
        "rounded-rows": errors.double() * (n - 1) + errors.double().sum(),
        "products": worst.double() * (n - 1),
        "close-pairs": of_close * unit,
        "sums": of_sums * unit * relative,
        "truncation": 2 * (n / backend.WHOLE.tile + 9) * unit,  # of costs and of their errors
    }[term]
    assert cost.cpu().equal(of_sums * unit)
    assert (bound.cpu() >= demanded).all()


def tensor_core_product(a, b, chunk):
    """a . b as the least exact of tensor cores sums it: 16 products and the sum so far are aligned to the largest and
    cut off after 24 bits; chunks are added in float32."""
    total = np.float32(0)
    for start in range(0, len(a), chunk):
        part = 0.0
        for k in range(start, min(start + chunk, len(a)), 16):
            terms = np.append(a[k : k + 16] * b[k : k + 16], part)
            unit = 2.0 ** (np.frexp(np.abs(terms).max())[1] - 24)
            part = (np.trunc(terms / unit) * unit).sum()
            unit = 2.0 ** (np.frexp(part)[1] - 24)
            part = np.trunc(part / unit) * unit
        total = np.float32(total + np.float32(part))
    return float(total)


HOSTILE = {  # rows whose products are all cut off, or rounded, to the same side
    "bits below every sum": lambda width: np.tile([1 + 2.0**-10] * 15 + [2.0**-8], width // 16),
    "one large": lambda width: np.append([1024.0], np.full(width - 1, 2.0**-7 * (1 + 2.0**-10))),
    "chunks rounded down": lambda width: np.tile([0.25] * 15 + [0.25 * (1 + 2.0**-10)], width // 16),
    "random": lambda width: np.abs(np.random.default_rng(0).normal(size=width)).astype(np.float16).astype(float),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    ("width", "chunk", "depth"),
    [(2048, 2048, 10), (1 << 16, 1 << 16, 10), (1 << 16, 16, 10), (1 << 17, 128, 10), (16, 16, 1000)],
)
def test_squared_distances_from_products_err_by_less_than_kappa(name, width, chunk, depth):
    """Of a row to half of itself, its lengths rounded once a level of a tree."""
    a = HOSTILE[name](width)
    b = a / 2
    squares = [np.float32((v * v).sum() * (1 - depth * 2.0**-24)) for v in (a, b)]
    product = np.float32(tensor_core_product(a, b, chunk))
    error = abs(float(squares[0] + squares[1] - 2 * product) - ((a - b) ** 2).sum())
    length = np.linalg.norm(a) + np.linalg.norm(b)
    assert error <= backend.squared_error(width, chunk, depth) * length**2


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "jeffreys"])
@pytest.mark.parametrize("name", ["gaussian", "float64", "bfloat16", "far-from-the-origin", "clusters", "mild-outlier"])
def test_bounds_of_costs_from_means_hold(name, metric):
    """Against sums of differences in extended precision."""
    x = CLOUDS[name]()[-60:]
    f = x.double().numpy().astype(np.longdouble)
    g = f
    if metric == "cosine":
        f = g = f / np.sqrt((f * f).sum(axis=1, keepdims=True))
    elif metric == "jeffreys":
        g = f - logsumexp(f, axis=1, keepdims=True)
        f = np.exp(g)
    exact = ((f[:, None] - f) * (g[:, None] - g)).sum(axis=(1, 2)) * (0.5 if metric == "cosine" else 1)
    cost, bound, _ = nominated(x, metric)
    assert (np.abs(cost.numpy() - exact) <= bound.numpy()).all()
    if name == "gaussian":
        assert (bound < 1e-12 * cost).all()


def test_rounding_of_the_means_is_in_the_bound():
    """In whatever order they are added up: the interpreter errs by less. A mean that is off by v changes a cost by at
    most 2 n |F||v|."""
    x = CLOUDS["far-from-the-origin"]().double()
    n, mean = len(x), x.mean(dim=0)
    rounding = n * 2.0**-53 * mean.norm()
    bound = nominated(x, "sqeuclidean")[1]
    assert (bound >= 2 * n * (x - mean).norm(dim=1) * rounding).all()
