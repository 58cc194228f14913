"""ToastLoss with past predictions: HardReplay's rows and PredictionMemory's."""

import pytest
import torch
import torch.nn.functional as F
from toast_loss_cases import CLASSES, equal, exact, make_rows, medoid_targets, plain_loss

from toast_kernels import HardReplay, PredictionMemory, ToastLoss

LOGITS, LABELS = make_rows(8)


def test_past_predictions_are_distilled_and_replays_are_pooled_once():
    criterion = exact(temperature=2.0, past_weight=0.5)
    replay = HardReplay(0.5, temperature=2.0)
    first, labels = make_rows(seed=1)
    soft, medoids = medoid_targets(first, labels)
    criterion.set_epoch(0, 2)
    past = None
    for start in range(0, 40, 8):
        rows = torch.arange(start, start + 8)
        rows, y, past = replay.extend(rows, labels[rows])
        logits = first[rows].clone()
        logits[8:] += 100.0 * torch.arange(CLASSES)  # replays get other predictions: none of these may be pooled
        loss, stats = criterion(logits, y, past, return_stats=True)
        if past.targets is not None:
            index = past.index[8:]
            expected = plain_loss(logits, y, soft, 0.0, (slice(8, None), past.targets.dense()[index]), 2.0, 0.5)
            equal(loss, expected)
        replay.keep(rows, y, logits, stats.cross_entropy)
    assert past.targets is not None
    assert criterion.bank.num_rows == 40
    criterion.set_epoch(1, 2)
    assert criterion.bank.medoids.tolist() == medoids
    torch.testing.assert_close(criterion.soft_targets.dense(), soft)


def test_prediction_memory_pools_every_row():
    criterion, memory = exact(alpha=0.5), PredictionMemory(40, CLASSES, dtype=torch.float64)
    first, labels = make_rows(seed=1)
    sample = torch.arange(40)
    criterion.set_epoch(0, 2)
    equal(criterion(first, labels, memory.past(sample)), F.cross_entropy(first, labels))
    memory.keep(sample, first)
    criterion.set_epoch(1, 2)

    logits, _ = make_rows(seed=2)
    soft, _ = medoid_targets(first, labels)
    expected = plain_loss(logits, labels, soft, 0.5, (sample, (first / 3).softmax(1)))
    equal(criterion(logits, labels, memory.past(sample)), expected)
    assert criterion.bank.num_rows == 40


def test_past_at_another_temperature_is_refused():
    replay = HardReplay(temperature=2.0)
    x, y, _ = replay.extend(LOGITS, LABELS)
    replay.keep(x, y, x)
    x, y, past = replay.extend(LOGITS, LABELS)
    with pytest.raises(ValueError, match=r"softened at temperature 2.0, but temperature is 3.0"):
        ToastLoss(CLASSES)(x, y, past)


def test_empty_slots_are_in_no_mean_and_not_pooled():
    """A first step with replayed slots has the loss and the pool of its new rows alone."""
    logits, labels = make_rows(8)
    replay, criterion = HardReplay(1.0), exact()
    criterion.set_epoch(0, 2)
    x, y, past = replay.extend(logits, labels)
    leaf = x.clone().requires_grad_()
    loss = criterion(leaf, y, past)
    equal(loss, F.cross_entropy(logits, labels))
    loss.backward()
    assert not leaf.grad[8:].any()
    assert criterion.bank.num_rows == 8


@pytest.mark.parametrize("steps", [1, 2])
def test_a_past_with_another_ignore_index_is_refused(steps):
    replay = HardReplay(ignore_index=-1)
    for _ in range(steps):
        x, y, past = replay.extend(LOGITS, LABELS)
        replay.keep(x, y, x)
    message = r"with this loss's ignore_index = -100, got ignore_index = -1: its empty rows"
    with pytest.raises(ValueError, match=message):
        ToastLoss(CLASSES)(x, y, past)
    ToastLoss(CLASSES, ignore_index=-1)(x, y, past)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_keep_writes_over_the_past_and_a_backward_that_needs_it_notices(reduction):
    criterion, replay = ToastLoss(CLASSES, reduction=reduction), HardReplay()
    criterion.set_epoch(0, 2)
    for _ in range(2):
        x, y, past = replay.extend(LOGITS, LABELS)
        logits = (x * 1.5).requires_grad_()
        loss = criterion(logits, y, past).sum()
        if past.targets is None:
            replay.keep(x, y, logits)
    expected = torch.autograd.grad(criterion(logits, y, past).sum(), logits)[0]
    replay.keep(x, y, logits)
    if reduction == "none":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()
        assert torch.equal(logits.grad, expected)
