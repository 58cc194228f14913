"""On a device without float64 (MPS) the reference makes nothing in float64. The CPU stands for such a device."""

import pytest
import torch
from medoid_cases import METRICS, distances, logits, random_labels
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toast_kernels import HardReplay, SoftTargets, ToastLoss, class_medoids, toast_loss


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        assert not any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)), function
        return result


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr("toast_kernels.native.WITHOUT_FLOAT64", {"cpu"})
    for op in ("kept_rows", "softmax_statistics", "medoids"):
        monkeypatch.setattr(f"toast_kernels.{op}.op.choose", lambda *_: "reference")
    return NoFloat64()


@pytest.mark.parametrize("metric", METRICS)
def test_medoids_cost_the_least_up_to_float32(metric, without_float64):
    x, labels = logits(120, 30), random_labels(120, 3)
    with without_float64:
        found = class_medoids(x, labels, 3, metric=metric)
    for c, medoid in enumerate(found.tolist()):
        rows = (labels == c).nonzero()[:, 0]
        cost = distances(x[rows].double().numpy(), metric).sum(1)
        assert labels[medoid] == c
        assert cost[rows.tolist().index(medoid)] <= cost.min() * (1 + 1e-5)


@pytest.mark.parametrize("top_k", [None, 3])
def test_training_needs_no_float64(top_k, without_float64):
    batches = [(logits(8, 5, seed=seed), random_labels(8, 5, seed=seed)) for seed in range(3)]

    def train():
        criterion, losses = ToastLoss(5, top_k=top_k, backend="reference"), []
        replay = HardReplay(0.5, top_k=top_k, distil_fraction=0.5)
        for epoch in range(3):
            criterion.set_epoch(epoch, 3)
            x, y, past = replay.extend(*batches[epoch])
            x.requires_grad_()
            loss, stats = criterion(x, y, past, return_stats=True)
            loss.backward()
            replay.keep(x.detach(), y, x, stats.cross_entropy)
            losses += [loss.detach(), x.grad]
        return losses

    expected = train()
    with without_float64:
        found = train()
    torch.testing.assert_close(found, expected)


def test_past_logits_need_no_float64(without_float64):
    z, q, y = logits(8, 5), logits(8, 5, seed=2), random_labels(8, 5)
    expected = toast_loss(z, y, past=q, backend="reference")
    with without_float64:
        past = SoftTargets.view_logits(q, 3.0)
        found = toast_loss(z, y, past=past, backend="reference")
    torch.testing.assert_close(found, expected)
