"""The metrics of the training programs against other ways to compute them."""

import pytest
import torch
import torch.nn.functional as F
from programs import metrics


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 12, generator=generator) * 3
    return logits, torch.randint(12, (500,), generator=generator)


def test_scores_agree_with_direct_counts(predictions):
    logits, target = predictions
    scores = metrics.scores(*metrics.judged(logits, target))
    ranks = (logits > logits.gather(1, target[:, None])).sum(dim=1)
    assert scores["top1"] == (ranks == 0).double().mean().item()
    assert scores["top5"] == (ranks < 5).double().mean().item()
    assert scores["nll"] == pytest.approx(F.cross_entropy(logits.double(), target).item(), rel=1e-6)


def test_top5_of_fewer_than_five_classes_is_one():
    judged = metrics.judged(torch.randn(10, 3), torch.zeros(10, dtype=torch.long))
    assert metrics.scores(*judged)["top5"] == 1


def test_ece_agrees_with_a_loop_over_bins(predictions):
    logits, target = predictions
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    hit = predicted == target
    expected = 0.0
    for low in range(metrics.ECE_BINS):
        inside = (confidence > low / metrics.ECE_BINS) & (confidence <= (low + 1) / metrics.ECE_BINS)
        if inside.any():
            gap = (hit[inside].double().mean() - confidence[inside].double().mean()).abs().item()
            expected += gap * inside.double().mean().item()
    assert metrics.expected_calibration_error(confidence, hit) == pytest.approx(expected, abs=1e-9)


def test_ece_of_a_calibrated_and_of_a_boastful_classifier():
    confidence = torch.full((1000,), 0.75)
    hit = torch.arange(1000) % 4 != 0
    assert metrics.expected_calibration_error(confidence, hit) == pytest.approx(0)
    assert metrics.expected_calibration_error(torch.ones(1000), hit) == pytest.approx(0.25)
