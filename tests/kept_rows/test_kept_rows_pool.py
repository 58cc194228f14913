"""pool_rows of every backend, against a plain loop over rows."""

import pytest
import torch
from kept_rows_cases import BACKENDS, DTYPES, IGNORE, every_backend, interpreted, moved, needs_interpreter, rows_of
from memory_bounds import only_within

from toast_kernels import backends
from toast_kernels.kept_rows.op import PoolMemory, pool_rows


def make_memory(size, classes, dtype=torch.float32, pooled=0, given=0):
    """Full of what nothing should be; in memory that goes on before and after it."""
    around = torch.full((size + 4, classes), 55.0, dtype=dtype)
    labels, positions = torch.full((size,), 55), torch.full((size,), 55)
    return PoolMemory(around[2:-2], labels, positions, torch.tensor([pooled, given, 0]))


def run(logits, labels, memory, backend, places=None, num_classes=None):
    on_device = PoolMemory(*(moved(part, backend) for part in memory))
    num_classes = num_classes or logits.shape[1]
    pool_rows(
        moved(logits, backend), moved(labels, backend), on_device, num_classes, IGNORE, moved(places, backend), backend
    )
    for part, found in zip(memory, on_device, strict=True):
        part.copy_(found)


def check(memory, before, logits, labels, places=None):
    """That memory is what a loop over the rows makes of what was there before."""
    pool, pool_labels, positions, counts = (part.clone() for part in before)
    size = len(pool)
    for i, label in enumerate(labels.tolist()):
        if label == IGNORE:
            continue
        to = int(counts[0]) if places is None else int(places[i])
        if places is None:
            counts[0] += 1
        if 0 <= to < size:
            pool[to], pool_labels[to], positions[to] = logits[i].to(pool.dtype), label, counts[1] + i
    counts[1] += len(labels)
    assert torch.equal(memory.logits.isnan(), pool.isnan())
    assert torch.equal(memory.logits.nan_to_num(nan=7.0), pool.nan_to_num(nan=7.0))
    assert memory.labels.tolist() == pool_labels.tolist()
    assert memory.positions.tolist() == positions.tolist()
    assert memory.counts.tolist() == counts.tolist()
    around = memory.logits._base
    assert (around[:2] == 55).all()
    assert (around[-2:] == 55).all()


def copy_of(memory):
    return PoolMemory(*(part.clone() for part in memory))


def some_labels(rows, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (2 * rows,), generator=generator)[::2]
    labels[torch.rand(rows, generator=generator) < 0.4] = IGNORE
    return labels


@every_backend
@pytest.mark.parametrize("pool_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "columns apart"])
def test_the_pool_gets_the_rows_that_are_not_ignored(layout, dtype, pool_dtype, backend):
    for seed, (rows, classes, pooled) in enumerate([(1, 1, 0), (5, 17, 3), (9, 1025, 1), (0, 4, 2)]):
        logits = rows_of(layout, rows, classes, dtype)
        if classes > 16:
            logits[:, :6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e5, 6e-8, 65519.9]).to(dtype)
        labels = some_labels(rows, classes, seed)
        memory = make_memory(pooled + rows + 2, classes, pool_dtype, pooled, 10)
        before = copy_of(memory)
        run(logits, labels, memory, backend)
        check(memory, before, logits, labels)


@every_backend
def test_rows_go_behind_those_of_the_last_call_and_beyond_the_pool_nothing_is_written(backend):
    for size in (1, 8, 13, 14, 100):
        memory = make_memory(size, 3)
        for seed in range(4):
            logits, labels = rows_of("contiguous", 8, 3, torch.float32, seed), some_labels(8, 3, seed)
            before = copy_of(memory)
            run(logits, labels, memory, backend)
            check(memory, before, logits, labels)
        assert memory.counts.tolist() == [int(sum((some_labels(8, 3, s) != IGNORE).sum() for s in range(4))), 32, 0]


@every_backend
@pytest.mark.parametrize("ignored", ["all", "none", "all but the last"])
def test_ignored_rows_take_no_room(ignored, backend):
    labels = torch.zeros(6, dtype=torch.int64) if ignored == "none" else torch.full((6,), IGNORE)
    if ignored == "all but the last":
        labels[-1] = 2
    logits, memory = rows_of("contiguous", 6, 3, torch.float32), make_memory(6, 3)
    before = copy_of(memory)
    run(logits, labels, memory, backend)
    check(memory, before, logits, labels)
    assert memory.counts.tolist() == [{"all": 0, "none": 6}.get(ignored, 1), 6, 0]


@every_backend
def test_rows_go_to_places_that_are_given(backend):
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        logits, labels = rows_of("rows apart", 7, 5, torch.bfloat16, seed), some_labels(7, 5, seed)
        places = torch.randperm(14, generator=generator)[:7] - 3  # some before the pool, some beyond it
        memory = make_memory(8, 5, torch.float16, pooled=3, given=20)
        before = copy_of(memory)
        run(logits, labels, memory, backend, places)
        check(memory, before, logits, labels, places)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton" or interpreted])
@pytest.mark.parametrize("label", [5, -1, 2**40])
@pytest.mark.parametrize("width", [5, 3, 9])
def test_a_label_out_of_range_is_an_error_and_nothing_is_written(width, label, backend):
    memory = make_memory(4, width)
    before = copy_of(memory)
    with pytest.raises(IndexError, match=rf"target must be in \[0, 5\) or ignore_index = -7, got {label}"):
        run(torch.zeros(4, width), torch.tensor([0, IGNORE, label, -100]), memory, backend, num_classes=5)
    assert all(torch.equal(one, other) for one, other in zip(memory, before, strict=True))


@every_backend
def test_features_may_have_fewer_columns_than_there_are_classes(backend):
    logits, labels = rows_of("contiguous", 9, 3, torch.float32), some_labels(9, 40, 1)
    memory = make_memory(11, 3)
    before = copy_of(memory)
    run(logits, labels, memory, backend, num_classes=40)
    check(memory, before, logits, labels)


@every_backend
@pytest.mark.parametrize("most_counted", [4, 4096])
def test_more_rows_and_classes_than_a_tile(most_counted, backend, monkeypatch):
    if backend == "triton":
        from toast_kernels.kept_rows import triton

        monkeypatch.setattr(triton, "MOST_ROWS", 8)
        monkeypatch.setattr(triton, "MOST_CLASSES", 64)
        monkeypatch.setattr(triton, "MOST_COUNTED", most_counted)
        monkeypatch.setattr(triton, "_launches", {})
    for rows, classes in ((16, 64), (17, 65), (31, 200)):
        logits, labels = rows_of("rows apart", rows, classes, torch.float32), some_labels(rows, classes, rows)
        memory = make_memory(40, classes, torch.float16, pooled=1)
        for _ in range(2):
            before = copy_of(memory)
            run(logits, labels, memory, backend)
            check(memory, before, logits, labels)


@pytest.mark.skipif(not backends._C, reason="the C++ kernels are not built")
def test_threads_change_nothing():
    logits, labels = rows_of("contiguous", 96, 8001, torch.float32), some_labels(96, 8001, 0)
    threads, memory = torch.get_num_threads(), make_memory(90, 8001, torch.float16)
    before = copy_of(memory)
    try:
        torch.set_num_threads(4)
        run(logits, labels, memory, "cpu")
    finally:
        torch.set_num_threads(threads)
    check(memory, before, logits, labels)


@needs_interpreter
def test_the_triton_kernel_touches_only_what_it_is_given():
    """Every address that is read or written, checked by the interpreter."""
    for seed, (rows, classes) in enumerate([(12, 5), (7, 33), (9, 64)]):
        logits, labels = rows_of("rows apart", rows, classes, torch.float32), some_labels(rows, classes, seed).clone()
        for places in (None, torch.arange(rows) - 2):
            memory = PoolMemory(*(part.clone() for part in make_memory(4, classes, torch.float16, 1)))
            with only_within([logits, labels, *([] if places is None else [places]), *memory]):
                pool_rows(logits, labels, memory, classes, IGNORE, places, "triton")
            assert memory.counts[1] == rows
