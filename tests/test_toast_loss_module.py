"""ToastLoss: an epoch's pool becomes the next epoch's soft targets; checked against plain float64 PyTorch and SciPy."""

import io
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import nn
from torch.utils.checkpoint import checkpoint

from toast_kernels import HardReplay, PredictionMemory, SoftTargets, ToastLoss

CLASSES = 4


def make_rows(rows=40, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(CLASSES, (rows,), generator=generator)


def medoid_targets(logits, labels, temperature=1.0):
    """[C, C] and the medoids' positions, by brute force."""
    logits, medoids = logits.detach(), []
    for c in range(CLASSES):
        rows = np.flatnonzero(labels.numpy() == c)
        values = logits[rows].numpy()
        medoids.append(int(rows[cdist(values, values).sum(1).argmin()]))
    return (logits[medoids] / temperature).softmax(1), medoids


def plain_loss(logits, labels, soft, alpha, past=None, temperature=3.0, past_weight=1.0, **settings):
    """The mean loss in plain PyTorch; past is (rows, their past probabilities)."""
    log_probs = logits.log_softmax(1)
    hard = F.cross_entropy(logits, labels, reduction="none", **settings)
    rows = (1 - alpha) * hard - alpha * (soft[labels.clamp(min=0)] * log_probs).sum(1)
    loss = rows[labels >= 0].mean()
    if past is not None:
        index, probs = past
        kl = F.kl_div((logits[index] / temperature).log_softmax(1), probs, reduction="batchmean")
        loss = loss + past_weight * temperature**2 * kl
    return loss


def exact(**settings):
    """A loss whose pool and soft targets round nothing."""
    return ToastLoss(CLASSES, pool_dtype=torch.float64, **settings)


def equal(found, expected):  # alpha is a float32 tensor
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_the_first_epoch_is_cross_entropy():
    logits, labels = make_rows()
    criterion = exact(label_smoothing=0.1, weight=torch.arange(1.0, 5.0))
    expected = F.cross_entropy(logits, labels, torch.arange(1.0, 5.0).double(), label_smoothing=0.1)
    criterion.set_epoch(0, 10)
    equal(criterion(logits, labels), expected)
    equal(criterion(logits, labels), expected)


def test_without_set_epoch_it_stays_cross_entropy():
    logits, labels = make_rows()
    criterion = exact()
    for _ in range(3):
        equal(criterion(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}], ids=["plain", "smoothed"])
def test_the_second_epoch_blends_in_the_medoids_of_the_first(settings):
    criterion = exact(alpha=0.6, soft_temperature=2.0, **settings)
    first, labels = make_rows(seed=1)
    criterion.set_epoch(0, 3)
    for part, target in zip(first.split(9), labels.split(9), strict=True):
        criterion(part, target)
    criterion.set_epoch(1, 3)
    soft, medoids = medoid_targets(first, labels, 2.0)
    assert criterion.bank.medoids.tolist() == medoids

    logits, labels = make_rows(seed=2)
    logits.requires_grad_()
    loss = criterion(logits, labels)
    expected = plain_loss(logits, labels, soft, alpha=0.6 * 2 / 3, **settings)
    equal(loss, expected)
    equal(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_alpha_ramps_up_linearly_to_its_value_in_the_last_epoch():
    criterion = ToastLoss(CLASSES, alpha=0.8)
    ramp = []
    for epoch in range(5):
        criterion.set_epoch(epoch, 5)
        ramp.append(criterion.alpha.item())
    assert ramp == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])
    assert criterion.alpha.dim() == 0
    assert "alpha" in dict(criterion.named_buffers())


def test_a_class_without_rows_keeps_its_last_soft_target():
    criterion = exact()
    first, labels = make_rows(seed=1)
    criterion.set_epoch(0, 4)
    criterion(first[labels != 3], labels[labels != 3])
    criterion.set_epoch(1, 4)
    assert criterion.soft_targets.filled.tolist() == [True, True, True, False]
    before = criterion.soft_targets.dense().clone()

    second, labels = make_rows(seed=2)
    criterion(second[labels != 1], labels[labels != 1])
    criterion.set_epoch(2, 4)
    assert criterion.soft_targets.filled.all()
    after = criterion.soft_targets.dense()
    new, _ = medoid_targets(second, labels)
    torch.testing.assert_close(after[[0, 2, 3]], new[[0, 2, 3]])
    assert torch.equal(after[1], before[1])
    assert criterion.bank.medoids[1] == -1


def test_unfilled_classes_use_the_hard_label():
    criterion = exact()
    logits, labels = make_rows()
    criterion.set_epoch(0, 2)
    criterion(logits[labels != 3], labels[labels != 3])
    criterion.set_epoch(1, 2)
    rows = labels == 3
    equal(criterion(logits[rows], labels[rows]), F.cross_entropy(logits[rows], labels[rows]))


def test_set_epoch_twice_for_an_epoch_changes_nothing():
    criterion = exact()
    logits, labels = make_rows()
    criterion.set_epoch(0, 3)
    criterion(logits, labels)
    criterion.set_epoch(0, 3)
    assert criterion.bank.num_rows == 40
    assert criterion.soft_targets is None
    criterion.set_epoch(1, 3)
    table = criterion.soft_targets.dense().clone()
    criterion(logits[:5], labels[:5])  # half-way through epoch 1, resumed
    criterion.set_epoch(1, 3)
    assert criterion.bank.num_rows == 5
    assert torch.equal(criterion.soft_targets.dense(), table)
    assert criterion.alpha.item() == pytest.approx(0.8 * 2 / 3)


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


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode"])
def test_an_evaluation_pools_nothing_and_is_plain_cross_entropy(how):
    weight = torch.rand(CLASSES, dtype=torch.float64)
    criterion = exact(weight=weight, label_smoothing=0.1)
    logits, labels = make_rows()
    labels[3] = -100
    criterion.set_epoch(0, 2)
    criterion(logits, labels)
    criterion.set_epoch(1, 2)
    trained = criterion(logits, labels)
    criterion.bank.reset()
    past = PredictionMemory(5, CLASSES).past(torch.zeros(40, dtype=torch.int64))
    modes = {"eval": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    criterion.train(how != "eval")
    with modes[how]():
        loss = criterion(logits, labels, past)
    equal(loss, F.cross_entropy(logits, labels, weight, label_smoothing=0.1))
    assert criterion.bank.num_rows == 0
    logits.requires_grad_()
    again = criterion.train()(logits, labels)
    again.backward()
    assert torch.equal(again, trained)
    assert criterion.bank.num_rows == 40


def test_a_checkpointed_loss_pools_its_rows_once():
    criterion = exact()
    criterion.set_epoch(0, 2)
    logits, labels = make_rows()
    logits.requires_grad_()
    checkpoint(lambda z: criterion(z * 1, labels), logits, use_reentrant=False).backward()
    assert criterion.bank.num_rows == 40


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_a_loss_in_a_reentrant_checkpoint_warns_that_nothing_is_pooled():
    criterion = exact()
    criterion.set_epoch(0, 2)
    logits, labels = make_rows()
    loss = checkpoint(lambda z: criterion(z * 1, labels), logits.requires_grad_(), use_reentrant=True)
    with pytest.warns(UserWarning, match="in a reentrant checkpoint"):
        loss.backward()
    assert criterion.bank.num_rows == 0


def test_without_alpha_nothing_is_pooled():
    criterion = ToastLoss(CLASSES, alpha=0.0)
    logits, labels = make_rows()
    criterion(logits, labels)
    assert criterion.bank.num_rows == 0


def test_mixup_triples_are_blended_and_pooled_by_their_main_class():
    criterion = exact(alpha=1.0)
    first, y_a = make_rows(seed=1)
    y_b = (y_a + 1) % CLASSES
    criterion.set_epoch(0, 2)
    criterion(first, (y_a, y_b, 0.95))
    criterion(first + 1000, (y_a, y_b, 0.5))  # of no class: not pooled
    criterion.set_epoch(1, 2)
    soft, medoids = medoid_targets(first, y_a)
    assert criterion.bank.medoids.tolist() == medoids

    logits, _ = make_rows(seed=2)
    expected = 0.3 * plain_loss(logits, y_a, soft, 1.0) + 0.7 * plain_loss(logits, y_b, soft, 1.0)
    equal(criterion(logits, (y_a, y_b, 0.3)), expected)


def test_dense_prediction():
    criterion = exact()
    rows, labels = make_rows(2 * 5 * 4, seed=1)
    logits, target = rows.reshape(2, 5, 4, CLASSES).movedim(-1, 1), labels.reshape(2, 5, 4)
    target[0, 2, 1] = -100
    criterion.set_epoch(0, 2)
    equal(criterion(logits, target), F.cross_entropy(logits, target))
    criterion.set_epoch(1, 2)
    flat = target.reshape(-1)
    soft, medoids = medoid_targets(rows, flat)
    assert criterion.bank.medoids.tolist() == medoids
    equal(criterion(logits, target), plain_loss(rows, flat, soft, 0.8))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_half_logits_and_top_k(dtype, top_k):
    criterion = ToastLoss(CLASSES, alpha=0.5, top_k=top_k)
    first, labels = make_rows(dtype=dtype)
    criterion.set_epoch(0, 2)
    criterion(first, labels)
    criterion.set_epoch(1, 2)
    logits = first.clone().requires_grad_()
    loss = criterion(logits, labels)
    assert loss.dtype == torch.float32
    soft = criterion.soft_targets.dense().double()
    expected = plain_loss(first.double(), labels, soft, 0.5)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert logits.grad.dtype == dtype


def run(criterion, steps, replay, start=0, model=None):
    """A few training steps over epochs of 3 steps; the losses."""
    losses = []
    for step in range(start, steps):
        if step % 3 == 0:
            criterion.set_epoch(step // 3, 4)
        x, labels = make_rows(16, seed=step, dtype=torch.float32)
        x, labels, past = replay.extend(x, labels)
        logits = model(x)
        loss = criterion(logits, labels, past)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        replay.keep(x, labels, logits)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stop", [2, 3, 5, 8], ids=lambda step: f"after step {step}")
@pytest.mark.parametrize("top_k", [None, 2])
def test_training_resumes_to_the_bit(stop, top_k):
    def make():
        torch.manual_seed(0)
        return ToastLoss(CLASSES, top_k=top_k, weight=torch.rand(CLASSES)), HardReplay(), nn.Linear(CLASSES, CLASSES)

    criterion, replay, model = make()
    expected = run(criterion, 11, replay, model=model)

    criterion, replay, model = make()
    run(criterion, stop, replay, model=model)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (criterion, replay, model)], file)
    file.seek(0)
    fresh = (ToastLoss(CLASSES, top_k=top_k, weight=torch.zeros(CLASSES)), HardReplay(), nn.Linear(CLASSES, CLASSES))
    for part, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)  # strict
    criterion, replay, model = fresh
    if stop % 3:
        criterion.set_epoch(stop // 3, 4)  # what a resumed program does
    assert run(criterion, 11, replay, start=stop, model=model) == expected[stop:]


def test_loading_replaces_whatever_was_there_and_shares_nothing():
    source, other = exact(), exact()
    logits, labels = make_rows()
    source.set_epoch(0, 2)
    source(logits, labels)
    source.set_epoch(1, 2)
    source(logits[:7], labels[:7])
    other.set_epoch(0, 2)
    other(logits + 1, labels)
    other.load_state_dict(source.state_dict())
    assert other.epoch == 1
    assert other.bank.num_rows == 7
    assert torch.equal(other.soft_targets.dense(), source.soft_targets.dense())
    other.soft_targets.values.zero_()
    assert source.soft_targets.dense().sum() == pytest.approx(CLASSES)

    other.load_state_dict(exact().state_dict())
    assert other.soft_targets is None
    assert other.epoch is None
    assert other.bank.num_rows == 0


def test_the_graph_is_not_kept_alive():
    criterion = ToastLoss(CLASSES)
    logits, labels = make_rows()
    logits.requires_grad_()
    criterion(logits * 1, labels)
    assert not criterion.bank._logits.requires_grad


def test_compiled_forward_is_compiled_once_for_all_epochs():
    compiles = []

    def backend(graph, _):
        compiles.append(graph)
        return graph.forward

    criterion = exact()
    logits, labels = make_rows()
    criterion.set_epoch(0, 6)
    criterion(logits, labels)
    compiled = torch.compile(criterion, backend=backend)
    counts = []
    for epoch in range(1, 5):
        criterion.set_epoch(epoch, 6)
        rows = make_rows(seed=epoch)[0]
        loss = compiled(rows, labels)
        soft = criterion.soft_targets.dense()
        equal(loss, plain_loss(rows, labels, soft, 0.8 * (epoch + 1) / 6))
        counts.append(len(compiles))
    assert counts[0] > 0
    assert counts[-1] == counts[0]
    assert criterion.bank.num_rows == 40
    full = torch.compile(criterion.eval(), backend=backend, fullgraph=True)
    equal(full(logits, labels), F.cross_entropy(logits, labels))


def test_soft_targets_may_come_from_elsewhere():
    criterion = ToastLoss(CLASSES, alpha=0.4)
    criterion.set_epoch(1, 2)
    logits, labels = make_rows()
    table = torch.eye(CLASSES, dtype=torch.float64).flip(0)
    criterion.soft_targets = SoftTargets.from_probs(table)
    equal(criterion(logits, labels), plain_loss(logits, labels, table, 0.4))


LOGITS, LABELS = make_rows(8)
BAD_CALLS = {
    "alpha": (lambda: ToastLoss(CLASSES, alpha=1.2), r"alpha must be in \[0, 1\], got 1.2"),
    "alpha nan": (lambda: ToastLoss(CLASSES, alpha=float("nan")), r"alpha must be in \[0, 1\], got nan"),
    "classes": (lambda: ToastLoss(0), "num_classes must be an int >= 1, got 0"),
    "epoch": (
        lambda: ToastLoss(CLASSES).set_epoch(3, 3),
        r"epoch must be in \[0, num_epochs\) with num_epochs = 3, got 3",
    ),
    "before": (lambda: ToastLoss(CLASSES).set_epoch(-1, 3), r"epoch must be in \[0, num_epochs\) .*, got -1"),
    "soft T": (lambda: ToastLoss(CLASSES, soft_temperature=0.0), "temperature must be a finite number > 0, got 0.0"),
    "C": (lambda: ToastLoss(CLASSES + 1)(LOGITS, LABELS), "with C = 5, got"),
    "label": (lambda: ToastLoss(CLASSES)(LOGITS, LABELS + 4), "out of range"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()


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


def test_training_without_set_epoch_warns_of_the_growing_pool():
    logits, labels = make_rows()
    criterion = exact()
    with pytest.warns(UserWarning, match="until set_epoch is called"):
        criterion(logits, labels)
    told = exact()
    told.set_epoch(0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(logits, labels)  # once is enough
        told(logits, labels)
        exact().eval()(logits, labels)
