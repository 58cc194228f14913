"""The Triton backend of class_medoids: the right rows, whatever their number, width, classes and layout."""

import pytest
import torch
from medoid_cases import DTYPES, METRICS, SHIFT_INVARIANT, logits, random_labels, scipy_medoids
from medoids_on_triton import (
    DEVICE,
    GPU,
    backend,
    class_medoids,
    every_formula,
    every_metric,
    expected_of_one_class,
    medoids,
    needs_triton,
    one_class,
    panels,  # noqa: F401
    small_tiles,  # noqa: F401
)

triton = pytest.importorskip("triton")
tl = triton.language
pytestmark = needs_triton


@pytest.mark.parametrize(
    ("dtype", "metric"),
    [
        pytest.param(dtype, metric, marks=[pytest.mark.more] * (dtype != torch.float32 and metric != "euclidean"))
        for dtype in DTYPES
        for metric in METRICS
    ],
    ids=str,
)
def test_equals_scipy_and_the_cpu_backend(dtype, metric):
    x, labels = logits(60, 37, dtype=dtype), random_labels(60, 3)
    result = medoids(x, labels, 4, metric)
    assert result.equal(scipy_medoids(x, labels, 4, metric))
    assert result.equal(class_medoids(x, labels, 4, metric=metric))
    assert result.dtype == torch.int64


@every_metric
@pytest.mark.parametrize("width", [1, 15, 17, 127, 129, 700])
def test_widths_around_tile_sizes(metric, width):
    x = logits(18 if width < 700 else 12, width, seed=width)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@pytest.mark.more
@pytest.mark.parametrize("metric", ["euclidean", "jeffreys"])
def test_ten_thousand_columns(metric):
    x = logits(4, 10_000)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@pytest.mark.parametrize("metric", ["euclidean", pytest.param("cityblock", marks=pytest.mark.more)])
def test_a_million_columns(metric, monkeypatch):
    monkeypatch.setattr(backend, "ROW_TILE", (1 << 18, 1 << 18))
    x = logits(3, 1 << 20)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33])
def test_rows_around_tile_sizes(metric, rows):
    x = logits(rows, 10, seed=rows)
    assert one_class(x, metric) == expected_of_one_class(x, metric)


def test_a_triangle_of_a_hundred_tiles():
    x = logits(210, 3)
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


@pytest.mark.parametrize("metric", SHIFT_INVARIANT)
def test_logits_plus_1000_have_the_same_medoids(metric):
    x, labels = (logits(80, 20) * 64).round() / 64, random_labels(80, 2)
    assert medoids(x + 1000, labels, 2, metric).equal(scipy_medoids(x, labels, 2, metric))


@every_formula
def test_left_out_rows(metric):
    x, labels = logits(48, 12), random_labels(48, 3)
    kept = torch.rand(48, generator=torch.Generator().manual_seed(2)) < 0.7
    expected = scipy_medoids(x, torch.where(kept, labels, -1), 3, metric)
    assert medoids(x, labels, 3, metric, mask=kept).equal(expected)
    assert medoids(x, torch.where(kept, labels, -7), 3, metric, ignore_index=-7).equal(expected)
    wild = torch.where(kept, labels, 1 << 40)  # the label of a masked row is not looked at
    assert medoids(x, wild, 3, metric, mask=kept).equal(expected)
    for value in (torch.nan, torch.inf, -torch.inf):
        diverged = x.clone()
        diverged[~kept, torch.arange((~kept).sum()) % 12] = value
        assert medoids(diverged, labels, 3, metric).equal(expected)


@every_formula
def test_layouts(metric):
    """Row stride, offset, transposed, broadcast and stepped views all give what a fresh copy gives."""
    labels, wide = random_labels(36, 3), logits(36, 64).to(DEVICE)
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


@every_formula
def test_permuted_rows_give_the_permuted_answer(metric):
    x, labels = logits(50, 30), random_labels(50, 4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert order[medoids(x[order], labels[order], 4, metric)].equal(medoids(x, labels, 4, metric))


@every_formula
def test_other_classes_do_not_matter(metric):
    x, labels = logits(50, 30), random_labels(50, 4)
    alone = medoids(x, labels, 4, metric, mask=labels == 2)
    assert alone.tolist() == [-1, -1, medoids(x, labels, 4, metric)[2].item(), -1]


@pytest.mark.parametrize("metric", ["euclidean", "jeffreys"])
def test_opcheck(metric):
    x, labels = logits(20, 5).to(DEVICE).requires_grad_(), random_labels(20, 3).to(DEVICE)
    op = torch.ops.toast_kernels.medoids.default
    torch.library.opcheck(op, (x[:, ::2], labels.int(), labels > 0, 3, metric, 1, "triton"))


@pytest.mark.skipif(GPU, reason="on a GPU it is an assertion of the device, which ends its context")
def test_label_out_of_range_names_the_row_and_the_value():
    labels = torch.tensor([0, 0, 4, -1])
    with pytest.raises(IndexError, match=r"labels must be in \[0, 4\).*ignore_index = -100, got 4 at position 2"):
        medoids(logits(4, 3), labels, 4, "euclidean")


@every_metric
def test_uninitialised_memory_is_never_read(metric, monkeypatch, panels):  # noqa: F811
    x, labels, mask = logits(50, 20), random_labels(50, 4), torch.arange(50) % 5 > 0
    labels[-3:] = torch.tensor([6, 6, 7])
    expected = scipy_medoids(x, torch.where(mask, labels, -1), 8, metric)
    empty = torch.empty

    def poisoned(*arguments, **options):
        memory = empty(*arguments, **options)
        return memory.fill_(torch.nan if memory.is_floating_point() else torch.iinfo(memory.dtype).min)

    panels(3)
    monkeypatch.setattr(torch, "empty", poisoned)
    assert medoids(x, labels, 8, metric, mask=mask).equal(expected)


@every_metric
def test_the_number_of_programs_and_runs_does_not_matter(metric, monkeypatch):
    x, labels = (2 * logits(60, 6)).round(), random_labels(60, 2)
    expected = medoids(x, labels, 2, metric)
    monkeypatch.setattr(backend._Classes, "_programs", lambda self, a_multiprocessor: 5)
    monkeypatch.setattr(backend, "RUNS", 4)
    monkeypatch.setattr(backend, "FROM_PAIRS", ())  # so that exact costs decide, in runs
    monkeypatch.setattr(backend, "FROM_MEANS", ())
    assert medoids(x, labels, 2, metric).equal(expected)


@pytest.mark.parametrize(
    ("rows", "count", "metric"),
    [
        *[(64, 2, "euclidean"), (64, 3, "cityblock"), (64, 4, "euclidean")],
        *(
            pytest.param(64, *other, marks=pytest.mark.more)
            for other in ((2, "cityblock"), (3, "euclidean"), (4, "cityblock"))
        ),
        *(pytest.param(128, n, metric, marks=pytest.mark.more) for n in (2, 3, 8) for metric in backend.FROM_PAIRS),
    ],
)
def test_panels(rows, count, metric, panels):  # noqa: F811
    """A class in several panels, one that ends where a panel does, and many in one panel."""
    panels(count)
    x, row = logits(rows, 11), torch.arange(rows)
    for labels in (row * 0, row * 4 // rows, row * 5 // (2 * rows), row * 9 // rows):
        assert medoids(x, labels, 9, metric).equal(scipy_medoids(x, labels, 9, metric))
    diverged = row == rows - 16 + 4
    mask = row % 16 > 2
    labels = torch.where(mask, row * 10 // (7 * rows), -1)
    x[diverged, 3] = torch.nan
    labels[diverged] = 0
    expected = scipy_medoids(x, torch.where(diverged, -1, labels), 2, metric)
    assert medoids(x, labels, 2, metric, mask=mask | diverged).equal(expected)


@pytest.mark.skipif(GPU, reason="a GPU has them or not")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("width", [11, 300])
def test_without_tensor_descriptors(width, count, panels, monkeypatch):  # noqa: F811
    panels(count)
    monkeypatch.setattr(backend, "_has_descriptors", lambda: False)
    x, labels = logits(48, width), torch.arange(48) // 30
    assert medoids(x, labels, 2, "euclidean").equal(scipy_medoids(x, labels, 2, "euclidean"))


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_more_classes_than_a_third_of_the_rows(metric):
    """Their centres lie where no other class of three rows has its own."""
    labels = torch.tensor([7, 7, 7, 7, 90, 11, 11, 50, 50, 50, 51, 51, 51, 80])
    x = logits(14, 6) + labels[:, None]
    assert medoids(x, labels, 100, metric).equal(scipy_medoids(x, labels, 100, metric))


@triton.jit
def classes_of(numbers, offsets, found, classes, WAYS: tl.constexpr):
    number = tl.load(numbers + tl.program_id(0))
    tl.store(found + tl.program_id(0), backend.kernels.class_of(number, offsets, classes, WAYS))


@pytest.mark.parametrize("ways", [32, 128])
@pytest.mark.parametrize("classes", [1, 2, 129, 100_000])
def test_the_class_of_a_tile(classes, ways):
    """Of each of some tiles, where classes have 0 to 2 of them."""
    sizes = random_labels(classes, 3)
    sizes[classes // 2] = 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    numbers = torch.linspace(0, int(offsets[-1]) - 1, 20).long()
    found = torch.empty(20, dtype=torch.int32, device=DEVICE)
    classes_of[(20,)](numbers.to(DEVICE), offsets.to(DEVICE), found, classes, ways)
    assert found.cpu().equal((torch.searchsorted(offsets, numbers, right=True) - 1).int())


@pytest.mark.parametrize("num_classes", [32_767, 32_768, 100_000])
def test_keys_of_16_and_32_bits(num_classes, monkeypatch):
    monkeypatch.setattr(backend, "BLOCK", 1 << 15)
    monkeypatch.setattr(backend._Classes, "nominate", lambda self: self.x.offsets)
    monkeypatch.setattr(backend._Classes, "decide", lambda self, *offsets: torch.stack(offsets))
    labels = torch.tensor([num_classes - 1, 0, -100, num_classes - 1])
    offsets = class_medoids(logits(4, 2).to(DEVICE), labels.to(DEVICE), num_classes, backend="triton").tolist()
    assert (offsets[:2], offsets[-2:]) == ([0, 1], [1, 3])


@pytest.mark.skipif(GPU, reason="on a GPU it is an assertion of the device, which ends its context")
@every_metric
def test_the_label_of_a_row_that_is_not_finite_is_not_looked_at(metric):
    x, labels = logits(40, 40), random_labels(40, 2)
    x[3, 39], labels[3] = torch.inf, 9
    labels[4] = -100
    expected = scipy_medoids(x, torch.where(torch.arange(40) == 3, -1, labels), 2, metric)
    assert medoids(x, labels, 2, metric).equal(expected)
    labels[7] = 2
    with pytest.raises(IndexError, match="got 2 at position 7"):
        medoids(x, labels, 2, metric)
