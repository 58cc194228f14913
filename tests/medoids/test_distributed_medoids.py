"""distributed_class_medoids on real ranks against class_medoids and SciPy on all rows in one place."""

import re
import time
from unittest import mock

import medoid_cases
import pytest
import ranks
import torch
import torch.distributed as dist
from medoid_cases import METRICS, scipy_medoids

from toast_kernels import class_medoids, distributed
from toast_kernels.distributed import Ranks, distributed_class_medoids

CLASSES, WIDTH = 9, 7
SLAB_ROWS = 50
GROUPS = {"two": [1, 3], "three": [0, 2, 3], "four": [0, 1, 2, 3]}  # of the four processes
THREE = GROUPS["three"]
LOST = 2  # the rank that fails, or does not come
CASES = {
    **{f"even {metric}": ("even", metric, torch.float16) for metric in METRICS},
    **{f"ties {metric}": ("ties", metric, torch.bfloat16) for metric in METRICS},
    **{f"uneven {dtype}": ("uneven", "euclidean", dtype) for dtype in medoid_cases.DTYPES},
    **{
        spread: (spread, "euclidean", torch.float16) for spread in ("one rank", "a class a rank", "bad rows", "no rows")
    },
}
# One group has all cases, the others those that differ in what lies where.
CASES_OF = {
    group: [
        case for case, (_, *settings) in CASES.items() if group == "three" or settings == ["euclidean", torch.float16]
    ]
    for group in GROUPS
}


def pools(spread, size, dtype=torch.float16):
    """Each rank's rows and labels. The last class has no rows."""
    x = medoid_cases.logits(40 * size, WIDTH, seed=3, dtype=dtype)
    labels = medoid_cases.random_labels(40 * size, CLASSES - 1, seed=3)
    numbers = [40] * size
    if spread == "ties":
        x = x.sign()
        x[-40:], labels[-40:] = x[:40], labels[:40]
    elif spread in ("uneven", "large class"):
        labels[::2] = 6
        if spread == "uneven":
            numbers = [0, *[1] * (size - 2), 39 * size + 2]
    elif spread == "one rank":
        numbers = [*[0] * (size - 1), 40 * size]
    elif spread == "a class a rank":
        labels = torch.arange(size).repeat_interleave(40)
    elif spread == "bad rows":
        labels[::5] = -100
        x[1::7, 2], labels[1::7] = torch.nan, 1000  # such a row's label is not looked at
        x[2::7, 4] = -torch.inf
    elif spread == "no rows":
        numbers = [0] * size
    x, labels = x[: sum(numbers)], labels[: sum(numbers)]
    return list(zip(x.split(numbers), labels.split(numbers), strict=True))


def select(x, labels, group, *, num_classes=CLASSES, metric="euclidean", store=None):
    """The medoids' positions (every other is a row's), and what was stored: [C, D], NaN where nothing was. A row's
    prediction is twice the row, in float64."""
    table = torch.full((num_classes, WIDTH), torch.nan, dtype=x.dtype)
    times_stored = torch.zeros(num_classes)

    def write(classes, rows):
        assert rows.dtype == torch.float64
        table[classes] = (rows[:, :WIDTH] / 2).to(x.dtype)
        times_stored[classes] += 1

    medoids = distributed_class_medoids(
        x,
        labels,
        1 + 2 * torch.arange(len(x)),
        2 * len(x),
        num_classes,
        store or write,
        2 * torch.cat([x, x], dim=1).double(),
        metric=metric,
        ignore_index=-100,
        backend="auto",
        ranks=Ranks(group),
    )
    assert torch.equal(times_stored, (medoids >= 0).float()) or store
    return medoids, table


def every_case(rank, size):
    """All that is looked at below, with small slabs: to start processes takes longest."""
    groups = {name: dist.new_group(members) for name, members in GROUPS.items()}
    hasty = dist.new_group(timeout=ranks.seconds(1))
    found = {}
    with mock.patch.object(distributed, "SLAB", SLAB_ROWS * WIDTH * 2):
        for name, members in GROUPS.items():
            if rank in members:
                for case in CASES_OF[name]:
                    spread, metric, dtype = CASES[case]
                    x, labels = pools(spread, len(members), dtype)[members.index(rank)]
                    found[name, case] = select(x, labels, groups[name], metric=metric)
            else:
                assert Ranks(groups[name]).size == 1
        if rank in THREE:
            for spread in ("uneven", "large class"):
                found["exchanges", spread] = exchanges(spread, groups["three"])
            found["said"] = failures(rank, groups["three"])
    if rank != LOST:
        found["alone"] = try_to(*pools("even", size)[rank], hasty)
    return found


def exchanges(spread, group):
    """The numbers of rows received and sent at a time."""
    numbers = []
    exchange = Ranks.all_to_all

    def spy(self, rows, *arguments):
        received = exchange(self, rows, *arguments)
        if rows.dtype == torch.uint8:
            numbers.append((len(received), len(rows)))
        return received

    with mock.patch.object(Ranks, "all_to_all", spy):
        select(*pools(spread, len(THREE))[dist.get_rank(group)], group)
    return numbers


def failures(rank, group):
    """What a rank says when LOST fails in one way or another, and after that."""
    x, labels = pools("even", len(THREE))[dist.get_rank(group)]

    def full(*_, **__):
        raise MemoryError(f"no room on {rank}")

    bad = rank == LOST
    with mock.patch.object(distributed, "class_medoids", full if bad else class_medoids):
        selection = try_to(x, labels, group)
    return {
        "label": try_to(x, torch.where(labels == 2, 70, labels) if bad else labels, group),
        "selection": selection,
        "storing": try_to(x, labels, group, store=full if bad else None),
        "every rank": try_to(x, labels, group, store=full),
        "num_classes": try_to(x, labels, group, num_classes=CLASSES + bad),
        "dtype": try_to(x.bfloat16() if bad else x, labels, group),
        "nothing": try_to(x, labels, group),
    }


def try_to(x, labels, group, **arguments):
    started = time.perf_counter()
    try:
        select(x, labels, group, **arguments)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        assert time.perf_counter() - started < 30


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 4)


@pytest.mark.parametrize(("group", "case"), [(group, case) for group in GROUPS for case in CASES_OF[group]])
def test_every_rank_has_the_medoids_of_all_rows_in_rank_order(found, group, case):
    spread, metric, dtype = CASES[case]
    x, labels = map(torch.cat, zip(*pools(spread, len(GROUPS[group]), dtype), strict=True))
    expected = class_medoids(x, labels, CLASSES, metric=metric)
    rows = torch.full((CLASSES, WIDTH), torch.nan, dtype=dtype)
    rows[expected >= 0] = x[expected[expected >= 0]]
    for rank in GROUPS[group]:
        medoids, table = found[rank][group, case]
        assert medoids.tolist() == torch.where(expected >= 0, 1 + 2 * expected, -1).tolist()
        assert torch.equal(table.view(torch.uint8), rows.view(torch.uint8))
    if spread == "even":
        assert expected.tolist() == scipy_medoids(x, labels, CLASSES, metric).tolist()
    if spread == "ties":
        assert (expected < len(x) - 40).all()


@pytest.mark.parametrize("spread", ["uneven", "large class"])
def test_a_slab_is_bounded(found, spread):
    labels = torch.cat([labels for _, labels in pools(spread, len(THREE))])
    largest = labels.bincount().max().item()
    assert largest > SLAB_ROWS
    received, sent = torch.tensor([found[rank]["exchanges", spread] for rank in THREE]).unbind(2)
    assert received[0, 0] == largest  # and no other class
    assert received.flatten()[1:].max() <= SLAB_ROWS
    assert sent[:, 1:].max() <= SLAB_ROWS
    assert sent.sum() == received.sum() == len(labels)


WHY = {
    "label": r"RuntimeError: rank 2 failed with IndexError: labels must be in \[0, 9\) .*, got 70 at position \d+",
    "selection": "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    "storing": "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    "every rank": "RuntimeError: rank 0 failed with MemoryError: no room on 0; rank 2 failed with .*; rank 3 failed .*",
    "num_classes": "ValueError: ranks differ in num_classes: 9 on rank 0, 10 on rank 2",
    "dtype": "ValueError: ranks differ in dtype: torch.float16 on rank 0, torch.bfloat16 on rank 2",
}


@pytest.mark.parametrize("what", WHY)
def test_a_failure_on_one_rank_is_an_error_on_all_that_names_it(found, what):
    for rank in THREE:
        assert re.fullmatch(WHY[what], found[rank]["said"][what])


def test_after_failures_the_ranks_are_still_in_step(found):
    for rank in THREE:
        assert found[rank]["said"]["nothing"] is None


def test_a_rank_that_does_not_come_is_an_error_within_the_timeout(found):
    for rank in (0, 1, 3):
        assert found[rank]["alone"].startswith(
            "RuntimeError: a rank failed or did not come: MedoidBank.compute is collective"
        )
    assert "alone" not in found[LOST]


@pytest.mark.parametrize(
    ("backends", "here", "somewhere", "expected"),
    [
        ("cuda:nccl", "cuda:1", {"cuda"}, "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cuda:1", {"cuda"}, "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cpu", {"cpu"}, "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda:1", {"cuda"}, "cpu"),
        ("cpu:gloo,meta:nccl", "cpu", {"meta"}, "meta"),  # no rows here
        ("meta:nccl", "cpu", {"cpu"}, "meta"),
        ("meta:nccl", "cpu", set(), "meta"),
    ],
)
def test_rows_are_exchanged_where_the_backend_is_at_home(backends, here, somewhere, expected):
    with mock.patch.object(dist, "get_backend_config", return_value=backends):
        assert Ranks().exchange_device(torch.device(here), somewhere) == torch.device(expected)
