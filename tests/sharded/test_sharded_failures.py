"""What every rank is told when one of those over which the classes lie fails, disagrees or does not come."""

import dataclasses
import re
from unittest import mock

import pytest
import ranks
import torch
import torch.distributed as dist
from sharded_cases import CLASSES, ROWS, WIDTHS, error_of

from toast_kernels import SoftTargets, toast_loss
from toast_kernels.sharded import loss as sharded_loss
from toast_kernels.sharded import rows as sharded_rows

LOST = 2  # the rank that fails, or does not come


def every_case(rank, size):
    """All that is looked at below: to start processes takes longest."""
    torch.set_num_threads(1)
    found = {"said": failures(rank, dist.new_group())}
    hasty = dist.new_group(timeout=ranks.seconds(1))
    if rank != LOST:
        found["alone"] = what_is_said(rank, hasty)
    return found


def failures(rank, group):
    """What a rank says when LOST is given something else, fails, or all are given something wrong; and after that."""
    bad = rank == LOST

    def full(*_, **__):
        raise MemoryError(f"no room on {rank}")

    def with_full(module, name):
        with mock.patch.object(module, name, full if bad else getattr(module, name)):
            return what_is_said(rank, group)

    table = SoftTargets.from_logits(torch.zeros(CLASSES, CLASSES), 3.0, top_k=2)
    other = SoftTargets.from_logits(torch.ones(CLASSES, CLASSES).tril(), 3.0, top_k=2)
    moved = dataclasses.replace(table, indices=table.indices + 1)
    unlooked = dataclasses.replace(table[:ROWS], values=table.values[:ROWS].clone())
    unlooked.values[0] = 0.5
    labels = torch.arange(ROWS)
    width = WIDTHS["four"][rank]
    wrong = dataclasses.replace(table, num_classes=9)
    return {
        "rows": what_is_said(rank, group, rows=ROWS - bad),
        "dtype": what_is_said(rank, group, dtype=torch.bfloat16 if bad else torch.float32),
        "temperature": what_is_said(rank, group, temperature=4.0 - bad),
        "reduction": what_is_said(rank, group, reduction="sum" if bad else "mean"),
        "past": what_is_said(rank, group, past=table[:ROWS] if bad else None),
        "labels": what_is_said(rank, group, target=labels.flip(0) if bad else labels),
        "past logits": what_is_said(
            rank, group, past=torch.zeros(0 if bad else 2, width), past_index=torch.full((ROWS,), -1)
        ),
        "class weights": what_is_said(rank, group, weight=torch.arange(1.0, 1 + CLASSES).roll(int(bad))),
        "filled": what_is_said(rank, group, soft_targets=SoftTargets.from_logits(
            torch.zeros(CLASSES, width), 3.0, filled=torch.arange(CLASSES) != (4 if bad else CLASSES - 1)
        ), alpha=0.5),
        "past rows": what_is_said(rank, group, past=other[:ROWS] if bad else table[:ROWS]),
        "listed": what_is_said(rank, group, soft_targets=moved if bad else table, alpha=0.5),
        "softened": what_is_said(rank, group, soft_targets=SoftTargets.view_logits(
            torch.zeros(CLASSES, width), 3.0 + bad
        ), alpha=0.5),
        "rows that take no part": what_is_said(
            rank, group, target=labels.where(labels > 0, -100), past=unlooked if bad else table[:ROWS],
        ),
        "columns": what_is_said(rank, group, soft_targets=SoftTargets.empty(CLASSES, 3 if bad else width), alpha=0.5),
        "one label": what_is_said(rank, group, target=labels * (11 if bad else 1)),
        "statistics": with_full(sharded_rows, "softmax_statistics"),
        "losses": with_full(sharded_loss, "differentiate"),
        "arguments": with_full(sharded_loss, "to_problem"),
        "every label": what_is_said(rank, group, target=labels * 11),
        "weight": what_is_said(rank, group, weight=torch.ones(4)),
        "soft_targets": what_is_said(rank, group, soft_targets=SoftTargets.empty(4, width), alpha=0.5),
        "alpha": what_is_said(rank, group, soft_targets=SoftTargets.empty(CLASSES, width), alpha=None),
        "top-k": what_is_said(rank, group, past=table[:ROWS], soft_targets=wrong, alpha=0.5),
        "learned": what_is_said(rank, group, weight=torch.ones(CLASSES, requires_grad=True)),
        "backend": what_is_said(rank, group, backend="cpu"),
        "nothing": what_is_said(rank, group),
    }  # fmt: skip


def what_is_said(rank, group, *, rows=ROWS, dtype=torch.float32, target=None, **keywords):
    logits = torch.zeros(rows, WIDTHS["four"][rank], dtype=dtype, requires_grad=True)
    target = torch.arange(rows) if target is None else target
    return error_of(lambda: toast_loss(logits, target, process_group=group, **keywords).backward())


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 4)


SAID = {
    "rows": r"ValueError: ranks differ in shape of labels: \[9\] on rank 0, \[8\] on rank 2",
    "dtype": "ValueError: ranks differ in dtype: torch.float32 on rank 0, torch.bfloat16 on rank 2",
    "temperature": "ValueError: ranks differ in temperature: 4.0 on rank 0, 3.0 on rank 2",
    "reduction": "ValueError: ranks differ in reduction: mean on rank 0, sum on rank 2",
    "past": r"ValueError: ranks differ in past: None on rank 0, top-k torch.float32 \[9, ...\] of 13 classes on rank 2",
    "labels": "ValueError: target must be the same on every rank of the process group, got different values",
    "past logits": r"ValueError: ranks differ in past: logits in \[2\] rows on rank 0, logits in \[0\] rows on rank 2",
    "class weights": "ValueError: weight must be the same on every rank of the process group, got different values",
    "filled": "ValueError: soft_targets must be the same on every rank of the process group, got different values",
    "past rows": "ValueError: past must be the same on every rank of the process group, got different values",
    "listed": "ValueError: soft_targets must be the same on every rank of the process group, got different values",
    "softened": r"ValueError: ranks differ in soft_targets: logits .* at 3.0 on rank 0, logits .* at 4.0 on rank 2",
    "columns": "RuntimeError: rank 2 failed with ValueError: soft_targets must have the columns of this rank's 4 .*",
    "one label": r"RuntimeError: rank 2 failed with IndexError: target\[2\] = 22 is out of range \[0, 13\) .*",
    "statistics": "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    "losses": "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    "arguments": "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    "every label": r"IndexError: target\[2\] = 22 is out of range \[0, 13\) and not -100",
    "weight": r"ValueError: weight must have shape \[C\], of all classes, with C = 13 \(from the .* ranks\), got \[4\]",
    "alpha": r"ValueError: alpha must be given with soft_targets: their share, in \[0, 1\], got None",
    "soft_targets": r"ValueError: soft_targets must have a row for each class with C = 13 .*, got 4 rows",
    "top-k": r"ValueError: top-k rows of soft_targets must be of all classes with C = 13 .*, got 9",
    "learned": "ValueError: weight must not require grad: over a process group toast_loss gives it no gradient",
    "backend": 'ValueError: toast_loss over a process group has backend "auto" alone, got .cpu.',
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_wrong_on_a_rank_is_an_error_on_all(found, what):
    for rank in range(4):
        assert re.fullmatch(SAID[what], found[rank]["said"][what])


def test_after_failures_the_ranks_are_still_in_step(found):
    for rank in range(4):
        assert found[rank]["said"]["rows that take no part"] is None
        assert found[rank]["said"]["nothing"] is None


def test_a_rank_that_does_not_come_is_an_error_within_the_timeout(found):
    for rank in (0, 1, 3):
        assert found[rank]["alone"].startswith(
            "RuntimeError: a rank failed or did not come: toast_loss is collective, every rank"
        )
    assert "alone" not in found[LOST]
