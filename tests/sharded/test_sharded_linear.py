"""linear_toast_loss of a head whose classes lie over ranks, on real ranks, against plain PyTorch in one process."""

import re
from unittest import mock

import pytest
import ranks
import torch
import torch.distributed as dist
from blended_kl_cases import Case
from linear_cases import assert_as_good, differentiated, head, naive
from sharded_cases import slice_of, slice_of_table
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.functional import linear

from toast_kernels import linear_toast_loss, toast_loss
from toast_kernels.sharded import linear as sharded_linear

CLASSES, ROWS, CHUNK = 37, 19, 5
GROUPS = {"two": [0, 2], "three": [0, 1, 2]}  # of the three processes
WIDTHS = {"two": [36, 1], "three": [20, 0, 17]}
LOST = 2
CASES = {
    "labels": Case(ROWS, CLASSES, weighted=True),
    "smoothing": Case(ROWS, CLASSES, label_smoothing=0.2, reduction="none"),
    "probabilities": Case(ROWS, CLASSES, target="probabilities", reduction="sum"),
    "pairs": Case(ROWS, CLASSES, soft="top-k", target="mixup", past="dense"),
    "past logits": Case(ROWS, CLASSES, soft="dense", past="logits", weighted=True),
    "float64": Case(ROWS, CLASSES, torch.float64, soft="logits", past="top-k"),
    "bfloat16": Case(ROWS, CLASSES, torch.bfloat16, soft="dense", past="logits"),
    "float16": Case(ROWS, CLASSES, torch.float16, past="logits", label_smoothing=0.1),
    "no rows": Case(0, CLASSES),
}


def chunk_bytes(widths, dtype):
    return 2 * CHUNK * max(widths) * dtype.itemsize


def sharded(case, own, widths, group):
    """[loss, gradients], stats."""
    _, target, keywords = case.arguments()
    if case.target == "probabilities":
        target = target[:, own]
    keywords = {key: slice_of_table(x, own) for key, x in keywords.items()}
    x, weight, bias = head(case)

    def loss_of(x, weight, bias):
        return linear_toast_loss(
            x, weight, target, bias, chunk_bytes=chunk_bytes(widths, case.dtype), return_stats=True,
            process_group=group, **keywords,
        )  # fmt: skip

    return differentiated(loss_of, (x, weight[own], bias[own]), case.upstream())


def every_case(rank, size):
    """All that is looked at below."""
    torch.set_num_threads(1)
    groups = {name: dist.new_group(members) for name, members in GROUPS.items()}
    found = {}
    for name, members in GROUPS.items():
        if rank in members:
            own = slice_of(WIDTHS[name], members.index(rank))
            for case in CASES.values():
                found[name, case] = sharded(case, own, WIDTHS[name], groups[name])
    found["shift"] = shifted(slice_of(WIDTHS["three"], rank), groups["three"])
    found["frozen"] = frozen(slice_of(WIDTHS["three"], rank), groups["three"])
    found["DTensor"], placements = with_dtensors(rank)
    found["said"] = placements | failures(rank, slice_of(WIDTHS["three"], rank), groups["three"])
    return found


SEQUENCES = torch.arange(ROWS - 1).reshape(2, 9) % CLASSES


def shifted(own, group):
    x, weight, bias = head(CASES["labels"])
    x = x[:-1].reshape(2, 9, -1)
    return linear_toast_loss(
        x, weight[own], SEQUENCES, bias[own], shift=True, reduction="none", return_stats=True, process_group=group
    )


def frozen(own, group):
    """The features' gradient alone, twice of one graph, and under no_grad."""
    x, weight, _ = head(CASES["labels"])
    x.requires_grad_()
    loss = linear_toast_loss(x, weight[own], SEQUENCES.new_zeros(ROWS), process_group=group)
    twice = [torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*twice)
    with torch.no_grad():
        assert not linear_toast_loss(x, weight[own], SEQUENCES.new_zeros(ROWS), process_group=group).requires_grad
    return loss.detach(), twice[0]


def with_dtensors(rank):
    mesh = init_device_mesh("cpu", (3,))
    x, weight, bias = head(CASES["labels"])
    x.requires_grad_()
    weight, bias = (distribute_tensor(y, mesh, [Shard(0)]).requires_grad_() for y in (weight, bias))
    loss = linear_toast_loss(x, weight, SEQUENCES.new_zeros(ROWS), bias)
    loss.backward()
    found = loss.detach(), x.grad, weight.grad.full_tensor(), bias.grad.full_tensor()
    of_weight, of_input = Replicate() if rank == LOST else Shard(0), Shard(0) if rank == LOST else Replicate()
    other_weight = DTensor.from_local(weight.detach().to_local(), mesh, [of_weight], run_check=False)
    other_input = DTensor.from_local(x.detach(), mesh, [of_input], run_check=False)
    labels, group = SEQUENCES.new_zeros(ROWS), mesh.get_group() if rank == LOST else None
    return found, {
        "placement of weight": error_of(lambda: linear_toast_loss(x, other_weight, labels)),
        "placement of input": error_of(lambda: linear_toast_loss(other_input, weight, labels)),
        "two groups": error_of(lambda: linear_toast_loss(x, weight, labels, process_group=group)),
    }


def failures(rank, own, group):
    bad = rank == LOST

    def full(*_, **__):
        raise MemoryError(f"no room on {rank}")

    def said(*, labels=1, learns=True, head_learns=False, **keywords):
        x, weight, _ = head(CASES["labels"])
        x, weight = x.requires_grad_(learns), weight[own].requires_grad_(head_learns)
        keywords = {"chunk_bytes": chunk_bytes(WIDTHS["three"], x.dtype)} | keywords
        return error_of(
            lambda: linear_toast_loss(x, weight, torch.arange(ROWS) * labels, process_group=group, **keywords)
        )

    def with_full(module, name):
        with mock.patch.object(module, name, full if bad else getattr(module, name)):
            return said()

    return {
        "chunk": with_full(sharded_linear, "differentiate"),
        "coefficients": with_full(sharded_linear, "coefficients"),
        "buffers": with_full(torch, "empty_like"),
        **in_backward(own, group, full if bad else None),
        "head learns": said(learns=False, head_learns=bad),
        "label": said(labels=40 if bad else 1),
        "learns": said(learns=not bad),
        "chunk_bytes": said(chunk_bytes=1000 + bad),
        "too small": said(chunk_bytes=79),
        "top-k": said(return_top_k=2),
        "nothing": said(),
    }


def in_backward(own, group, full):
    """What is said where a rank is `full` in the backward pass, and the error or gradient of one after that."""
    x, weight, _ = head(CASES["labels"])
    x.requires_grad_()
    weight = weight[own].requires_grad_()
    loss = linear_toast_loss(x, weight, torch.arange(ROWS), process_group=group, reduction="none").sum()
    found = {}
    for name in ("kept", "arrived", "differentiate"):
        with mock.patch.object(sharded_linear, name, full or getattr(sharded_linear, name)):
            found[f"backward, {name}"] = error_of(lambda: loss.backward(retain_graph=True))
        assert x.grad is None
        assert weight.grad is None
    return found | {"backward again": error_of(loss.backward)}


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def found():
    return ranks.run(__name__, "every_case", 3)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_ranks_have_the_loss_and_gradients_of_one_process(found, group, case):
    (loss, of_input, *_), (stats,) = found[GROUPS[group][0]][group, case]
    of_head = []
    for rank in GROUPS[group]:
        (own_loss, own_of_input, *own_of_head), (own_stats,) = found[rank][group, case]
        of_head.append(own_of_head)
        for own, first in zip((own_loss, own_of_input, *own_stats), (loss, of_input, *stats), strict=True):
            assert torch.equal(own.nan_to_num(7), first.nan_to_num(7))
    found = [loss, of_input, *(torch.cat(parts) for parts in zip(*of_head, strict=True))]
    plain, truth = naive(case), naive(case, torch.float64)
    if not case.rows:
        torch.testing.assert_close(found, plain, equal_nan=True)
        return
    large = case.temperature**2 if case.past else 1.0
    for name, *values in zip(("loss", "input", "weight", "bias"), found, plain, truth, strict=True):
        assert_as_good(*values, case.dtype, large=large, what=f"{name} of {case}")


def test_language_models(found):
    x, weight, bias = head(CASES["labels"])
    z = linear(x[:-1].reshape(2, 9, -1), weight, bias)
    labels = torch.cat([SEQUENCES[:, 1:], SEQUENCES.new_full((2, 1), -100)], 1)
    loss, stats = toast_loss(z.movedim(-1, 1), labels, reduction="none", return_stats=True, backend="reference")
    for rank in range(3):
        torch.testing.assert_close(found[rank]["shift"], (loss, stats))


def test_a_frozen_head_and_dtensors(found):
    x, weight, bias = (y.requires_grad_() for y in head(CASES["labels"]))
    labels = SEQUENCES.new_zeros(ROWS)
    for name, arguments in (("frozen", (x, weight)), ("DTensor", (x, weight, bias))):
        loss = toast_loss(linear(*arguments), labels, backend="reference")
        gradients = torch.autograd.grad(loss, arguments[:1] if name == "frozen" else arguments)
        for rank in range(3):
            torch.testing.assert_close(found[rank][name], (loss.detach(), *gradients))


SAID = {
    **dict.fromkeys(
        ("chunk", "coefficients", "buffers", "backward, kept", "backward, arrived", "backward, differentiate"),
        "RuntimeError: rank 2 failed with MemoryError: no room on 2",
    ),
    "head learns": "ValueError: ranks differ in whether anything requires grad: False on rank 0, True on rank 2",
    "placement of weight": "RuntimeError: rank 2 failed with ValueError: linear_weight must be .*, 0, got .*",
    "placement of input": "RuntimeError: rank 2 failed with ValueError: input must be a replicated .*, got .*",
    "two groups": "RuntimeError: rank 2 failed with ValueError: process_group must be None where linear_weight is .*",
    "label": r"RuntimeError: rank 2 failed with IndexError: target\[1\] = 40 is out of range \[0, 37\) and not -100",
    "learns": "ValueError: ranks differ in whether input requires grad: True on rank 0, False on rank 2",
    "chunk_bytes": "ValueError: ranks differ in chunk_bytes: 1000 on rank 0, 1001 on rank 2",
    "too small": "ValueError: chunk_bytes must be at least 160, what one row of 20 logits needs, got 79",
    "top-k": "ValueError: return_top_k must be None over a process group, got 2",
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_wrong_on_a_rank_is_an_error_on_all(found, what):
    for rank in range(3):
        assert re.fullmatch(SAID[what], found[rank]["said"][what])


def test_after_failures_the_ranks_are_still_in_step(found):
    for rank in range(3):
        assert found[rank]["said"]["backward again"] is None
        assert found[rank]["said"]["nothing"] is None
