"""mixup_triple recovers the labels from the dense targets of Mixup and CutMix."""

import pytest
import torch
import torch.nn.functional as F
from blended_kl_cases import BACKENDS, device_of
from optional import given, settings
from optional import strategies as st

from toast_kernels import ToastLoss
from toast_kernels.functional import toast_loss
from toast_kernels.mixup import mixup_triple


def torchvision_targets(labels, lam, num_classes):
    """As torchvision.transforms.v2.MixUp: one-hot, mixed with the batch rolled by one."""
    onehot = F.one_hot(labels, num_classes).float()
    return onehot.roll(1, 0).mul(1 - lam).add(onehot.mul(lam))


def timm_targets(labels, lam, num_classes, smoothing, dtype=torch.float32):
    """As timm.data.mixup: smoothed on and off values, mixed with the batch reversed."""
    off = smoothing / num_classes
    onehot = torch.full((len(labels), num_classes), off, dtype=dtype)
    onehot.scatter_(1, labels[:, None], 1 - smoothing + off)
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("num_classes", [5, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_roundings_of_the_targets_are_no_other_mixture(dtype, num_classes, smoothing):
    """Mixed in the dtype, a few roundings a share; a floor of smoothing / C is a subnormal float16 number."""
    labels, close = torch.tensor([3, 1]), 4 * torch.finfo(dtype).eps / (1 - smoothing)
    for lam in torch.arange(8, 249, 4).double() / 256:
        probs = timm_targets(labels, float(lam), num_classes, smoothing, dtype)
        y_a, y_b, share = mixup_triple(probs, label_smoothing=smoothing)
        assert y_a.tolist() == ([1, 1] if lam == 0.5 else [3, 1] if lam > 0.5 else [1, 3])
        assert (y_a + y_b).tolist() == [4, 4]
        assert ((share >= 0.5) & (share <= 1)).all()
        assert ((share - max(lam, 1 - lam)).abs() <= close).all()


def test_a_small_share_is_no_rounding():
    """The smallest input that was refused: the second share fell under the rounding of the first."""
    probs = torch.tensor([[0.97, 0.03, 0.0]]).bfloat16()
    smoothed = torch.tensor([[0.9 * 0.97 + 0.1 / 3, 0.9 * 0.03 + 0.1 / 3, 0.1 / 3]]).bfloat16()
    for targets in (probs, smoothed):
        y_a, y_b, lam = mixup_triple(targets, label_smoothing=0.1)
        assert (y_a.item(), y_b.item()) == (0, 1)
        torch.testing.assert_close(lam, torch.tensor([0.97]), rtol=0, atol=0.01)


def test_targets_that_were_not_smoothed_are_taken_as_they_are():
    probs = torch.cat([torchvision_targets(LABELS, 0.75, 5), timm_targets(LABELS, 0.75, 5, 0.1)])
    y_a, y_b, lam = mixup_triple(probs, label_smoothing=0.1)
    assert torch.equal(y_a, LABELS.repeat(2))
    assert torch.equal(y_b, torch.cat([LABELS.roll(1), LABELS.flip(0)]))
    torch.testing.assert_close(lam, torch.where(y_a == y_b, 1, 0.75))


def test_each_position_has_a_triple():
    rows = torchvision_targets(LABELS, 0.75, 5)
    positions = rows.reshape(2, 2, 2, 5).movedim(-1, 1)
    for found, expected in zip(mixup_triple(positions), mixup_triple(rows), strict=True):
        assert torch.equal(found, expected.reshape(2, 2, 2))
    positions[1, 0, 0, 1] = 2
    with pytest.raises(ValueError, match=r"row \[1, 0, 1\] has \d classes"):
        mixup_triple(positions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_may_wait_a_row_that_is_no_mixture_has_a_nan_loss(backend, monkeypatch):
    """As on a GPU. Tracing stands for it where there is none."""
    device = device_of(backend)
    probs = torchvision_targets(LABELS, 0.75, 5).to(device)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(device)
    expected = F.cross_entropy(logits, probs, reduction="none")
    probs[2] = 0.2
    probs[5, 0] += 0.1
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    loss = toast_loss(logits, mixup_triple(probs), reduction="none", backend=backend)
    expected[[2, 5]] = torch.nan
    torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize("smoothed", [False, True], ids=["torchvision", "timm"])
def test_toast_loss_as_a_module_takes_dense_targets_in_every_epoch(smoothed):
    one, two = (ToastLoss(5, label_smoothing=0.1) for _ in range(2))
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    probs = timm_targets(LABELS, 0.95, 5, 0.1) if smoothed else torchvision_targets(LABELS, 0.95, 5)
    triple = mixup_triple(probs, label_smoothing=0.1)
    for epoch in range(3):
        losses = []
        for criterion, target in ((one, probs), (two, triple)):
            criterion.set_epoch(epoch, 3)
            losses.append(criterion(logits.clone().requires_grad_(), target))
        if epoch == 0:
            unsmoothed = F.cross_entropy(logits, probs, label_smoothing=0.0 if smoothed else 0.1)
            torch.testing.assert_close(losses[0], unsmoothed)
        assert torch.equal(*losses)
    assert torch.equal(one.soft_targets.values, two.soft_targets.values)
    with pytest.raises(ValueError, match="target of class probabilities must be shaped like logits"):
        one(logits.clone().requires_grad_(), probs[:, :4])


@pytest.mark.parametrize(
    ("probs", "arguments", "message"),
    [
        ([[0.5, 0.3, 0.2]], {}, "row 0 has 3 classes above that and a sum of 1. Smoothed"),
        ([[1.0, 0.0, 0.0], [0.5, 0.3, 0.0]], {}, "row 1 has 2 classes above that and a sum of 0.8"),
        ([[1.5, -0.5, 0.0]], {}, "row 0 has"),
        ([[float("nan"), 1.0, 0.0]], {}, "row 0 has"),
        ([[0.0, 0.0, 0.0]], {}, "row 0 has 0 classes above that and a sum of 0"),
        ([[0.8, 0.1, 0.1]], {"label_smoothing": 0.1}, "label_smoothing = 0.1 or not at all; row 0 has 3 classes"),
        ([[0.8, 0.1, 0.1]], {"label_smoothing": 0.5}, "label_smoothing = 0.5 or not at all; row 0 has 1 class"),
        ([[1.0, 0.0, 0.0]], {"label_smoothing": 1.0}, r"label_smoothing must be a number in \[0, 1\), got 1.0"),
        ([1.0, 0.0], {}, r"probs must have shape \[N, C\] or .* with C >= 1, got \[2\]"),
        ([[1, 0]], {}, "probs must be a floating-point tensor, got a torch.int64 tensor"),
    ],
    ids=["three", "sum", "negative", "nan", "zero", "smoothed less", "smoothed more", "smoothing", "1-d", "int"],
)
def test_what_is_no_mixture_is_an_error(probs, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mixup_triple(torch.tensor(probs), **arguments)


def test_probabilities_that_learn_have_no_labels():
    with pytest.raises(ValueError, match="probs must not require a gradient"):
        mixup_triple(torch.eye(3, requires_grad=True))


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
