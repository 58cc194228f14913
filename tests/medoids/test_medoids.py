"""class_medoids against SciPy: every metric, backend, dtype and layout; ties; rows that are left out."""

import pytest
import torch
from medoid_cases import (
    BACKENDS,
    DTYPES,
    METRICS,
    SHIFT_INVARIANT,
    distances,
    logits,
    one_class,
    random_labels,
    scipy_medoids,
)
from optional import given, settings
from optional import strategies as st

from toast_kernels.functional import class_medoids

every_metric = pytest.mark.parametrize("metric", METRICS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
@every_metric
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_scipy(metric, backend, dtype):
    # Values as given: SciPy gets the rounded values of the half types too.
    x, labels = logits(520, 37, dtype=dtype), random_labels(520, 2)
    assert class_medoids(x, labels, 4, metric=metric, backend=backend).equal(scipy_medoids(x, labels, 4, metric))


@every_metric
@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 129, 145, 146, 255, 257, 383, 385])
def test_rows_around_tile_sizes(metric, n):
    x = logits(n, 100, seed=n)
    assert one_class(x, metric) == scipy_medoids(x, torch.zeros(n), 1, metric).item()


@every_metric
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 700, 1000, 10_000])
def test_widths_around_vector_sizes_and_large_ones(metric, width):
    n = 300 if width < 100 else 60 if width < 10_000 else 20
    x = logits(n, width, seed=width)
    assert one_class(x, metric) == scipy_medoids(x, torch.zeros(n), 1, metric).item()


@every_metric
def test_thousands_of_small_classes(metric):
    x, labels = logits(12_000, 3), random_labels(12_000, 2000)
    assert class_medoids(x, labels, 2000, metric=metric).equal(scipy_medoids(x, labels, 2000, metric))


@every_metric
def test_a_hundred_thousand_classes_of_at_most_two_rows(metric):
    labels = torch.arange(150_000) % 100_000
    medoids = class_medoids(logits(150_000, 3), labels, 100_001, metric=metric)
    assert medoids.equal(torch.cat([torch.arange(100_000), torch.tensor([-1])]))


@every_backend
@every_metric
def test_the_decision_flips_where_float64_says(metric, backend):
    """Two rows and a third that moves from beside the one to beside the other: where both cost the same is found by
    bisection with SciPy's distances, and a relative 1e-7 before and after it the answers differ."""
    a, b, offset = logits(3, 3, dtype=torch.float64) + torch.tensor([[0.0], [0.0], [9.0]], dtype=torch.float64)

    def lean(t):  # < 0: the first row costs less
        rows = torch.stack([a, b, (1 - t) * a + t * b + offset])
        d = distances(rows.numpy(), metric)
        return d[0, 2] - d[1, 2], rows

    low, high = -8.0, 8.0
    sign = 1 if lean(high)[0] > 0 else -1
    assert sign * lean(low)[0] < 0 < sign * lean(high)[0]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * lean(middle)[0] < 0 else (low, middle)
    step = 1e-7 * max(1, abs(low))
    picked = [one_class(lean(t)[1], metric, backend) for t in (low - step, low + step)]
    assert picked == ([0, 1] if sign > 0 else [1, 0])


@every_metric
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wide_rows_of_half_types(metric, dtype):
    x = logits(120, 700, dtype=dtype)
    assert one_class(x, metric) == scipy_medoids(x, torch.zeros(120), 1, metric).item()


@every_metric
def test_outliers_in_every_column(metric):
    """Nearly all of a column's values in one bucket, and nearly all distances cancelled by the products."""
    x = logits(600, 100, dtype=torch.float64)
    x[torch.randperm(600, generator=torch.Generator().manual_seed(5))[:100], torch.arange(100)] *= 1e7
    if metric == "jeffreys":
        x = x.clamp(-700, 700)  # beyond that SciPy's probabilities underflow
    assert one_class(x, metric) == scipy_medoids(x, torch.zeros(600), 1, metric).item()


def test_more_rows_than_a_panel_holds():
    """2048 rows a panel: panels beside the diagonal, and column sums across them."""
    x = logits(4200, 16)
    assert one_class(x, "euclidean") == scipy_medoids(x, torch.zeros(len(x)), 1, "euclidean").item()


@every_backend
@every_metric
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_any_shape_with_ties(metric, backend, rows, width, num_classes, seed, coarse):
    x, labels = logits(rows, width, seed, torch.float64), random_labels(rows, num_classes, seed)
    if coarse and metric in ("cityblock", "sqeuclidean"):  # sums of integers: SciPy's ties are exact, and so are ours
        x = x.round()
    assert class_medoids(x, labels, num_classes, metric=metric, backend=backend).equal(
        scipy_medoids(x, labels, num_classes, metric)
    )


@every_metric
def test_the_smallest_cost_wins_not_the_largest(metric):
    centre = torch.tensor([[1.0, 2.0, 3.0]])
    outliers = centre + 4 * torch.tensor([[1.0, 0, 0], [-1, 0.5, 0], [0, 1, 0], [0, -1, 0.5], [0, 0, 1], [0.5, 0, -1]])
    assert one_class(torch.cat([outliers, centre]), metric) == 6


@every_backend
@pytest.mark.parametrize("metric", SHIFT_INVARIANT)
def test_logits_plus_1000_have_the_same_medoids(metric, backend):
    x = (logits(600, 20) * 64).round() / 64  # exact after the shift too
    labels = random_labels(600, 2)
    shifted = x + 1000
    expected = class_medoids(x, labels, 2, metric=metric, backend=backend)
    assert class_medoids(shifted, labels, 2, metric=metric, backend=backend).equal(expected)
    assert expected.equal(scipy_medoids(x, labels, 2, metric))


@every_backend
@every_metric
def test_duplicates_are_a_tie_and_the_first_one_wins(metric, backend):
    x = logits(400, 10)
    best = one_class(x, metric)
    again = torch.cat([x, x[best].expand(300, -1), x])
    again[best], again[5] = x[5], x[best]  # the first of its copies is now row 5
    assert one_class(again, metric, backend) == (5 if best else 0)


@every_backend
@every_metric
def test_a_class_of_equal_rows_gives_its_first(metric, backend):
    x = logits(1, 33).expand(900, -1)
    labels = torch.ones(900, dtype=torch.int64)
    labels[:3] = 0
    assert class_medoids(x, labels, 2, metric=metric, backend=backend).tolist() == [0, 3]


@every_backend
@every_metric
def test_a_tie_of_different_rows_gives_the_first(metric, backend):
    """The corners of a simplex, all equally far from each other: every cost is the same but for rounding."""
    x = 3 * torch.eye(200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert one_class(x, metric, backend) == 0
    two = torch.cat([logits(1, 60), logits(1, 60, 1)]).repeat(200, 1)
    assert one_class(two, metric, backend) == 0


@every_backend
@every_metric
def test_left_out_rows(metric, backend):
    x, labels = logits(500, 12), random_labels(500, 3)
    kept = torch.rand(500, generator=torch.Generator().manual_seed(2)) < 0.7
    expected = scipy_medoids(x, torch.where(kept, labels, -1), 3, metric)

    assert class_medoids(x, labels, 3, metric=metric, backend=backend, mask=kept).equal(expected)
    ignored = torch.where(kept, labels, -7)
    assert class_medoids(x, ignored, 3, metric=metric, backend=backend, ignore_index=-7).equal(expected)
    wild = torch.where(kept, labels, 1 << 40)  # the label of a masked row is not looked at
    assert class_medoids(x, wild, 3, metric=metric, backend=backend, mask=kept).equal(expected)
    for value in (torch.nan, torch.inf, -torch.inf):
        diverged = x.clone()
        diverged[~kept, torch.arange((~kept).sum()) % 12] = value
        assert class_medoids(diverged, labels, 3, metric=metric, backend=backend).equal(expected)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("column", [0, 7, 8, 16])
def test_non_finite_values_are_seen_in_every_dtype_and_lane(backend, dtype, column):
    x = torch.zeros(3, 17, dtype=dtype)
    x[0, column], x[1, column], x[2, column] = -torch.inf, torch.nan, torch.finfo(dtype).max
    assert one_class(x, "euclidean", backend) == 2
    assert one_class(x[:2], "euclidean", backend) == -1


@every_metric
def test_layouts(metric):
    """Row stride, offset, transposed, broadcast and stepped views all give what a fresh copy gives."""
    labels, wide = random_labels(900, 3), logits(900, 64)
    for view in (wide[:, 3:40], wide.t().contiguous().t(), wide[:, ::3], wide[:, :1].expand(-1, 20), wide[::1, 1:]):
        expected = class_medoids(view.contiguous(), labels, 3, metric=metric)
        assert class_medoids(view, labels, 3, metric=metric).equal(expected)
    every_second = class_medoids(wide[::2], labels[::2], 3, metric=metric, mask=(labels != 1)[::2])
    assert every_second.equal(
        class_medoids(wide[::2].clone(), labels[::2].clone(), 3, metric=metric, mask=(labels[::2] != 1).clone())
    )


@every_metric
def test_permuted_rows_give_the_permuted_answer(metric):
    x, labels = logits(900, 30), random_labels(900, 4)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(3))
    permuted = class_medoids(x[order], labels[order], 4, metric=metric)
    assert order[permuted].equal(class_medoids(x, labels, 4, metric=metric))


@every_metric
def test_other_classes_do_not_matter(metric):
    x, labels = logits(900, 30), random_labels(900, 4)
    alone = class_medoids(x, labels, 4, metric=metric, mask=labels == 2)
    assert alone.tolist() == [-1, -1, class_medoids(x, labels, 4, metric=metric)[2].item(), -1]


@every_backend
def test_int32_and_int64_labels_agree(backend):
    x, labels = logits(300, 9), random_labels(300, 7)
    expected = class_medoids(x, labels, 7, backend=backend)
    assert class_medoids(x, labels.int(), 7, backend=backend).equal(expected)
    assert expected.dtype == torch.int64


@every_backend
@every_metric
def test_small_and_empty_inputs(metric, backend):
    none = torch.empty(0, dtype=torch.int64)
    assert class_medoids(torch.empty(0, 4), none, 3, metric=metric, backend=backend).tolist() == [-1, -1, -1]
    # Rows without values are all equal.
    assert class_medoids(torch.empty(4, 0), torch.tensor([1, 1, 0, 0]), 3, metric=metric, backend=backend).tolist() == [
        2, 0, -1,
    ]  # fmt: skip
    one_each = torch.tensor([2, 0, 1])
    assert class_medoids(logits(3, 5), one_each, 3, metric=metric, backend=backend).tolist() == [1, 2, 0]


@every_backend
def test_a_zero_row_is_at_cosine_distance_1_from_every_other(backend):
    x = logits(40, 6) + 4  # all in one direction, so that the zero rows are far away
    x[::10] = 0
    rows = (x / x.norm(dim=1, keepdim=True)).nan_to_num().double()
    cost = (1 - rows @ rows.t()).fill_diagonal_(0).sum(dim=1)
    assert one_class(x, "cosine", backend) == cost.argmin().item()
    assert one_class(torch.cat([torch.zeros(2, 6), x[1:2], torch.zeros(1, 6), 2 * x[1:2]]), "cosine", backend) == 2
    assert one_class(torch.zeros(300, 6), "cosine", backend) == 0
    assert one_class(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), "cosine", backend) == 0  # all at distance 1


@every_backend
def test_cosine_sees_only_directions(backend):
    x = logits(200, 8)
    scales = 2.0 ** torch.randint(-30, 30, (200, 1), generator=torch.Generator().manual_seed(4))
    assert one_class(x * scales, "cosine", backend) == one_class(x, "cosine", backend)
    parallel = torch.arange(1, 9, dtype=torch.float64) * torch.arange(1, 300)[:, None]
    assert one_class(parallel, "cosine", backend) == 0


@every_backend
def test_costs_that_overflow_are_a_tie(backend):
    x = 1.5e308 * torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert one_class(x, "jeffreys", backend) == 0
    assert one_class(x.repeat(100, 1), "euclidean", backend) == 0


@every_backend
def test_jeffreys_of_large_logits(backend):
    """Probabilities underflow and their logarithms do not: |x| up to 1e4, against sums in extended precision."""
    import numpy as np

    x = logits(60, 5, scale=4000.0)
    log_p = x.numpy().astype(np.longdouble)
    log_p = log_p - log_p.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    cost = ((p[:, None] - p) * (log_p[:, None] - log_p)).sum(axis=(1, 2))
    assert one_class(x, "jeffreys", backend) == int(cost.argmin())
