"""Operands of kinds that PyTorch's own losses take: uint8 labels, and views whose memory holds the negative."""

import functools

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import BACKENDS, device_of, normal, toast_loss

from toast_kernels import (
    HardReplay,
    MedoidBank,
    SoftTargets,
    ToastLoss,
    backends,
    class_medoids,
    functional,
    linear_toast_loss,
)

LOGITS, LABELS = normal(6, 5, seed=1).float(), torch.tensor([0, 4, 2, 255, 1, 2])
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def negated(tensor):
    """Equal to tensor, with the opposite in memory."""
    view = (-tensor)._neg_view()  # as x.conj().imag is, but contiguous
    assert view.is_neg()
    assert torch.equal(view, tensor)
    return view


@each_backend
def test_uint8_labels_as_in_cross_entropy(backend):
    y = LABELS.byte()
    for labels, ignore_index in ((y, 255), (y.where(y < 5, 3).byte(), -100)):
        expected = F.cross_entropy(LOGITS, labels, ignore_index=ignore_index)
        torch.testing.assert_close(toast_loss(LOGITS, labels, ignore_index=ignore_index, backend=backend), expected)
        triple = toast_loss(LOGITS, (labels, labels, 0.25), ignore_index=ignore_index, backend=backend)
        torch.testing.assert_close(triple, expected)


@pytest.mark.parametrize("backend", backends.KERNELS["medoids"])
def test_uint8_labels_of_medoids(backend):
    device = device_of(backend)
    arguments = LOGITS.to(device), LABELS.to(device), 5
    expected = class_medoids(*arguments, ignore_index=255)
    assert torch.equal(class_medoids(arguments[0], arguments[1].byte(), 5, ignore_index=255, backend=backend), expected)


@pytest.mark.parametrize("correct_only", [False, True])
@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "triples"])
def test_uint8_labels_in_the_modules(correct_only, mixed):
    """-100 is no uint8: an ignored row must not become one of class 156."""
    results = []
    for labels in (LABELS.where(LABELS < 5, 3), LABELS.where(LABELS < 5, 3).byte()):
        criterion, replay = ToastLoss(5, correct_only=correct_only), HardReplay(0.5)
        for epoch in range(2):
            criterion.set_epoch(epoch, 2)
            x, y, past = replay.extend(LOGITS, (labels, labels.flip(0), 0.95) if mixed else labels)
            loss, stats = criterion(x.clone().requires_grad_(), y, past, return_stats=True)
            replay.keep(x, y, x, stats.cross_entropy)
        bank = MedoidBank(5, correct_only=correct_only)
        bank.update(LOGITS, labels)
        results.append((loss, criterion.soft_targets.filled, criterion.soft_targets.values, bank.pool.labels))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


OPERANDS = {
    "logits": lambda view: dict(logits=view(LOGITS)),
    "weight": lambda view: dict(weight=view(torch.rand(5, generator=torch.Generator().manual_seed(2)))),
    "lam": lambda view: dict(target=(torch.arange(6) % 5, torch.arange(6) % 3, view(torch.linspace(0, 1, 6)))),
    "probabilities": lambda view: dict(target=view(LOGITS.softmax(1))),
    "past logits": lambda view: dict(past=view(LOGITS + 1)),
    "past table": lambda view: dict(past=SoftTargets.view_logits(view(LOGITS.flip(0)), 3.0)),
    "soft targets": lambda view: dict(soft_targets=SoftTargets.view_logits(view(LOGITS[:5]), 2.0), alpha=0.5),
    "alpha": lambda view: dict(soft_targets=SoftTargets.from_logits(LOGITS[:5]), alpha=view(torch.tensor(0.5))),
}


@each_backend
@pytest.mark.parametrize("operand", OPERANDS)
def test_negated_operands(operand, backend):
    """The smallest: lam = x.conj().imag was read as -lam on the CPU."""
    plain, view = (OPERANDS[operand](kind) for kind in (torch.clone, negated))
    call = dict(logits=LOGITS, target=torch.arange(6) % 5, reduction="none")
    one, two = (call | arguments for arguments in (plain, view))
    for _ in range(2):  # the plan of plain operands is not that of negated ones
        found, expected = (
            toast_loss(arguments.pop("logits"), arguments.pop("target"), backend=backend, **arguments)
            for arguments in (dict(two), dict(one))
        )
        assert torch.equal(found, expected)


@each_backend
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("linear", [False, True], ids=["logits", "linear"])
def test_negated_upstream(linear, reduction, backend):
    device = device_of(backend)
    gradients = []
    function = functional.toast_loss
    if linear:
        function = functools.partial(linear_toast_loss, linear_weight=torch.eye(LOGITS.shape[1], device=device))
    for view in (torch.clone, negated):
        leaf = LOGITS.to(device, copy=True).requires_grad_()
        loss = function(leaf, target=(torch.arange(6) % 5).to(device), reduction=reduction, backend=backend)
        loss.backward(view(torch.full(loss.shape, 0.75, device=device)))
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", backends.KERNELS["medoids"])
def test_negated_rows_of_medoids(backend):
    x, labels = normal(40, 5, seed=3).float().to(device_of(backend)), (torch.arange(40) % 3).to(device_of(backend))
    x += 100 * torch.rand(40, 1, generator=torch.Generator().manual_seed(4)).to(x) ** 9  # not symmetric about 0
    found = class_medoids(negated(x), labels, 3, metric="jeffreys", backend=backend)
    assert torch.equal(found, class_medoids(x, labels, 3, metric="jeffreys", backend=backend))


@pytest.mark.usefixtures("kept_rows_backend")
def test_negated_rows_are_carried_with_their_sign():
    replay = HardReplay(0.5)
    x, y, _ = replay.extend(LOGITS, torch.arange(6) % 5)
    replay.keep(negated(x), y, negated(x), negated(torch.arange(9.0) - 4))
    x, _, past = replay.extend(LOGITS, torch.arange(6) % 5)
    assert torch.equal(x[6:], LOGITS[[5, 4, 3]])
    assert torch.equal(past.targets.values, LOGITS[[5, 4, 3]])
