"""What makes class_medoids exact: bounds that hold, float64 costs that decide, the same answer everywhere."""

import os
import subprocess
import sys
import time

import pytest
import torch
from growing_memory import growth_during, needs_linux
from medoid_cases import DTYPES, METRICS, logits, one_class, random_labels, scipy_medoids

from toast_kernels import backends
from toast_kernels.functional import class_medoids

pytestmark = pytest.mark.skipif(backends._C is None, reason="the C++ kernels are not built")
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# A class of one thread, ones that all threads share, of few columns and of many, and one of more than a panel.
@pytest.mark.parametrize(("rows", "width"), [(500, 100), (1200, 101), (700, 800), (4200, 7)])
def test_products_of_every_size(rows, width):
    x = logits(rows, width)
    for pool in (x, x + 1000, x.round()):
        assert one_class(pool, "euclidean") == scipy_medoids(pool, torch.zeros(rows), 1, "euclidean").item()


def test_rows_too_wide_for_products_in_float32():
    x = logits(4, 1 << 20)
    assert one_class(x, "euclidean") == scipy_medoids(x, torch.zeros(4), 1, "euclidean").item()


def test_where_too_many_rows_are_left_float64_products_narrow_them():
    assert one_class(3 * torch.eye(500), "euclidean") == 0  # all costs tie


def test_uninitialised_memory_is_never_read(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(77))
    x, labels = logits(300, 77), random_labels(300, 4)
    for metric in METRICS:
        assert class_medoids(x, labels, 5, metric=metric).equal(scipy_medoids(x, labels, 5, metric))
        assert one_class(x, metric) == scipy_medoids(x, torch.zeros(300), 1, metric).item()


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
        results.append(class_medoids(x, labels, 3, metric=metric))
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


def medoids_of_many_pools():
    """Printable, of pools with and without ties, in every dtype and metric."""
    lines = []
    for dtype in DTYPES:
        x, labels = logits(800, 75, dtype=dtype), random_labels(800, 3)
        for pool in (x, x.round(), torch.cat([x[:99], x])[:800]):
            lines.append(str([class_medoids(pool, labels, 4, metric=metric).tolist() for metric in METRICS]))
    return lines


@pytest.mark.parametrize("isa", ["generic", pytest.param("avx2", marks=pytest.mark.more)])
def test_instruction_sets_agree(isa):
    if isa == backends._C.cpu_isa():
        pytest.skip(f"{isa} is the best that this processor has")
    code = "import test_medoids_certified as t; print(t.backends._C.cpu_isa(), *t.medoids_of_many_pools(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOAST_CPU_ISA": isa},
    )  # fmt: skip
    assert done.stdout.splitlines() == [isa, *medoids_of_many_pools()]


@needs_linux
def test_memory_does_not_grow_with_the_square_and_pair_counts_pass_int32():
    """47,001 rows: 2.2e9 pairs, or 8.8 GB in float32. The centre of symmetric data is its medoid."""
    half, found = logits(23500, 4), {}
    x = torch.cat([half, torch.zeros(1, 4), -half])
    for metric in METRICS:
        assert growth_during(lambda metric=metric: found.update({metric: one_class(x, metric)})) < 64 << 20
    assert [found[metric] for metric in ("euclidean", "sqeuclidean", "cityblock")] == [23500] * 3


@every_metric
def test_thousands_of_duplicates_take_no_quadratic_time_in_float64(metric, threads):
    """Two rows thousands of times each: every row ties with every other, and only one of each is scored."""
    threads(1)

    def seconds(x):
        began = time.process_time()
        one_class(x, metric)
        return time.process_time() - began

    distinct = logits(8000, 64)
    twice = distinct[:2].repeat(4000, 1)
    twice[:3] = logits(3, 64, 2)
    assert one_class(twice, metric) == 3
    assert min(seconds(twice) for _ in range(3)) < 6 * min(seconds(distinct) for _ in range(3))
