"""ToastLoss.linear: the dense form's numbers where both apply, medoids of features, and top-k soft targets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from toast_loss_linear_cases import EXACT, head_of, predictions, rows_of, targets_of

from toast_kernels import SoftTargets, ToastLoss, TopPredictions, toast_loss


@pytest.mark.parametrize("kind", ["labels", "triples", "probabilities", "ignored"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": torch.linspace(0.5, 2, 7, dtype=torch.float64), "reduction": "none"},
        {"correct_only": True, "reduction": "sum"},
        {"pool_rows": 61, "metric": "cosine"},
        {"max_rows_per_class": 3, "soft_temperature": 2.5},
    ],
    ids=["plain", "weights", "correct only", "too small a pool", "a reservoir"],
)
@pytest.mark.filterwarnings("ignore:pool_rows = 61 rows fit")
def test_with_the_identity_for_a_head_it_is_the_dense_form(settings, kind):
    """Classes without a row, rows that find no room, and a reservoir included: rows go to the same places."""
    classes = 7
    identity = torch.eye(classes, dtype=torch.float64)
    dense, linear = (ToastLoss(classes, num_epochs=3, top_k=classes, **EXACT, **settings) for _ in range(2))
    for epoch in range(3):
        dense.set_epoch(epoch)
        linear.set_epoch(epoch)
        for step in range(3):
            x, labels = rows_of(classes - (epoch == 0), classes, seed=3 * epoch + step)
            target, upstream = targets_of(kind, labels, classes), torch.linspace(1, 2, len(x), dtype=torch.float64)
            results = []
            for loss_of in (dense, lambda x, y, **more: linear.linear(x, identity, y, **more)):
                leaf = x.clone().requires_grad_()
                loss, stats = loss_of(leaf, target, return_stats=True)
                loss.backward(upstream if loss.dim() else None)
                results.append((loss.detach(), leaf.grad, *stats))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other)
        assert linear.bank.num_rows == dense.bank.num_rows == 72
    for criterion in (dense, linear):
        criterion.set_epoch(3)
    assert torch.equal(linear.bank.medoids, dense.bank.medoids)
    assert (linear.bank.medoids >= 0).any()
    for name in ("values", "indices", "entropy", "filled"):
        torch.testing.assert_close(getattr(linear, name), getattr(dense, name))


@pytest.mark.parametrize(("classes", "width"), [(40, 5), (3, 17)])
@pytest.mark.parametrize("bias", [False, True])
def test_soft_targets_are_the_medoids_predictions_and_medoids_those_of_the_features(bias, classes, width):
    top_k, alpha, temperature = 3, 0.6, 1.5
    weight, bias = head_of(classes, width), torch.linspace(-1, 1, classes, dtype=torch.float64) if bias else None
    criterion = ToastLoss(classes, num_epochs=2, alpha=alpha, top_k=top_k, soft_temperature=temperature, **EXACT)
    criterion.set_epoch(0)
    batches = [rows_of(classes, width, rows=50, seed=seed) for seed in range(2)]
    for x, y in batches:
        found = criterion.linear(x, weight, y, None, bias)
        torch.testing.assert_close(found, F.cross_entropy(F.linear(x, weight, bias), y))
    criterion.set_epoch(1)

    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits, table = F.linear(x, weight, bias), torch.zeros(classes, classes, dtype=torch.float64)
    for c in range(classes):
        rows = np.flatnonzero(y.numpy() == c)
        if not len(rows):
            assert criterion.bank.medoids[c] == -1
            continue
        distances = cdist(x[rows].numpy(), x[rows].numpy()).sum(1)
        assert criterion.bank.medoids[c] in rows[distances <= distances.min() * (1 + 1e-9)]  # of two rows either may be
        probs = (logits[criterion.bank.medoids[c]] / temperature).softmax(0)
        listed = probs.topk(top_k)
        table[c] = (1 - listed.values.sum()) / max(1, classes - top_k)
        table[c, listed.indices] = listed.values
    torch.testing.assert_close(criterion.soft_targets.dense(), table)
    entropy = torch.special.entr(criterion.soft_targets.dense()).sum(1)
    torch.testing.assert_close(criterion.entropy[criterion.filled], entropy[criterion.filled])

    leaf, head = x.clone().requires_grad_(), weight.clone().requires_grad_()
    soft = SoftTargets.from_probs(table, filled=criterion.filled)
    expected = toast_loss(F.linear(leaf, head, bias), y, soft_targets=soft, alpha=alpha, backend="reference")
    truth = torch.autograd.grad(expected, [leaf, head])
    found = criterion.linear(leaf, head, y, linear_bias=bias)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # alpha is float32
    for one, other in zip(torch.autograd.grad(found, [leaf, head]), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_an_evaluation_pools_nothing_and_is_plain_cross_entropy(how):
    weights = torch.rand(30, dtype=torch.float64)
    criterion = ToastLoss(30, num_epochs=2, top_k=3, weight=weights, label_smoothing=0.1, **EXACT)
    x, y = rows_of(30, 6)
    weight = head_of(30, 6)
    criterion.set_epoch(0)
    criterion.linear(x, weight, y)
    criterion.set_epoch(1)
    logits = F.linear(x, weight)
    expected = F.cross_entropy(logits, y, weights, label_smoothing=0.1)
    criterion.train(how != "eval")
    with torch.set_grad_enabled(how == "eval"):
        torch.testing.assert_close(criterion.linear(x, weight, y), expected)
        torch.testing.assert_close(criterion(logits, y), expected)
        loss, predictions = criterion.linear(x, weight, y, return_top_k=True)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(predictions.indices, logits.topk(3).indices)
    assert criterion.bank.num_rows == 0
    trained, stats = criterion.train().linear(x, weight, y, return_stats=True)
    assert (trained - expected).abs() > 0.1
    torch.testing.assert_close(stats.logsumexp, logits.logsumexp(1))


@pytest.mark.filterwarnings("ignore:the soft targets are nearly one-hot")
def test_rows_without_a_finite_prediction_are_not_pooled():
    criterion = ToastLoss(30, num_epochs=2, top_k=3, **EXACT)
    criterion.set_epoch(0)
    weight = 1e200 * head_of(30, 6)
    x, _ = rows_of(30, 6, rows=4)
    x[:2] *= 1e200  # finite, and their logits are not
    criterion.linear(x, weight, torch.arange(4))
    criterion.set_epoch(1)
    assert criterion.bank.medoids[:5].tolist() == [-1, -1, 2, 3, -1]
    assert criterion.filled.nonzero()[:, 0].tolist() == [2, 3]


def test_autocast_features_of_another_dtype():
    criterion = ToastLoss(30, num_epochs=2, top_k=3)
    x, y = rows_of(30, 6, dtype=torch.float32)
    weight = head_of(30, 6, dtype=torch.float32).requires_grad_()
    for epoch in range(2):
        criterion.set_epoch(epoch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion.linear(x, weight, y)
        loss.backward()
    assert weight.grad.dtype == torch.float32
    assert criterion.filled.any()


def test_compiled_it_pools_and_gives_the_same_loss():
    torch._dynamo.reset()
    eager, compiled = (ToastLoss(30, num_epochs=2, top_k=3) for _ in range(2))
    x, y = rows_of(30, 6, dtype=torch.float32)
    weight = head_of(30, 6, dtype=torch.float32)
    step = torch.compile(lambda x: compiled.linear(x, weight, y), backend="eager")
    for epoch in range(2):
        for criterion, loss_of in ((eager, lambda x: eager.linear(x, weight, y)), (compiled, step)):
            criterion.set_epoch(epoch)
            leaf = x.clone().requires_grad_()
            loss_of(leaf).backward()
            criterion.found = leaf.grad
        torch.testing.assert_close(compiled.found, eager.found)
    assert compiled.bank.num_rows == 24


def test_predictions_are_public():
    assert isinstance(predictions(), TopPredictions)
