"""The Triton backend of class_medoids: exact costs decide, ties go to the first row."""

import pytest
import torch
from medoid_cases import logits, random_labels, scipy_medoids
from medoids_on_triton import (
    DEVICE,
    GPU,
    backend,
    every_metric,
    expected_of_one_class,
    grouped,
    medoids,
    needs_triton,
    nominated,
    one_class,
    small_tiles,  # noqa: F401
)

from toast_kernels import functional
from toast_kernels.medoids import reference

pytestmark = needs_triton


@every_metric
def test_duplicates_are_a_tie_and_the_first_one_wins(metric):
    x = logits(15, 10)
    best = expected_of_one_class(x, metric)
    again = torch.cat([x, x[best].expand(8, -1), x])
    again[best], again[5] = x[5], x[best]  # the first of its copies is now row 5
    assert one_class(again, metric) == (5 if best else 0)


@every_metric
def test_of_equal_rows_one_is_scored(metric, monkeypatch):
    """Two rows many times each, and -0 is 0: a candidate a class, and the first wins."""
    x = torch.cat([logits(1, 33), logits(1, 33, 1)]).repeat(12, 1)
    x[:, 4] = torch.tensor([0.0, -0.0]).repeat(12)
    x[2::4, 4] = -0.0
    found = []
    duplicates = backend._Classes._duplicates

    def keep(classes, *items):
        found.append((classes, duplicates(classes, *items)))
        return found[-1][1]

    monkeypatch.setattr(backend._Classes, "_duplicates", keep)
    labels = torch.ones(24, dtype=torch.int64)
    labels[:4] = 0
    assert medoids(x, labels, 2, metric).tolist() == [0, 4]
    assert one_class(x[:1].expand(20, -1), metric) == 0
    scored = [int(classes.counter - duplicate[: classes.counter].sum()) for classes, duplicate in found]
    assert scored == [4, 1]


def test_rows_that_only_hash_alike_are_both_scored(monkeypatch):
    a, b = logits(2, 40)
    x = torch.stack([a, b, a, a])
    classes = grouped(x, torch.zeros(4, dtype=torch.int64), 1, "euclidean")
    launch = backend._Classes._launch

    def without_hashes(self, kernel, grid, *arguments, **constants):
        if kernel is backend.decide.hash_items:
            arguments[3].zero_()
        else:
            launch(self, kernel, grid, *arguments, **constants)

    monkeypatch.setattr(backend._Classes, "_launch", without_hashes)
    classes.counter.fill_(4)
    first = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    assert classes._duplicates(torch.arange(4, device=DEVICE), first).tolist() == [0, 0, 1, 1]


@every_metric
def test_a_tie_of_different_rows_gives_the_first(metric):
    """The corners of a simplex, all equally far from each other: every cost is the same but for rounding."""
    x = 3 * torch.eye(20)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert one_class(x, metric) == 0
    two = torch.cat([logits(1, 60), logits(1, 60, 1)]).repeat(9, 1)
    assert one_class(two, metric) == 0


@every_metric
def test_near_ties_are_decided_in_float64(metric):
    """Rows whose costs differ by a relative 1e-9 and less: neither float16 nor float32 can tell them apart."""
    x = logits(50, 20, dtype=torch.float64)
    best = expected_of_one_class(x, metric)
    x[35:] = x[best] + 1e-9 * logits(15, 20, 1, torch.float64)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


def test_a_zero_row_is_at_cosine_distance_1_from_every_other():
    x = logits(40, 6) + 4  # all in one direction, so that the zero rows are far away
    x[::10] = 0
    rows = (x / x.norm(dim=1, keepdim=True)).nan_to_num().double()
    cost = (1 - rows @ rows.t()).fill_diagonal_(0).sum(dim=1)
    assert one_class(x, "cosine") == cost.argmin().item()
    assert one_class(torch.cat([torch.zeros(2, 6), x[1:2], torch.zeros(1, 6), 2 * x[1:2]]), "cosine") == 2
    assert one_class(torch.zeros(50, 6), "cosine") == 0
    for last in ([0.0, 0.0], [0.0, 3.0]):  # all at distance 1
        assert one_class(torch.tensor([[1.0, 0.0], [0.0, 3.0 - last[1]], last]), "cosine") == 0


def test_cosine_sees_only_directions():
    x = logits(60, 8)
    scales = 2.0 ** torch.randint(-30, 30, (60, 1), generator=torch.Generator().manual_seed(4))
    assert one_class(x * scales, "cosine") == one_class(x, "cosine")
    parallel = torch.arange(1, 9, dtype=torch.float64) * torch.arange(1, 30)[:, None]
    assert one_class(parallel, "cosine") == 0


def test_costs_that_overflow_are_a_tie():
    x = 1.5e308 * torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert one_class(x, "jeffreys") == 0
    assert one_class(x.repeat(8, 1), "euclidean") == 0
    assert one_class(3e38 * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -0.5]]), "euclidean") == 2  # not in float64


@pytest.mark.parametrize(
    ("exponent", "metric"),
    [
        *((exponent, "euclidean") for exponent in (-1070, -600, -450, 300, 600, 1000)),
        *((exponent, metric) for exponent in (-1070, 1000) for metric in ("cityblock", "cosine")),
        *(
            pytest.param(exponent, metric, marks=pytest.mark.more)
            for exponent in (-600, -450, 300, 600)
            for metric in ("cityblock", "cosine")
        ),
    ],
)
def test_extreme_magnitudes(exponent, metric):
    """Scaled by a power of two the answer stays, unless squares leave float64's range: then all costs are a tie."""
    rows = (logits(18, 20) * 8).round().double()
    x = torch.ldexp(torch.ldexp(rows, torch.tensor(exponent // 2)), torch.tensor(exponent - exponent // 2))
    squares_leave_float64 = metric == "euclidean" and abs(exponent) >= 600
    assert one_class(x, metric) == (0 if squares_leave_float64 else expected_of_one_class(rows, metric))


@every_metric
def test_a_metric_without_a_fast_formula_gets_exact_costs(metric, monkeypatch):
    monkeypatch.setattr(backend, "FROM_PAIRS", ())
    monkeypatch.setattr(backend, "FROM_MEANS", ())
    x, labels = (2 * logits(36, 7)).round(), random_labels(36, 3)
    assert nominated(x, metric)[1].isinf().all()
    assert medoids(x, labels, 4, metric).equal(scipy_medoids(x, labels, 4, metric))


@pytest.mark.skipif(GPU, reason="there it is a CompilationError")
def test_a_metric_without_a_distance_is_refused(monkeypatch):
    monkeypatch.setattr(reference, "METRICS", (*reference.METRICS, "unheard of"))
    monkeypatch.setattr(functional, "METRICS", reference.METRICS)
    with pytest.raises(Exception, match="exact_costs lacks this metric"):
        one_class(logits(5, 3), "unheard of")


def test_without_bounds_exact_costs_alone_decide(monkeypatch):
    x = logits(40, 40, seed=9)  # a run is two tiles
    x[:10] += 8  # the metrics have different medoids
    monkeypatch.setattr(backend, "MAX_WIDTH", 1)
    for metric in ("euclidean", "cityblock"):
        assert nominated(x, metric)[1].isinf().all()
        assert one_class(x, metric) == expected_of_one_class(x, metric)
    assert len({expected_of_one_class(x, metric) for metric in ("euclidean", "cityblock", "sqeuclidean")}) == 3
