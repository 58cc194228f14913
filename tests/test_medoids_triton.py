"""The Triton backend of class_medoids: on a GPU if there is one, else in Triton's interpreter, with small tiles."""

import numpy as np
import pytest
import torch
from medoid_cases import DTYPES, METRICS, logits, random_labels, scipy_medoids
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

pytest.importorskip("triton")

from toast_kernels import backends, functional
from toast_kernels.functional import class_medoids
from toast_kernels.medoids import reference
from toast_kernels.medoids import triton as backend

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
pytestmark = pytest.mark.skipif(not (GPU or backends.interpreted()), reason="neither a GPU nor TRITON_INTERPRET=1")
every_metric = pytest.mark.parametrize("metric", METRICS)
on_a_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Few rows span many tiles, pieces and runs."""
    tile = backend.Config(16, 64, 4, 1)
    monkeypatch.setattr(backend, "PIECE", 32)
    monkeypatch.setattr(backend, "RUNS", 2)
    monkeypatch.setattr(backend, "WIDE_PAIR_TILE", tile)
    monkeypatch.setattr(backend, "PAIR_TILES", {"euclidean": tile, "cityblock": backend.Config(16, 1, 4, 1)})


def medoids(x, labels, num_classes, metric, mask=None, **options):
    mask = mask if mask is None else mask.to(DEVICE)
    x, labels = x.to(DEVICE), labels.to(DEVICE)
    return class_medoids(x, labels, num_classes, metric=metric, mask=mask, backend="triton", **options).cpu()


def one_class(x, metric, **options):
    return medoids(x, torch.zeros(len(x), dtype=torch.int64), 1, metric, **options).item()


def expected_of_one_class(x, metric):
    return scipy_medoids(x, torch.zeros(len(x)), 1, metric).item()


@every_metric
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_scipy_and_the_cpu_backend(metric, dtype):
    x, labels = logits(100, 37, dtype=dtype), random_labels(100, 3)
    result = medoids(x, labels, 4, metric)
    assert result.equal(scipy_medoids(x, labels, 4, metric))
    assert result.equal(class_medoids(x, labels, 4, metric=metric))
    assert result.dtype == torch.int64


@every_metric
@pytest.mark.parametrize("width", [1, 15, 17, 127, 129, 700])
def test_widths_around_tile_sizes(metric, width):
    x = logits(30 if width < 700 else 12, width, seed=width)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@pytest.mark.parametrize("metric", ["euclidean", "jeffreys"])
def test_ten_thousand_columns(metric):
    x = logits(4, 10_000)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33])
def test_rows_around_tile_sizes(metric, rows):
    x = logits(rows, 10, seed=rows)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


def test_a_triangle_of_hundreds_of_tiles():
    x = logits(300, 3)
    assert one_class(x, "euclidean") == expected_of_one_class(x, "euclidean")


@every_metric
def test_classes_of_very_different_sizes(metric):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 80 + [3] + [5] * 2 + [6] * 17)[order]
    x = logits(100, 9)
    assert medoids(x, labels, 9, metric).equal(scipy_medoids(x, labels, 9, metric))


@every_metric
def test_small_and_empty_inputs(metric):
    none = torch.empty(0, dtype=torch.int64)
    assert medoids(torch.empty(0, 4), none, 3, metric).tolist() == [-1, -1, -1]
    assert medoids(torch.empty(4, 0), torch.tensor([1, 1, 0, 0]), 3, metric).tolist() == [2, 0, -1]
    assert medoids(logits(3, 5), torch.tensor([2, 0, 1]), 3, metric).tolist() == [1, 2, 0]
    assert medoids(logits(3, 5), torch.tensor([-100] * 3), 3, metric).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "cosine"])
def test_logits_plus_1000_have_the_same_medoids(metric):
    x, labels = (logits(80, 20) * 64).round() / 64, random_labels(80, 2)
    assert medoids(x + 1000, labels, 2, metric).equal(scipy_medoids(x, labels, 2, metric))


@every_metric
def test_duplicates_are_a_tie_and_the_first_one_wins(metric):
    x = logits(30, 10)
    best = expected_of_one_class(x, metric)
    again = torch.cat([x, x[best].expand(20, -1), x])
    again[best], again[5] = x[5], x[best]  # the first of its copies is now row 5
    assert one_class(again, metric) == (5 if best else 0)


@every_metric
def test_of_equal_rows_one_is_scored(metric, monkeypatch):
    """Two rows many times each, and -0 is 0: a candidate a class, and the first wins."""
    x = torch.cat([logits(1, 33), logits(1, 33, 1)]).repeat(20, 1)
    x[:, 4] = torch.tensor([0.0, -0.0]).repeat(20)
    x[2::4, 4] = -0.0
    kept = []
    decide = backend._Classes.decide
    monkeypatch.setattr(backend._Classes, "decide", lambda self, k: (kept.append(int(k.sum())), decide(self, k))[1])
    labels = torch.ones(40, dtype=torch.int64)
    labels[:3] = 0
    assert medoids(x, labels, 2, metric).tolist() == [0, 3]
    assert kept[0] == 2
    assert one_class(x[:1].expand(50, -1), metric) == 0
    assert kept[1] == 1


def test_rows_that_only_hash_alike_are_both_scored():
    a, b = logits(2, 40)
    x, labels = torch.stack([a, b, a, a]).to(DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    one = backend._Classes(x, labels, None, 1, "euclidean", -100)
    one.order = torch.arange(4, device=DEVICE)
    one.hashes.zero_()
    anything = torch.zeros(4, dtype=torch.float64, device=DEVICE)
    assert one.candidates(anything, anything + torch.inf).tolist() == [True, True, True, False]


@every_metric
def test_a_tie_of_different_rows_gives_the_first(metric):
    """The corners of a simplex, all equally far from each other: every cost is the same but for rounding."""
    x = 3 * torch.eye(36)[torch.randperm(36, generator=torch.Generator().manual_seed(0))]
    assert one_class(x, metric) == 0
    two = torch.cat([logits(1, 60), logits(1, 60, 1)]).repeat(15, 1)
    assert one_class(two, metric) == 0


@every_metric
def test_near_ties_are_decided_in_float64(metric):
    """Rows whose costs differ by a relative 1e-9 and less: neither float16 nor float32 can tell them apart."""
    x = logits(50, 20, dtype=torch.float64)
    best = expected_of_one_class(x, metric)
    x[35:] = x[best] + 1e-9 * logits(15, 20, 1, torch.float64)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@every_metric
def test_left_out_rows(metric):
    x, labels = logits(80, 12), random_labels(80, 3)
    kept = torch.rand(80, generator=torch.Generator().manual_seed(2)) < 0.7
    expected = scipy_medoids(x, torch.where(kept, labels, -1), 3, metric)
    assert medoids(x, labels, 3, metric, mask=kept).equal(expected)
    assert medoids(x, torch.where(kept, labels, -7), 3, metric, ignore_index=-7).equal(expected)
    wild = torch.where(kept, labels, 1 << 40)  # the label of a masked row is not looked at
    assert medoids(x, wild, 3, metric, mask=kept).equal(expected)
    for value in (torch.nan, torch.inf, -torch.inf):
        diverged = x.clone()
        diverged[~kept, torch.arange((~kept).sum()) % 12] = value
        assert medoids(diverged, labels, 3, metric).equal(expected)


@every_metric
def test_layouts(metric):
    """Row stride, offset, transposed, broadcast and stepped views all give what a fresh copy gives."""
    labels, wide = random_labels(60, 3), logits(60, 64).to(DEVICE)
    for view in (wide[:, 3:40], wide.t().contiguous().t(), wide[:, ::3], wide[:, :1].expand(-1, 20), wide[::1, 8:24]):
        expected = class_medoids(view.cpu().contiguous(), labels, 3, metric=metric)
        assert medoids(view, labels, 3, metric).equal(expected)
    mask = (labels != 1).to(DEVICE)
    expected = class_medoids(wide.cpu()[::2], labels[::2], 3, metric=metric, mask=mask.cpu()[::2])
    assert medoids(wide[::2], labels.to(DEVICE)[::2], 3, metric, mask=mask[::2]).equal(expected)
    assert medoids(wide[::2], labels.int().to(DEVICE)[::2], 3, metric, mask=mask[::2]).equal(expected)


@every_metric
def test_addresses_past_31_bits(metric):
    """Rows, then columns, 2^30 elements and more apart; only their pages of the 4 GB are touched."""
    memory = torch.empty((1 << 31) + 64, dtype=torch.float16, device=DEVICE)
    values = logits(3, 3, dtype=torch.float16)
    for strides in ((1 << 30, 1), (1, 1 << 30)):
        far = memory.as_strided((3, 3), strides)
        far.copy_(values)
        assert one_class(far, metric) == expected_of_one_class(values, metric)


@every_metric
def test_permuted_rows_give_the_permuted_answer(metric):
    x, labels = logits(80, 30), random_labels(80, 4)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    assert order[medoids(x[order], labels[order], 4, metric)].equal(medoids(x, labels, 4, metric))


@every_metric
def test_other_classes_do_not_matter(metric):
    x, labels = logits(80, 30), random_labels(80, 4)
    alone = medoids(x, labels, 4, metric, mask=labels == 2)
    assert alone.tolist() == [-1, -1, medoids(x, labels, 4, metric)[2].item(), -1]


@pytest.mark.parametrize("metric", ["euclidean", "jeffreys"])
def test_opcheck(metric):
    x, labels = logits(20, 5).to(DEVICE).requires_grad_(), random_labels(20, 3).to(DEVICE)
    op = torch.ops.toast_kernels.class_medoids.default
    torch.library.opcheck(op, (x[:, ::2], labels.int(), labels > 0, 3, metric, 1, "triton"))


@pytest.mark.skipif(GPU, reason="on a GPU it is an assertion of the device, which ends its context")
def test_label_out_of_range_names_the_row_and_the_value():
    labels = torch.tensor([0, 0, 4, -1])
    with pytest.raises(IndexError, match=r"labels must be in \[0, 4\).*ignore_index = -100, got 4 at position 2"):
        medoids(logits(4, 3), labels, 4, "euclidean")


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


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("exponent", [-1070, -600, -450, 300, 600, 1000])
def test_extreme_magnitudes(metric, exponent):
    """Scaled by a power of two the answer stays, unless squares leave float64's range: then all costs are a tie."""
    rows = (logits(30, 20) * 8).round().double()
    x = torch.ldexp(torch.ldexp(rows, torch.tensor(exponent // 2)), torch.tensor(exponent - exponent // 2))
    squares_leave_float64 = metric == "euclidean" and abs(exponent) >= 600
    assert one_class(x, metric) == (0 if squares_leave_float64 else expected_of_one_class(rows, metric))


def nominated(x, metric):
    """(costs, bounds) of x as one class, by row."""
    one = backend._Classes(x.to(DEVICE), torch.zeros(len(x), dtype=torch.int64, device=DEVICE), None, 1, metric, -100)
    cost, bound = one.fast_costs()
    back = one.order.argsort()
    return cost[back].cpu(), bound[back].cpu()


CLOUDS = {
    "gaussian": lambda: logits(70, 60),
    "float64": lambda: logits(60, 60, dtype=torch.float64),
    "bfloat16": lambda: logits(60, 40, dtype=torch.bfloat16),
    "far from the origin": lambda: logits(60, 20) + 1000,
    "clusters": lambda: (10 * logits(5, 20)).repeat(12, 1) + 1e-3 * logits(60, 20),
    "duplicates": lambda: logits(10, 20).repeat(6, 1),
    "one outlier": lambda: torch.cat([1e-6 * logits(60, 20), torch.full((1, 20), 1e6)]),
    "mild outlier": lambda: torch.cat([logits(60, 20), torch.full((1, 20), 1e6)]),
    "tiny": lambda: logits(60, 20, dtype=torch.float64) * 1e-90,
    "huge": lambda: logits(60, 20, dtype=torch.float64) * 1e90,
    "tiny float32": lambda: logits(60, 20) * 1e-25,
    "exact in float16": lambda: torch.kron(
        torch.tensor([[1], [1], [-1], [-1]]), (200 * logits(15, 200)).round().clamp(-2047, 2047)
    ),
    "wide": lambda: logits(20, 300),
}


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize("name", CLOUDS)
def test_bounds_of_pair_sums_hold(name, metric):
    x = CLOUDS[name]()
    rows = x.double().numpy()
    size = np.linalg.norm(rows - rows.mean(axis=0), ord=1 if metric == "cityblock" else 2, axis=1).max()
    exact = torch.from_numpy(cdist(rows, rows, metric).sum(axis=1)) * 2.0 ** (13 - np.floor(np.log2(size)))
    cost, bound = nominated(x, metric)
    assert bound.isfinite().all()
    assert ((cost - exact).abs() <= bound + 1e-12 * exact).all()
    if name == "gaussian":  # and they say something
        assert (bound < (1e-3 if metric == "euclidean" else 2e-5) * cost).all()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "jeffreys"])
@pytest.mark.parametrize("name", ["gaussian", "float64", "bfloat16", "far from the origin", "clusters", "mild outlier"])
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
    cost, bound = nominated(x, metric)
    assert (np.abs(cost.numpy() - exact) <= bound.numpy()).all()
    if name == "gaussian":
        assert (bound < 1e-12 * cost).all()


@every_metric
def test_a_metric_without_a_fast_formula_gets_exact_costs(metric, monkeypatch):
    monkeypatch.setattr(backend, "PAIR_TILES", {})
    monkeypatch.setattr(backend, "FROM_MEANS", ())
    x, labels = (2 * logits(60, 7)).round(), random_labels(60, 3)
    assert nominated(x, metric)[1].isinf().all()
    assert medoids(x, labels, 4, metric).equal(scipy_medoids(x, labels, 4, metric))


@pytest.mark.skipif(GPU, reason="there it is a CompilationError")
def test_a_metric_without_a_distance_is_refused(monkeypatch):
    monkeypatch.setattr(reference, "METRICS", (*reference.METRICS, "unheard of"))
    monkeypatch.setattr(functional, "METRICS", reference.METRICS)
    with pytest.raises(Exception, match="exact_costs lacks this metric"):
        one_class(logits(5, 3), "unheard of")


def test_without_bounds_exact_costs_alone_decide(monkeypatch):
    x = logits(70, 5, seed=3)
    x[:25] += 8  # the metrics have different medoids
    monkeypatch.setattr(backend, "MAX_WIDTH", 1)
    for metric in ("euclidean", "cityblock"):
        assert nominated(x, metric)[1].isinf().all()
        assert one_class(x, metric) == expected_of_one_class(x, metric)
    assert len({expected_of_one_class(x, metric) for metric in ("euclidean", "cityblock", "sqeuclidean")}) == 3


@every_metric
def test_uninitialised_memory_is_never_read(metric, monkeypatch):
    x, labels, mask = logits(80, 20), random_labels(80, 4), torch.arange(80) % 5 > 0
    expected = scipy_medoids(x, torch.where(mask, labels, -1), 5, metric)
    empty = torch.empty
    for poison in (1, -(1 << 40)):  # true, and far out of any range
        monkeypatch.setattr(torch, "empty", lambda *a, poison=poison, **k: empty(*a, **k).fill_(poison))
        assert medoids(x, labels, 5, metric, mask=mask).equal(expected)
        monkeypatch.setattr(torch, "empty", empty)


@every_metric
def test_the_number_of_programs_and_runs_does_not_matter(metric, monkeypatch):
    x, labels = (2 * logits(60, 6)).round(), random_labels(60, 2)
    expected = medoids(x, labels, 2, metric)
    monkeypatch.setattr(backend._Classes, "_programs", lambda self, config: 5)
    monkeypatch.setattr(backend, "RUNS", 5)
    assert medoids(x, labels, 2, metric).equal(expected)


@on_a_gpu
@every_metric
def test_waits_for_nothing_and_can_be_captured(metric):
    x, labels = logits(3000, 50).to(DEVICE), random_labels(3000, 7).to(DEVICE)
    mask = labels != 2
    expected = class_medoids(x, labels, 8, metric=metric, mask=mask, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = class_medoids(x, labels, 8, metric=metric, mask=mask, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert again.equal(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = class_medoids(x, labels, 8, metric=metric, mask=mask, backend="triton")
    x.copy_(logits(3000, 50, seed=9))
    graph.replay()
    assert captured.equal(class_medoids(x, labels, 8, metric=metric, mask=mask, backend="triton"))


@on_a_gpu
@every_metric
def test_real_tiles_and_memory(metric, monkeypatch):
    monkeypatch.undo()
    x, labels = logits(20_000, 256, dtype=torch.bfloat16), random_labels(20_000, 10)
    on_device = x.to(DEVICE), labels.to(DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = class_medoids(*on_device, 11, metric=metric, backend="triton")
    grown = torch.cuda.max_memory_allocated() - before
    assert result.cpu().equal(class_medoids(x, labels, 11, metric=metric))
    assert grown < 8 * (backend.SLOTS + 40 * len(x)) + x.nbytes / 8
