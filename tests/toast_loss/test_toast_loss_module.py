"""ToastLoss: an epoch's pool becomes the next epoch's soft targets; checked against plain float64 PyTorch and SciPy."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from toast_loss_cases import CLASSES, equal, exact, make_rows, medoid_targets, plain_loss

from toast_kernels import SoftTargets, ToastLoss


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
    for told in (True, False):
        criterion, ramp = ToastLoss(CLASSES, alpha=0.8, num_epochs=5 if told else None), []
        for epoch in range(7):  # more than told
            criterion.set_epoch(epoch, *([] if told else [5]))
            ramp.append(criterion.alpha.item())
        assert ramp == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8])
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
    assert not criterion.soft_targets.filled.any()
    criterion.set_epoch(1, 3)
    table = criterion.soft_targets.dense().clone()
    criterion(logits[:5], labels[:5])  # half-way through epoch 1, resumed
    criterion.set_epoch(1, 3)
    assert criterion.bank.num_rows == 5
    assert torch.equal(criterion.soft_targets.dense(), table)
    assert criterion.alpha.item() == pytest.approx(0.8 * 2 / 3)


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
    criterion.soft_targets = SoftTargets.from_probs(table, dtype=torch.bfloat16)
    equal(criterion(logits, labels), plain_loss(logits, labels, table, 0.4))
    with pytest.raises(ValueError, match=r"rows to store must have values of width and dtype \(4, torch.bfloat16\)"):
        criterion.soft_targets = SoftTargets.from_probs(table)


def test_set_epoch_at_any_step():
    criterion = exact(alpha=1.0, num_epochs=100)
    for step in range(4):
        logits, labels = make_rows(seed=step)
        criterion.set_epoch(step)
        criterion(logits, labels)
    soft, _ = medoid_targets(*make_rows(seed=2))
    torch.testing.assert_close(criterion.soft_targets.dense(), soft)


def test_a_later_epoch_without_any_soft_target_is_warned_of():
    criterion = exact(num_epochs=3)
    criterion.set_epoch(0)
    with pytest.warns(UserWarning, match="epoch 1 has no soft targets: no row was pooled before it"):
        criterion.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion.set_epoch(2)  # once
        other = exact(num_epochs=3)
        other.set_epoch(0)
        other(*make_rows())
        other.set_epoch(1)
        other.set_epoch(2)  # it has those of epoch 1


def test_an_epoch_before_the_last_is_warned_of():
    criterion = exact(num_epochs=3)
    for epoch in range(3):
        criterion.set_epoch(epoch)
        criterion(*make_rows())
    with pytest.warns(UserWarning, match="epoch 0 comes after epoch 2, whose rows and soft targets it takes over"):
        criterion.set_epoch(0)
    criterion.reset_parameters()
    assert not criterion.soft_targets.filled.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion.set_epoch(0)
        criterion.set_epoch(0)


def test_soft_targets_that_are_nearly_one_hot_are_warned_of():
    logits, labels = make_rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = exact(soft_temperature=4.0, num_epochs=3)
        plain.set_epoch(0)
        plain(64 * logits.softmax(1), labels)
        plain.set_epoch(1)
    scaled = exact(num_epochs=3)
    scaled.set_epoch(0)
    scaled(64 * F.one_hot(labels, CLASSES) + logits, labels)
    with pytest.warns(UserWarning, match="nearly one-hot, so that alpha has hardly any effect: raise soft_temperature"):
        scaled.set_epoch(1)


def test_warnings_point_at_the_users_line():
    """However many of torch's and the library's own frames lie between."""
    criterion = exact(num_epochs=3, pool_rows=10)
    lines = {
        "until set_epoch": lambda: criterion(*make_rows()),
        "rows fit into the pool": lambda: criterion.set_epoch(1),
        "one-hot": lambda: torch.nn.Sequential(Margin())(make_rows()),
    }
    for match, call in lines.items():
        with pytest.warns(UserWarning, match=match) as warned:
            call()
        where = {(w.filename, w.lineno) for w in warned if match in str(w.message)}
        line = Margin.line if match == "one-hot" else call.__code__.co_firstlineno
        assert where == {(__file__, line)}


class Margin(torch.nn.Module):
    """A user's own module between two of torch's."""

    def forward(self, rows):
        criterion = exact(num_epochs=3)
        criterion.set_epoch(0)
        criterion(64 * F.one_hot(rows[1], CLASSES) + rows[0], rows[1])
        criterion.set_epoch(1)

    line = forward.__code__.co_firstlineno + 4


def test_the_settings_are_shown():
    shown = repr(ToastLoss(CLASSES, alpha=0.3, reduction="sum", top_k=2, metric="cosine", pool_rows=9))
    for text in (
        "4, alpha=0.3",
        "reduction='sum'",
        "top_k=2",
        "metric='cosine'",
        "pool_rows=9",
        "pool_dtype=torch.float16",
    ):
        assert text in shown


def test_a_large_dense_table_is_warned_of():
    with torch.device("meta"):
        with pytest.warns(UserWarning, match="of 40000 classes take 3.0 GiB: with top_k=64 they would take 0.02"):
            ToastLoss(40_000)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ToastLoss(40_000, top_k=64)
            ToastLoss(40_000, alpha=0.0)


LOGITS, LABELS = make_rows(8)
BAD_CALLS = {
    "alpha": (lambda: ToastLoss(CLASSES, alpha=1.2), r"alpha must be a number in \[0, 1\], got 1.2"),
    "alpha None": (lambda: ToastLoss(CLASSES, alpha=None), r"alpha must be a number in \[0, 1\], got None"),
    "alpha nan": (lambda: ToastLoss(CLASSES, alpha=float("nan")), r"alpha must be a number in \[0, 1\], got nan"),
    "classes": (lambda: ToastLoss(0), "num_classes must be an int >= 1, got 0"),
    "epoch": (
        lambda: ToastLoss(CLASSES).set_epoch(1.5, 3),
        r"epoch must be an int, got 1.5",
    ),
    "before": (lambda: ToastLoss(CLASSES).set_epoch(-1, 3), "epoch must be >= 0, got -1"),
    "none": (lambda: ToastLoss(CLASSES).set_epoch(0, 0), r"num_epochs must be a number in \(0, inf\), got 0"),
    "nan": (lambda: ToastLoss(CLASSES, num_epochs=math.nan), r"num_epochs must be a number in \(0, inf\), got nan"),
    "T": (lambda: ToastLoss(CLASSES, temperature=0), r"temperature must be a number in \(0, inf\), got 0"),
    "lambda": (lambda: ToastLoss(CLASSES, past_weight=-1.0), r"past_weight must be a number in \[0, inf\), got -1"),
    "lambda inf": (lambda: ToastLoss(CLASSES, past_weight=math.inf), r"past_weight must be a number in \[0, inf\)"),
    "smoothing": (
        lambda: ToastLoss(CLASSES, label_smoothing=2.0),
        r"label_smoothing must be a number in \[0, 1\], got 2",
    ),
    "reduction": (lambda: ToastLoss(CLASSES, reduction="x"), "reduction must be .* got 'x'"),
    "weight": (lambda: ToastLoss(CLASSES, weight=torch.ones(3)), r"weight must have shape .* got \[3\]"),
    "no weight": (lambda: ToastLoss(CLASSES, weight=[1.0] * 4), "weight must be a floating-point tensor, got list"),
    "num_epochs": (lambda: ToastLoss(CLASSES).set_epoch(0), "num_epochs must be given, to set_epoch or to ToastLoss"),
    "metric": (lambda: ToastLoss(CLASSES, metric="hamming"), "metric must be one of 'euclidean', .*, got 'hamming'"),
    "pool_dtype": (lambda: ToastLoss(CLASSES, pool_dtype=torch.float8_e5m2), "pool_dtype must be one of torch.float64"),
    "top_k": (lambda: ToastLoss(CLASSES, top_k=5), r"top_k must be an int in \[1, 4\]"),
    "backend": (lambda: ToastLoss(CLASSES, backend="gpu"), "backend must be one of 'auto', .*, got 'gpu'"),
    "soft T": (
        lambda: ToastLoss(CLASSES, soft_temperature=0.0),
        r"soft_temperature must be a number in \(0, inf\), got 0.0",
    ),
    "C": (lambda: ToastLoss(CLASSES + 1)(LOGITS, LABELS), "with C = 5, got"),
    "label": (lambda: ToastLoss(CLASSES)(LOGITS, LABELS + 4), "out of range"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()
