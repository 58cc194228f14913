"""class_medoids in chunks of whole classes: the medoids that it finds at once, from files that it never holds."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from growing_memory import growth_during, needs_linux
from medoid_cases import DTYPES, METRICS, logits, random_labels
from optional import given, settings
from optional import strategies as st

from toast_kernels.functional import class_medoids
from toast_kernels.medoids import chunks

every_metric = pytest.mark.parametrize("metric", METRICS)


def least(x):
    """The smallest chunk_bytes: one row and its class."""
    return sum(chunks.needed_bytes(x))


@every_metric
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 6), st.integers(0, 10_000), st.data())
def test_equals_all_at_once(metric, rows, width, num_classes, seed, data):
    """Budgets from one row upwards, so that some classes fit no chunk; classes of 0, 1 and many rows; ties."""
    x = logits(rows, 3 * width, seed, data.draw(st.sampled_from(DTYPES)))
    x = data.draw(st.sampled_from([x[:, :width], x[:, ::3], x.t().contiguous().t()[:, width:], x.round()[:, :width]]))
    labels = random_labels(rows, data.draw(st.integers(1, num_classes)), seed)
    labels = labels.to(data.draw(st.sampled_from([torch.int64, torch.int32, torch.uint8])))
    options = {"metric": metric, "ignore_index": data.draw(st.sampled_from([-100, 0, num_classes - 1]))}
    if data.draw(st.booleans()):
        options["mask"] = (random_labels(2 * rows, 4, seed + 2) > 0)[::2]
    chunk_bytes = data.draw(st.integers(least(x), least(x) + rows * chunks.needed_bytes(x)[0]))
    found = class_medoids(x, labels, num_classes, **options, device="cpu", chunk_bytes=chunk_bytes)
    assert found.equal(class_medoids(x, labels, num_classes, **options))


@every_metric
def test_left_out_rows(metric):
    """Rows that are not finite, whose labels are not looked at."""
    x, labels = logits(400, 12), random_labels(400, 9)
    x[::7, 5], x[3::11, 0] = torch.nan, torch.inf
    labels[::7] = 1 << 40
    expected = class_medoids(x, labels, 9, metric=metric)
    for rows in (1, 30, 400):
        chunk_bytes = least(x) + rows * chunks.needed_bytes(x)[0]
        assert class_medoids(x, labels, 9, metric=metric, chunk_bytes=chunk_bytes).equal(expected)


def test_label_out_of_range_names_the_row_and_the_value():
    x, labels = logits(8, 3), torch.zeros(8, dtype=torch.int64)
    labels[2], labels[5], x[2, 1] = 9, -1, torch.nan
    with pytest.raises(IndexError, match=r"labels must be in \[0, 4\).*got -1 at position 5"):
        class_medoids(x, labels, 4, chunk_bytes=1 << 20)


def test_a_row_is_gathered_once_in_ascending_order_within_the_budget(monkeypatch):
    x, labels = logits(500, 20), random_labels(500, 40)
    gathered, select = [], torch.index_select
    monkeypatch.setattr(
        torch, "index_select", lambda x, dim, rows, out: gathered.append(rows) or select(x, 0, rows, out=out)
    )
    row_bytes, class_bytes = chunks.needed_bytes(x)
    chunk_bytes = 80 * row_bytes + 5 * class_bytes
    class_medoids(x, labels, 41, mask=labels != 3, chunk_bytes=chunk_bytes)
    assert torch.cat(gathered).sort().values.equal((labels != 3).nonzero()[:, 0])
    assert 6 <= len(gathered) <= 9
    for rows in gathered:
        assert rows.equal(rows.sort().values)
        assert len(rows) * row_bytes + len(labels[rows].unique()) * class_bytes <= chunk_bytes


@needs_linux
@pytest.mark.parametrize("source", ["torch.from_file", "numpy.memmap"])
@pytest.mark.parametrize("chunk_bytes", [None, 8 << 20], ids=["whole", "chunks"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_a_memory_mapped_pool_is_not_copied(source, chunk_bytes, metric, tmp_path):
    """A copy in any dtype would take 64 MB at least."""
    rows, width, path = 64_000, 500, tmp_path / "pool"
    dtype = torch.bfloat16 if source == "torch.from_file" else torch.float16
    written = torch.from_file(str(path), shared=True, size=rows * width, dtype=dtype).view(rows, width)
    few = logits(1000, width)  # freed memory that the allocator gives back meanwhile would hide a copy
    for some in written.split(1000):
        some.copy_(few)
    if source == "numpy.memmap":
        x = torch.from_numpy(np.memmap(path, np.float16, "c", shape=(rows, width)))
    else:
        x = torch.from_file(str(path), shared=False, size=rows * width, dtype=dtype).view(rows, width)
    labels = torch.arange(rows) % 1000
    options = {"metric": metric, "chunk_bytes": chunk_bytes}
    class_medoids(x[:2000], labels[:2000], 1000, **options)  # threads and what they keep

    assert growth_during(lambda: class_medoids(x, labels, 1000, **options)) < 32 << 20


class Deferred(torch.Tensor):
    """A tensor whose copies to a "GPU" are made as late as they may be: when an event after them is waited for."""

    copies: ClassVar[list] = []

    @staticmethod
    def make(i):
        Deferred.copies[i]()
        Deferred.copies[i] = lambda: None

    def new_empty(self, *shape, pin_memory):
        assert pin_memory
        return torch.empty(shape).as_subclass(Deferred)

    def to(self, device, non_blocking):
        assert non_blocking
        copy = torch.full_like(self, torch.nan).as_subclass(torch.Tensor)
        self.copies.append(lambda: copy.copy_(self.as_subclass(torch.Tensor)))
        return copy


class Event:
    copies = 0  # of all, those before it

    def record(self, stream):
        self.copies = len(Deferred.copies)

    def synchronize(self):
        for i in range(self.copies):
            Deferred.make(i)


def test_pinned_memory_is_filled_again_only_after_it_was_copied(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    x = logits(100, 3)
    parts = torch.randperm(100, generator=torch.Generator().manual_seed(0)).split([20, 30, 0, 30, 15, 5])
    copies = list(chunks._gathered(x.as_subclass(Deferred), parts, SimpleNamespace(type="cuda")))
    for i in range(len(parts)):
        Deferred.make(i)
    assert torch.cat(copies).equal(x[torch.cat(parts)])


X, Y = torch.zeros(8, 3), torch.zeros(8, dtype=torch.int64)
BAD = {
    "too small": ({"chunk_bytes": 100}, ValueError, r"chunk_bytes must be at least 632, what one row of 3 .*got 100"),
    "not an int": ({"chunk_bytes": 1e6}, TypeError, r"chunk_bytes must be an int or None, got 1000000.0"),
    "no device": ({"device": "gpu"}, ValueError, r"device must be one that there is, its name or None, got 'gpu'"),
    "no device, in chunks": ({"device": "gpu", "chunk_bytes": 10_000}, ValueError, r"device must be one .* got 'gpu'"),
    "a number": ({"device": 3.5}, ValueError, r"device must be one that there is, its name or None, got 3.5"),
    "a class that does not fit": (
        {"device": "meta", "chunk_bytes": 1000}, ValueError,
        r"chunk_bytes must be at least 2592, what the 8 rows of class 0 need on meta at once, got 1000; or device=",
    ),
    "no such kernels there": ({"device": "meta", "backend": "cpu"}, ValueError, r"needs tensors on the CPU, .* meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(name):
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        class_medoids(X, Y, 2, **options)


def test_rows_elsewhere_are_not_brought_here():
    with pytest.raises(ValueError, match=r"x must be on the CPU where chunk_bytes or another device .* on meta"):
        class_medoids(X.to("meta"), Y.to("meta"), 2, device="cpu")
