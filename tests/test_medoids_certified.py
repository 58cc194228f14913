"""What makes class_medoids exact: bounds that hold, float64 costs that decide, the same answer everywhere."""

import os
import subprocess
import sys

import pytest
import torch
from medoid_cases import DTYPES, METRICS, logits, one_class, random_labels, scipy_medoids
from scipy.spatial.distance import cdist

from toast_kernels import backends
from toast_kernels.functional import class_medoids
from toast_kernels.medoids import cpu
from toast_kernels.native import DTYPE

pytestmark = pytest.mark.skipif(backends._C is None, reason="the C++ kernels are not built")
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_python(code, **environment):
    """stdout of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
        cwd=os.path.dirname(__file__),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def class_of(x):
    """x as one class."""
    matrix = (DTYPE[x.dtype], x.data_ptr(), *x.shape, *x.stride())
    return cpu._EuclideanClass(matrix, torch.arange(len(x)), torch.get_num_threads())


def nominate(x, dtype, kept=None):
    """Costs of some rows of one class and bounds on their errors, from matrix products."""
    return class_of(x)._nominate(torch.arange(len(x)) if kept is None else kept, dtype)


CLOUDS = {
    "gaussian": lambda: logits(700, 60),
    "far from the origin": lambda: logits(300, 20) + 1000,
    "clusters": lambda: (10 * logits(5, 20)).repeat(60, 1) + 1e-3 * logits(300, 20),
    "duplicates": lambda: logits(30, 20).repeat(10, 1),
    "one outlier": lambda: torch.cat([1e-6 * logits(300, 20), torch.full((1, 20), 1e6)]),
    "bfloat16": lambda: logits(300, 40, dtype=torch.bfloat16),
    "tiny": lambda: logits(300, 20, dtype=torch.float64) * 1e-90,
    "huge": lambda: logits(300, 20, dtype=torch.float64) * 1e90,
    "more than a panel": lambda: logits(2300, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CLOUDS)
def test_bounds_hold(name, dtype):
    x = CLOUDS[name]()
    exact = torch.from_numpy(cdist(x.double(), x.double())).sum(dim=1)
    for kept in (None, torch.arange(0, len(x), 3)):  # the triangle with its column sums, and a rectangle
        cost, bound = nominate(x, dtype, kept)
        error = (cost - (exact if kept is None else exact[kept])).abs()
        assert (error <= bound + 1e-12 * cost).all()
        if name == "gaussian":  # and they say something
            assert (bound < (1e-4 if dtype == torch.float32 else 1e-12) * cost).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_panels_measure_what_rounding_took_off(dtype):
    x = logits(50, 30, dtype=torch.float64)
    panel = class_of(x)._panel(torch.arange(50), dtype, 1.0)
    rounded, exact = panel.rows.double(), x - x.mean(dim=0)
    off = (rounded - exact).norm(dim=1)
    assert (off <= panel.errors + 1e-15).all()
    assert (panel.errors <= 1.01 * off + 1e-13).all()
    assert torch.allclose(panel.squares.double(), rounded.square().sum(dim=1), rtol=2 * torch.finfo(dtype).eps)
    assert (panel.lengths.double() >= rounded.norm(dim=1)).all()


def test_whatever_may_win_is_kept():
    x, kept = logits(5, 4), torch.arange(5)
    one = class_of(x)
    cost = torch.tensor([10.2, 10.0, 10.5, 12.0, 40.0], dtype=torch.float64)
    bound = torch.tensor([0.3, 0.1, 1.0, 0.1, torch.inf], dtype=torch.float64)
    count = backends._C.medoids_narrow(one.fields, cpu.EUCLIDEAN, cpu._candidates(kept, cost, bound), 1)
    assert kept[:count].tolist() == [0, 1, 2, 4]
    assert cost[:count].tolist() == [10.2, 10.0, 10.5, 40.0]


@pytest.fixture
def by_torch(monkeypatch):
    """Counts the classes whose products torch makes."""
    classes, medoid = [], cpu._EuclideanClass.medoid
    monkeypatch.setattr(cpu._EuclideanClass, "medoid", lambda one: classes.append(one.n) or medoid(one))
    return classes


def test_whose_products_are_used(by_torch):
    for rows, width in ((500, 100), (4200, 7), (600, 500), (4000, 60)):  # middling ones, a wide one, one of many rows
        x = logits(rows, width)
        assert one_class(x, "euclidean") == scipy_medoids(x, torch.zeros(rows), 1, "euclidean").item()
    assert by_torch == [600, 4000]


def test_where_too_many_rows_are_left_float64_products_narrow_them(by_torch):
    assert one_class(3 * torch.eye(500), "euclidean") == 0  # all costs tie
    assert by_torch == [500]


def test_uninitialised_memory_is_never_read(monkeypatch):
    expected = nominate(CLOUDS["gaussian"](), torch.float32)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(77))
    for result, value in zip(nominate(CLOUDS["gaussian"](), torch.float32), expected, strict=True):
        assert result.equal(value)
    x, labels = logits(900, 300), random_labels(900, 4)
    for metric in METRICS:
        assert class_medoids(x, labels, 5, metric=metric).equal(scipy_medoids(x, labels, 5, metric))
        assert one_class(x, metric) == scipy_medoids(x, torch.zeros(900), 1, metric).item()


@every_metric
@pytest.mark.parametrize("ties", [100, 400], ids=["few", "many"])  # many: a finer formula comes before exact costs
def test_near_ties_are_decided_in_float64(metric, ties):
    """Rows whose costs differ by a relative 1e-9 and less: float32 cannot tell them apart."""
    x = logits(300 + ties, 110, dtype=torch.float64)
    best = one_class(x, metric)
    x[300:] = x[best] + 1e-9 * logits(ties, 110, 1, torch.float64)
    assert one_class(x, metric) == scipy_medoids(x, torch.zeros(300 + ties), 1, metric).item()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("exponent", [-1070, -600, -450, 300, 600, 1000])
def test_extreme_magnitudes(metric, exponent):
    """Scaled by a power of two the answer stays, unless squares leave float64's range: then all costs are a tie."""
    rows, labels = (logits(400, 20) * 8).round().double(), torch.zeros(400, dtype=torch.int64)
    x = torch.ldexp(torch.ldexp(rows, torch.tensor(exponent // 2)), torch.tensor(exponent - exponent // 2))
    squares_leave_float64 = metric == "euclidean" and abs(exponent) >= 600
    expected = 0 if squares_leave_float64 else one_class(rows, metric)
    assert one_class(x, metric) == expected
    assert class_medoids(x, labels, 1, metric=metric, backend="reference").item() == expected


@pytest.mark.parametrize("exponent", [-600, 600])
def test_cosine_of_rows_of_very_different_lengths(exponent):
    """Squares of all rows but the best leave float64's range."""
    x = logits(400, 20, dtype=torch.float64)
    best = one_class(x, "cosine")
    others = torch.arange(400) != best
    x[others] = torch.ldexp(x[others], torch.tensor(exponent))
    assert one_class(x, "cosine") == best


@every_metric
def test_thread_counts(metric, threads):
    x, labels = logits(6000, 60), random_labels(6000, 3) // 2 * 2  # a class worth all threads, and a small one
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append((class_medoids(x, labels, 3, metric=metric), *nominate(x[:1000], torch.float32)))
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


def medoids_of_many_pools():
    """Printable, of pools with and without ties, in every dtype and metric."""
    lines = []
    for dtype in DTYPES:
        x, labels = logits(800, 75, dtype=dtype), random_labels(800, 3)
        for pool in (x, x.round(), torch.cat([x[:99], x])[:800]):
            lines.append(str([class_medoids(pool, labels, 4, metric=metric).tolist() for metric in METRICS]))
    return lines


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_instruction_sets_agree(isa):
    if isa == backends._C.cpu_isa():
        pytest.skip(f"{isa} is the best that this processor has")
    code = "import test_medoids_certified as t; print(t.backends._C.cpu_isa(), *t.medoids_of_many_pools(), sep='\\n')"
    assert run_python(code, TOAST_CPU_ISA=isa).splitlines() == [isa, *medoids_of_many_pools()]


def test_autocast_and_reduced_precision_do_not_decide():
    """Under autocast, and with float32 products rounded to bfloat16, products err far beyond float32's bounds."""
    x, labels = logits(1200, 500), torch.zeros(1200, dtype=torch.int64)
    expected = scipy_medoids(x, labels, 1, "euclidean")
    with torch.autocast("cpu", torch.bfloat16):
        assert class_medoids(x, labels, 1).equal(expected)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert cpu._product_dtypes(500) == (torch.float64,)
        assert class_medoids(x, labels, 1).equal(expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert cpu._product_dtypes(500) == (torch.float32, torch.float64)


def test_memory_does_not_grow_with_the_square_and_pair_counts_pass_int32():
    """47,001 rows: 2.2e9 pairs, or 8.8 GB in float32. The centre of symmetric data is its medoid."""
    run_python("""if True:
        import resource, torch
        from toast_kernels.functional import class_medoids
        half = torch.randn(23500, 4, generator=torch.Generator().manual_seed(0)) * 3
        x = torch.cat([half, torch.zeros(1, 4), -half])
        labels = torch.zeros(len(x), dtype=torch.int64)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for metric in ("sqeuclidean", "cityblock", "euclidean", "cosine", "jeffreys"):
            class_medoids(x[:2000], labels[:2000], 1, metric=metric)
            before = peak()
            medoid = class_medoids(x, labels, 1, metric=metric).item()
            grown = (peak() - before) / 1024
            assert medoid == 23500 or metric in ("cosine", "jeffreys"), (metric, medoid)
            assert grown < 64, f"{metric}: {grown:.0f} MB"
    """)


@every_metric
def test_thousands_of_duplicates_take_no_quadratic_time_in_float64(metric):
    """Two rows 10,000 times each: every row ties with every other, and only one of each is scored."""
    x = torch.cat([logits(1, 64), logits(1, 64, 1)]).repeat(10_000, 1)
    x[:3] = logits(3, 64, 2)
    assert one_class(x, metric) == 3
