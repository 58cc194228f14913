"""The Triton backend of class_medoids: what it allocates, and that a host waits for nothing."""

import pytest
import torch
from medoid_cases import DTYPES, logits, random_labels
from medoids_on_triton import (
    DEVICE,
    GPU,
    backend,
    class_medoids,
    every_metric,
    needs_triton,
    on_a_gpu,
    panels,  # noqa: F401
    small_tiles,  # noqa: F401
)

from toast_kernels.medoids import chunks

pytestmark = needs_triton


@every_metric
@pytest.mark.parametrize("most_panels", [1, 3])
def test_nothing_is_waited_for(metric, most_panels, panels, monkeypatch):  # noqa: F811
    """Tensors on "meta" have no values that a host could ask for. Launches are as many as README.md says."""
    launched = []
    monkeypatch.setattr(backend._Classes, "_launch", lambda self, kernel, *_, **__: launched.append(kernel))
    monkeypatch.setattr(backend._Classes, "_programs", lambda self, a_multiprocessor: a_multiprocessor)
    panels(most_panels)
    x, labels, mask = (torch.empty(100, *shape, device="meta") for shape in ((20,), (), ()))
    result = backend.class_medoids(x, labels.long(), mask.bool(), 8, metric, -100)
    assert (result.device.type, result.shape) == ("meta", (8,))
    of_pairs = 10 + most_panels * (most_panels + 1)
    assert len(launched) == (of_pairs if metric in backend.FROM_PAIRS else 13 if metric in backend.FROM_MEANS else 8)


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
    assert grown < 8 * (backend.SLOTS + 40 * len(x)) + 1.1 * x.nbytes


@pytest.fixture
def extra_bytes(monkeypatch):
    """Counts what a call allocates beside x, with nothing launched."""
    monkeypatch.undo()
    held = []

    def counted(make):
        return lambda *shape, **options: held.append(made := make(*shape, **options)) or made

    def extra(x, num_classes, metric):
        held.clear()
        class_medoids(x, torch.zeros(len(x), dtype=torch.int32), num_classes, metric=metric, backend="triton")
        keys_and_order = (2 + 8 + 10) * len(x)  # sorted, and what sorting takes
        return sum(tensor.nbytes for tensor in held[1:]) + keys_and_order  # but the labels

    monkeypatch.setattr(backend._Classes, "_launch", lambda *arguments, **constants: None)
    monkeypatch.setattr(backend._Classes, "_refuse", lambda *arguments: None)
    monkeypatch.setattr(torch, "empty", counted(torch.empty))
    monkeypatch.setattr(torch, "zeros", counted(torch.zeros))
    return extra


never_touched = pytest.mark.skipif(GPU, reason="takes 23 GB that are never touched")


@never_touched
@pytest.mark.parametrize(
    ("rows", "width", "classes", "most"), [(1_300_000, 1000, 1000, 1.2e9), (1_000_000, 10_000, 10_000, 5.4e9)]
)
def test_extra_memory_of_large_pools(rows, width, classes, most, extra_bytes):
    """As README.md says."""
    assert extra_bytes(torch.empty(rows, width, dtype=torch.bfloat16), classes, "euclidean") < most


@never_touched
@every_metric
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 1000, 100_000])
def test_a_chunk_needs_no_more_than_it_is_reckoned_to(metric, dtype, classes, extra_bytes):
    for rows, width in ((100_000, 1), (100_000, 65), (100_000, 1000), (10_000, 2049)):
        x = torch.empty(rows, width, dtype=dtype)
        row_bytes, class_bytes = chunks.needed_bytes(x)
        reckoned = rows * row_bytes + min(rows, classes) * class_bytes + 8 * backend.SLOTS
        assert extra_bytes(x, min(rows, classes), metric) + x.nbytes <= reckoned


@on_a_gpu
@every_metric
@pytest.mark.parametrize("pinned", [False, True])
def test_rows_in_host_memory(metric, pinned, monkeypatch):
    """In chunks on the GPU, within their bytes, as on the CPU."""
    monkeypatch.undo()
    x, labels = logits(20_000, 256, dtype=torch.bfloat16), random_labels(20_000, 100)
    x = x.pin_memory() if pinned else x
    class_medoids(x[:100], labels[:100], 100, metric=metric, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = class_medoids(x, labels, 101, metric=metric, device=DEVICE, chunk_bytes=6 << 20)
    assert torch.cuda.max_memory_allocated() - before < (6 << 20) + 8 * backend.SLOTS + (1 << 20)
    assert found.equal(class_medoids(x, labels, 101, metric=metric))
    with pytest.raises(ValueError, match=r"chunk_bytes must be at least \d+, what the \d+ rows of class \d+ need"):
        class_medoids(x, labels, 101, metric=metric, device=DEVICE, chunk_bytes=1 << 16)
