"""Replay and a memory of predictions: what HardReplay and PredictionMemory make of top-k predictions and of logits."""

import pytest
import torch
import torch.nn.functional as F
from toast_loss_linear_cases import EXACT, head_of, rows_of, targets_of

from toast_kernels import HardReplay, PredictionMemory, ToastLoss, linear_toast_loss


@pytest.mark.parametrize("target", ["labels", "triples"])
def test_replay_of_predictions_is_that_of_logits(target):
    """The rows carried, their past predictions and the losses; new rows alone are pooled."""
    classes, width, top_k = 30, 6, 4
    weight = head_of(classes, width)
    replays = HardReplay(top_k=top_k), HardReplay(top_k=top_k)
    dense, linear = (ToastLoss(classes, num_epochs=2, top_k=top_k + 2, **EXACT) for _ in range(2))
    for epoch in range(2):
        dense.set_epoch(epoch)
        linear.set_epoch(epoch)
        if epoch:  # the same soft targets: those of the linear form come from other medoids
            dense.soft_targets = linear.soft_targets
        for step in range(3):
            x, y = rows_of(classes, width, seed=3 * epoch + step)
            y = targets_of(target, y, classes)
            (x_dense, y_dense, past_dense), (x_linear, y_linear, past) = (replay.extend(x, y) for replay in replays)
            assert torch.equal(x_dense, x_linear)
            logits = F.linear(x_dense, weight)
            expected, stats = dense(logits, y_dense, past_dense, return_stats=True)
            found, linear_stats, predictions = linear.linear(
                x_linear, weight, y_linear, past, return_stats=True, return_top_k=True
            )
            torch.testing.assert_close(found, expected)
            assert predictions.logits.shape == (36, top_k + 2)
            replays[0].keep(x_dense, y_dense, logits, stats.cross_entropy)
            replays[1].keep(x_linear, y_linear, predictions, linear_stats.cross_entropy)
    assert linear.bank.num_rows == 72
    one, other = (replay.extend(*rows_of(classes, width))[2] for replay in replays)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.targets.indices, other.targets.indices)
    torch.testing.assert_close(one.targets.dense(), other.targets.dense())
    torch.testing.assert_close(one.targets.entropy, other.targets.entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_memory_of_predictions_is_that_of_logits(dtype):
    classes, width = 30, 6
    x, y = rows_of(classes, width, dtype=dtype)
    weight = head_of(classes, width, dtype=dtype)
    logits = F.linear(x, weight)
    _, predictions = linear_toast_loss(x, weight, y, return_top_k=5, temperature=2.0)
    memories = [PredictionMemory(24, classes, top_k=3, temperature=2.0) for _ in range(2)]
    sample = torch.randperm(24)
    memories[0].keep(sample, logits)
    memories[1].keep(sample, predictions)
    one, other = (memory.past(torch.arange(24)).targets for memory in memories)
    torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-6)
    assert (one.indices == other.indices).float().mean() > 0.9  # of equal logits any may be listed
    diverged = predictions.first(2)._replace(logits=torch.zeros(2, 5), logsumexp=torch.tensor([torch.nan, torch.inf]))
    memories[1].keep(sample[:2], diverged)
    assert torch.equal(other.values, memories[1].past(torch.arange(24)).targets.values)
