"""mixup_triple recovers the labels from the dense targets of Mixup and CutMix."""

import pytest
import torch
import torch.nn.functional as F
from optional import given, settings
from optional import strategies as st

from toast_kernels.functional import toast_loss
from toast_kernels.mixup import mixup_triple


def torchvision_targets(labels, lam, num_classes):
    """As torchvision.transforms.v2.MixUp: one-hot, mixed with the batch rolled by one."""
    onehot = F.one_hot(labels, num_classes).float()
    return onehot.roll(1, 0).mul(1 - lam).add(onehot.mul(lam))


def timm_targets(labels, lam, num_classes, smoothing):
    """As timm.data.mixup: smoothed on and off values, mixed with the batch reversed."""
    off = smoothing / num_classes
    onehot = torch.full((len(labels), num_classes), off).scatter(1, labels[:, None], 1 - smoothing + off)
    return onehot * lam + onehot.flip(0) * (1 - lam)


def dense(y_a, y_b, lam, num_classes):
    lam = lam.double()[:, None]
    return lam * F.one_hot(y_a, num_classes) + (1 - lam) * F.one_hot(y_b, num_classes)


LABELS = torch.tensor([3, 1, 1, 4, 0, 2, 4, 4])


@pytest.mark.parametrize("lam", [0.0, 1e-4, 0.3, 0.5, 0.75, 1.0])
def test_torchvision_targets(lam):
    probs = torchvision_targets(LABELS, lam, 5)
    y_a, y_b, shares = mixup_triple(probs)

    assert y_a.dtype == y_b.dtype == torch.int64
    assert shares.dtype == torch.float32
    assert (shares >= 0.5).all()
    own, other = LABELS, LABELS.roll(1, 0)
    if lam == 0.5:
        assert torch.equal(y_a, torch.minimum(own, other))  # equal shares: the lower class comes first
    else:
        major, minor = (own, other) if lam > 0.5 else (other, own)
        assert torch.equal(y_a, major)
        assert torch.equal(y_b, minor if 0 < lam < 1 else major)
    torch.testing.assert_close(dense(y_a, y_b, shares, 5), probs.double(), rtol=0, atol=1e-7)


def test_a_row_of_one_class_is_exactly_that_class():
    probs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.99999994], [0.25, 0.75, 0.0]])
    y_a, y_b, lam = mixup_triple(probs)
    assert y_a.tolist() == [1, 2, 1]
    assert y_b.tolist() == [1, 2, 0]
    assert lam.tolist() == [1.0, 1.0, 0.75]


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9, 1.0])
def test_timm_targets_give_the_same_loss_as_their_triple(lam):
    smoothing, num_classes = 0.1, 5
    probs = timm_targets(LABELS, lam, num_classes, smoothing)
    triple = mixup_triple(probs, label_smoothing=smoothing)
    smoothed = (1 - smoothing) * dense(*triple, num_classes) + smoothing / num_classes
    torch.testing.assert_close(smoothed, probs.double(), rtol=0, atol=1e-6)
    assert (triple[2] == 1).sum() == (8 if lam == 1.0 else (LABELS.flip(0) == LABELS).sum())

    logits = torch.randn(8, num_classes, generator=torch.Generator().manual_seed(0))
    loss = toast_loss(logits, triple, label_smoothing=smoothing, backend="reference")
    torch.testing.assert_close(loss, F.cross_entropy(logits, probs))


def test_many_classes_and_half_precision():
    labels = torch.arange(64) * 300
    probs = timm_targets(labels, 0.625, 21_841, 0.1)
    y_a, y_b, lam = mixup_triple(probs, label_smoothing=0.1)
    assert torch.equal(y_a, labels)
    assert torch.equal(y_b, labels.flip(0))
    torch.testing.assert_close(lam, torch.full((64,), 0.625))

    y_a, _, lam = mixup_triple(torchvision_targets(LABELS, 0.7, 5).bfloat16())
    assert torch.equal(y_a, LABELS)
    assert lam.dtype == torch.float32


@pytest.mark.parametrize(
    ("probs", "arguments", "message"),
    [
        ([[0.5, 0.3, 0.2]], {}, "row 0 has 3 classes above that and a sum of 1. Smoothed"),
        ([[1.0, 0.0, 0.0], [0.5, 0.3, 0.0]], {}, "row 1 has 2 classes above that and a sum of 0.8"),
        ([[1.5, -0.5, 0.0]], {}, "row 0 has"),
        ([[float("nan"), 1.0, 0.0]], {}, "row 0 has"),
        ([[0.0, 0.0, 0.0]], {}, "row 0 has 0 classes above that and a sum of 0"),
        ([[1.0, 0.0, 0.0]], {"label_smoothing": 0.1}, "label_smoothing = 0.1; row 0"),
        ([[1.0, 0.0, 0.0]], {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ([1.0, 0.0], {}, r"probs must have shape \[N, C\] with C >= 1, got \[2\]"),
        ([[1, 0]], {}, "probs must be a floating-point tensor, got torch.int64"),
    ],
    ids=["three", "sum", "negative", "nan", "zero", "not smoothed", "smoothing", "1-d", "int"],
)
def test_what_is_no_mixture_is_an_error(probs, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mixup_triple(torch.tensor(probs), **arguments)


def test_no_rows():
    assert [len(part) for part in mixup_triple(torch.empty(0, 3))] == [0, 0, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    lam=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_any_mixture_is_recovered(labels, lam, smoothing):
    probs = timm_targets(torch.tensor(labels), lam, 7, smoothing)
    triple = mixup_triple(probs, label_smoothing=smoothing)
    smoothed = (1 - smoothing) * dense(*triple, 7) + smoothing / 7
    torch.testing.assert_close(smoothed, probs.double(), rtol=0, atol=1e-6)
