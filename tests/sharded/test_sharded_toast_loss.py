"""toast_loss of logits whose classes lie over ranks, on real ranks, against one process."""

import dataclasses
import re
import time
from unittest import mock

import pytest
import ranks
import torch
import torch.distributed as dist
from blended_kl_cases import Case, assert_runs_as_good, in_truth, run
from sharded_cases import slice_of, slice_of_table
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

from toast_kernels import SoftTargets, toast_loss
from toast_kernels.sharded import loss as sharded_loss
from toast_kernels.sharded import rows as sharded_rows

CLASSES, ROWS = 13, 9
GROUPS = {"two": [1, 3], "three": [0, 2, 3], "four": [0, 1, 2, 3]}  # of the four processes
WIDTHS = {"two": [3, 10], "three": [6, 0, 7], "four": [4, 4, 4, 1]}  # of their ranks' slices
LOST = 2  # the rank that fails, or does not come
CASES = {
    "labels": Case(ROWS, CLASSES),
    "labels, weights": Case(ROWS, CLASSES, weighted=True, reduction="sum"),
    "smoothing": Case(ROWS, CLASSES, label_smoothing=0.2),
    "smoothing, weights": Case(ROWS, CLASSES, weighted=True, label_smoothing=0.2, reduction="none"),
    "probabilities": Case(ROWS, CLASSES, target="probabilities", weighted=True, label_smoothing=0.1),
    "pairs": Case(ROWS, CLASSES, soft="dense", target="mixup", weighted=True, label_smoothing=0.1),
    "pairs of logits": Case(ROWS, CLASSES, soft="logits", target="mixup", past="dense"),
    "past logits": Case(ROWS, CLASSES, soft="dense", past="logits", past_weight=0.7),
    "past logits at 1": Case(ROWS, CLASSES, past="logits", temperature=1.0, reduction="none"),
    "past of bfloat16": Case(ROWS, CLASSES, soft="bfloat16", past="bfloat16", reduction="sum"),
    "top-k": Case(ROWS, CLASSES, soft="top-k", past="top-k", label_smoothing=0.1),
    "top-k pairs": Case(ROWS, CLASSES, soft="top-k", past="logits", target="mixup", weighted=True),
    "float64": Case(ROWS, CLASSES, torch.float64, soft="top-k", past="dense"),
    "bfloat16": Case(ROWS, CLASSES, torch.bfloat16, soft="logits", past="logits", label_smoothing=0.1),
    "float16": Case(ROWS, CLASSES, torch.float16, soft="dense", past="logits"),
    "no rows": Case(0, CLASSES, soft="dense", past="logits"),
    "one row": Case(1, CLASSES, past="top-k"),
}
SPECIAL = (
    "one rank's labels",
    "masked",
    "a masked slice",
    "large",
    "NaN",
    "ignored NaN",
    "all ignored",
    "zero weights",
)


def special(name):
    """logits, target and keywords that no Case has."""
    case = CASES["top-k"] if name in ("masked", "a masked slice") else CASES["labels"]
    logits, target, keywords = case.arguments()
    if name == "one rank's labels":
        target = torch.where(target < 0, target, CLASSES - 1)
    elif name == "masked":
        logits[
            torch.arange(ROWS)[:, None], (target.clamp(min=0)[:, None] + torch.tensor([1, 5, 6])) % CLASSES
        ] = -torch.inf
        keywords |= {"label_smoothing": 0.0, "alpha": 0.0}
        keywords["past"] = SoftTargets.from_logits(logits[:4].clone(), 3.0, top_k=3)
        keywords["past_index"] = torch.arange(ROWS).where(torch.arange(ROWS) < 4, -1)
    elif name == "a masked slice":
        target = torch.where(target < 0, target, target % 6 + 7)
        logits[:, :6] = -torch.inf
        keywords = {"past": logits.clone(), "past_weight": 2.0}
    elif name == "large":
        logits += 1e4
        keywords = {"past": logits.flip(0), "temperature": 2.0}
    elif name == "NaN":
        logits[4, 2], logits[6, 12] = torch.nan, torch.inf
        keywords["reduction"] = "none"
    elif name == "ignored NaN":
        logits[1], logits[2, 0] = torch.nan, -torch.inf
        target[2] = 4
    elif name == "all ignored":
        target = torch.full_like(target, -100)
    elif name == "zero weights":
        keywords |= {"weight": torch.zeros(CLASSES), "label_smoothing": 0.1}
    return logits, target, keywords


def of_slice(own, logits, target, keywords):
    """What a rank is given of these."""
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        target = target[:, own]
    return logits[:, own], target, {key: slice_of_table(x, own) for key, x in keywords.items()}


def sharded(own, group, logits, target, keywords, upstream):
    z, target, keywords = of_slice(own, logits, target, keywords)
    z = z.detach().clone().requires_grad_()
    loss, stats = toast_loss(z, target, return_stats=True, process_group=group, **keywords)
    loss.backward(upstream.to(loss.dtype))
    return loss.detach(), z.grad, stats


def every_case(rank, size):
    """All that is looked at below: to start processes takes longest."""
    torch.set_num_threads(1)
    groups = {name: dist.new_group(members) for name, members in GROUPS.items()}
    hasty = dist.new_group(timeout=ranks.seconds(1))
    found = {}
    with mock.patch.dict(sharded_loss.CHUNK, cpu=20):  # of two rows to no more than five
        for name, members in GROUPS.items():
            if rank in members:
                own = slice_of(WIDTHS[name], members.index(rank))
                for case in CASES.values():
                    found[name, case] = sharded(own, groups[name], *case.arguments(), case.upstream())
                for what in SPECIAL:
                    found[name, what] = sharded(own, groups[name], *special(what), upstream_of(what))
    found["shapes"] = shapes(slice_of(WIDTHS["four"], rank), groups["four"])
    found["DTensor"] = with_dtensors(rank)
    found["said"] = failures(rank, groups["four"])
    if rank != LOST:
        found["alone"] = what_is_said(rank, hasty)
    return found


def upstream_of(what):
    rows = (ROWS,) if what == "NaN" else ()
    return torch.linspace(0.5, 1.5, ROWS)[: ROWS if rows else 1].reshape(rows)


IMAGE = torch.randn(2, CLASSES, 3, 2, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(12).reshape(2, 3, 2)


def shapes(own, group):
    """Of images and of one row: loss and gradient."""
    found = []
    for logits, labels, classes in ((IMAGE, LABELS, 1), (IMAGE[0, :, 0, 0], LABELS[0, 0, 0], 0)):
        z = logits.narrow(classes, own.start, own.stop - own.start).clone().requires_grad_()
        loss, stats = toast_loss(
            z, labels, past=z.detach() * 2, reduction="none", return_stats=True, process_group=group
        )
        twice = [torch.autograd.grad(loss.sum(), z, retain_graph=True)[0] for _ in range(2)]
        found.append((loss.detach(), twice[0], stats))
        assert torch.equal(*twice)
    return found


def with_dtensors(rank):
    """Of 13 and of 5 classes, of which the last rank has 1 and none; and what is said of other placements."""
    mesh, found = init_device_mesh("cpu", (4,)), {}
    for classes in (CLASSES, 5):
        z = distribute_tensor(IMAGE[0, :classes].flatten(1).T.contiguous(), mesh, [Shard(1)]).requires_grad_()
        past = distribute_tensor(2 * IMAGE[0, :classes].flatten(1).T.contiguous(), mesh, [Shard(-1)])
        labels = distribute_tensor(LABELS[0].flatten() % classes, mesh, [Replicate()])
        loss = toast_loss(z, labels, past=past)
        loss.backward()
        assert z.grad.placements == (Shard(1),)
        found[classes] = loss.detach(), z.grad.full_tensor()
    x = IMAGE[0].flatten(1).T.div(4).requires_grad_()
    z = DTensor.from_local(x, mesh, [Partial()]).redistribute(placements=[Shard(1)], async_op=True)
    labels = distribute_tensor(LABELS[0].flatten(), mesh, [Shard(0)]).redistribute(
        placements=[Replicate()], async_op=True
    )
    loss = toast_loss(z, labels)
    found["under way"] = loss.detach(), torch.autograd.grad(loss, x)[0]
    plane = init_device_mesh("cpu", (2, 2))
    whole = torch.zeros(4, 8)
    for name, of, placements in (
        ("rows", mesh, [Shard(0)]),
        ("replicated", mesh, [Replicate()]),
        ("plane", plane, [Shard(0), Shard(1)]),
    ):
        z = distribute_tensor(whole, of, placements)
        found[name] = error_of(lambda z=z: toast_loss(z, torch.arange(4)))
    z = distribute_tensor(whole, mesh, [Shard(1)])
    found["two groups"] = error_of(lambda: toast_loss(z, torch.arange(4), process_group="world"))
    labels = distribute_tensor(torch.arange(4), mesh, [Shard(0)])
    found["labels"] = error_of(lambda: toast_loss(z, labels))
    z = DTensor.from_local(z.to_local(), mesh, [Replicate() if rank == LOST else Shard(1)], run_check=False)
    found["one rank's"] = error_of(lambda: toast_loss(z, torch.arange(4)))
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
        "columns": what_is_said(rank, group, soft_targets=SoftTargets.empty(CLASSES, 3 if bad else width)),
        "one label": what_is_said(rank, group, target=labels * (11 if bad else 1)),
        "statistics": with_full(sharded_rows, "softmax_statistics"),
        "losses": with_full(sharded_loss, "differentiate"),
        "arguments": with_full(sharded_loss, "to_problem"),
        "every label": what_is_said(rank, group, target=labels * 11),
        "weight": what_is_said(rank, group, weight=torch.ones(4)),
        "soft_targets": what_is_said(rank, group, soft_targets=SoftTargets.empty(4, width)),
        "top-k": what_is_said(rank, group, past=table[:ROWS], soft_targets=wrong),
        "learned": what_is_said(rank, group, weight=torch.ones(CLASSES, requires_grad=True)),
        "backend": what_is_said(rank, group, backend="cpu"),
        "nothing": what_is_said(rank, group),
    }  # fmt: skip


def what_is_said(rank, group, *, rows=ROWS, dtype=torch.float32, target=None, **keywords):
    logits = torch.zeros(rows, WIDTHS["four"][rank], dtype=dtype, requires_grad=True)
    target = torch.arange(rows) if target is None else target
    return error_of(lambda: toast_loss(logits, target, process_group=group, **keywords).backward())


def error_of(call):
    started = time.perf_counter()
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        assert time.perf_counter() - started < 20


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 4)


def of_all(found, group, what):
    """Loss, gradient and stats, of all ranks: the first and the last of them must be the same, bit for bit."""
    losses, gradients, stats = zip(*(found[rank][group, what] for rank in GROUPS[group]), strict=True)
    for others in ([loss[None] for loss in losses], *zip(*stats, strict=True)):
        assert all(torch.equal(x.nan_to_num(7), others[0].nan_to_num(7)) for x in others)
    return losses[0], torch.cat(gradients, 1), stats[0]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_ranks_have_the_loss_of_one_process_and_their_slice_of_its_gradient(found, group, case):
    logits, target, keywords = case.arguments()
    naive = run(logits, target, case.upstream(), keywords, "reference")
    assert_runs_as_good(of_all(found, group, case), naive, in_truth(logits, target, case.upstream(), keywords), case)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("what", SPECIAL)
def test_special_values(found, group, what):
    logits, target, keywords = special(what)
    loss, gradient, stats = of_all(found, group, what)
    wanted = run(logits.double(), target, upstream_of(what), keywords, "reference")
    tolerance = {"rtol": 1e-5, "atol": 1e-2 if what == "large" else 1e-5, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(loss, wanted[0], **tolerance)
    torch.testing.assert_close(gradient, wanted[1], **tolerance | {"atol": 2e-4 if what == "large" else 1e-6})
    wanted[2].logsumexp[wanted[2].logsumexp == torch.inf] = torch.nan  # as kernels have it
    torch.testing.assert_close(tuple(stats), tuple(wanted[2]), **tolerance)


@pytest.mark.parametrize("which", [0, 1], ids=["images", "one row"])
def test_shapes(found, which):
    logits, labels = ((IMAGE, LABELS), (IMAGE[0, :, 0, 0], LABELS[0, 0, 0]))[which]
    z = logits.clone().requires_grad_()
    loss, stats = toast_loss(z, labels, past=2 * logits, reduction="none", return_stats=True, backend="reference")
    loss.sum().backward()
    for rank in range(4):
        own_loss, _, own_stats = found[rank]["shapes"][which]
        torch.testing.assert_close((own_loss, *own_stats), (loss.detach(), *stats))
    gradient = torch.cat([found[rank]["shapes"][which][1] for rank in range(4)], 1 - which)
    torch.testing.assert_close(gradient, z.grad)


@pytest.mark.parametrize("classes", [CLASSES, 5])
def test_dtensors_sharded_on_the_class_dimension(found, classes):
    z = IMAGE[0, :classes].flatten(1).T.clone().requires_grad_()
    loss = toast_loss(z, LABELS[0].flatten() % classes, past=2 * z.detach(), backend="reference")
    loss.backward()
    for rank in range(4):
        torch.testing.assert_close(found[rank]["DTensor"][classes], (loss.detach(), z.grad))


def test_dtensors_that_are_still_under_way(found):
    z = IMAGE[0].flatten(1).T.clone().requires_grad_()
    loss = toast_loss(z, LABELS[0].flatten(), backend="reference")
    loss.backward()
    for rank in range(4):
        torch.testing.assert_close(found[rank]["DTensor"]["under way"], (loss.detach(), z.grad))


OTHER_DTENSORS = {
    "rows": r"logits must be a DTensor sharded on its class dimension, 1, got \(Shard\(dim=0\),\)",
    "replicated": r"logits must be a DTensor sharded on its class dimension, 1, got \(Replicate\(\),\)",
    "plane": "logits must be a DTensor on a mesh of one dimension, over which its classes lie, got one of 2; .*",
    "two groups": "process_group must be None where logits is a DTensor: it is that of the mesh",
    "labels": r"target must be a replicated DTensor or a tensor, got \(Shard\(dim=0\),\)",
}
ONE_RANKS = r"RuntimeError: rank 2 failed with ValueError: logits must be .*, 1, got \(Replicate\(\),\)"


@pytest.mark.parametrize("what", OTHER_DTENSORS)
def test_other_placements_are_an_error(found, what):
    for rank in range(4):
        assert re.fullmatch(f"ValueError: {OTHER_DTENSORS[what]}", found[rank]["DTensor"][what])
        assert re.fullmatch(ONE_RANKS, found[rank]["DTensor"]["one rank's"])


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
            "RuntimeError: a rank failed or did not come: toast_loss is collective over the process group"
        )
    assert "alone" not in found[LOST]
