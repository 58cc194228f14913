"""What ToastLoss.linear, its bank, replay and memory say of bad input."""

import pytest
import torch
from toast_loss_linear_cases import WEIGHT, X, Y, after, nothing, predictions

from toast_kernels import HardReplay, MedoidBank, PredictionMemory, ToastLoss, linear_toast_loss


def kept(top_k, **arguments):
    replay = HardReplay(top_k=top_k)
    x, y, _ = replay.extend(X[:16], Y[:16])
    replay.keep(x, y, predictions(), **arguments)


WRONG = {
    "no top_k": (lambda: ToastLoss(30).linear(X, WEIGHT, Y), ValueError, "top_k must be given .*, got None"),
    "no top_k, and predictions wanted": (
        lambda: ToastLoss(30, alpha=0.0).linear(X, WEIGHT, Y, return_top_k=True),
        ValueError,
        "top_k must be given .*, got None",
    ),
    "top_k above C": (lambda: ToastLoss(30, top_k=31), ValueError, r"top_k must be an int in \[1, 30\].*got 31"),
    "input None": (
        lambda: after(nothing).linear(None, WEIGHT, Y),
        TypeError,
        "input must be a tensor, got NoneType",
    ),
    "weight None": (
        lambda: after(nothing).linear(X, None, Y),
        TypeError,
        "linear_weight must be a tensor, got NoneType",
    ),
    "logits of the loss None": (lambda: after(nothing)(None, Y), TypeError, "logits must be a tensor, got NoneType"),
    "input 3-d": (
        lambda: after(nothing).linear(X[None], WEIGHT, Y),
        ValueError,
        r"input must have shape \[N, D\], got \[1, 24, 6\]",
    ),
    "weight of other classes": (
        lambda: after(nothing).linear(X, WEIGHT[1:], Y),
        ValueError,
        r"linear_weight must have shape \[C, D\] with C = 30 \(num_classes\), got \[29, 6\]",
    ),
    "weight of another width": (
        lambda: after(nothing).linear(X, WEIGHT[:, 1:], Y),
        ValueError,
        r"linear_weight must have shape .* D = 6 \(from input\), got \[30, 5\]",
    ),
    "bias for past": (
        lambda: after(nothing).linear(X, WEIGHT, Y, WEIGHT[:, 0]),
        TypeError,
        "past must be what HardReplay.extend gave, got a torch.float32 tensor: linear_bias comes after it",
    ),
    "bias for past in evaluation": (
        lambda: after(lambda c: c.eval()).linear(X, WEIGHT, Y, WEIGHT[:, 0]),
        TypeError,
        "linear_bias comes after it",
    ),
    "features of another width": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y)).linear(X[:, 1:], WEIGHT[:, 1:], Y),
        ValueError,
        r"features must have shape \[N, D\] with D = 6, got \[24, 5\]",
    ),
    "logits after features": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y))(X @ WEIGHT.T, Y),
        ValueError,
        r"a ToastLoss that pools features \(num_features was given, or linear called\) is trained by linear",
    ),
    "features after logits": (
        lambda: after(lambda c: c(X @ WEIGHT.T, Y)).linear(X, WEIGHT, Y),
        ValueError,
        "a bank or loss that was given logits takes no features",
    ),
    "save_pool without num_features": (
        lambda: after(lambda c: c.linear(X, WEIGHT, Y), pool_rows=9, save_pool=True),
        ValueError,
        "num_features must be given where save_pool is",
    ),
    "num_features without top_k": (
        lambda: MedoidBank(30, num_features=6),
        ValueError,
        "top_k must be given where features are pooled",
    ),
    "num_features 0": (
        lambda: MedoidBank(30, top_k=3, num_features=0),
        ValueError,
        "num_features must be an int >= 1 or None, got 0",
    ),
    "a label out of range": (
        lambda: MedoidBank(30, top_k=3).update(X, Y + 9, predictions()),
        IndexError,
        r"target must be in \[0, 30\) or ignore_index = -100, got 3",
    ),
    "probabilities of other classes": (
        lambda: MedoidBank(30, top_k=3).update(X, torch.eye(31)[:24], predictions()),
        ValueError,
        r"target of class probabilities must have shape \[24, 30\] \(from logits\), got \[24, 31\]",
    ),
    "predictions of too few classes": (
        lambda: MedoidBank(30, top_k=3).update(X, Y, predictions(2)),
        ValueError,
        "top_k must be at most the 2 classes of predictions, got 3",
    ),
    "predictions a tensor": (
        lambda: MedoidBank(30, top_k=3).update(X, Y, torch.zeros(3)),
        TypeError,
        "predictions must be TopPredictions or None, got a torch.float32 tensor",
    ),
    "logits None": (
        lambda: MedoidBank(30).update(None, Y),
        TypeError,
        "logits must be a floating-point tensor, got NoneType",
    ),
    "predictions of other classes": (
        lambda: MedoidBank(31, top_k=3).update(X, Y, predictions()),
        ValueError,
        r"predictions must be of 24 rows \(from features\) and 31 classes, got \[24\] and 30",
    ),
    "predictions of other rows": (
        lambda: MedoidBank(30, top_k=3).update(X[1:], Y[1:], predictions()),
        ValueError,
        r"predictions must be of 23 rows \(from features\) and 30 classes, got \[24\] and 30",
    ),
    "too many classes": (
        lambda: predictions()._replace(num_classes=2**24 + 1).packed(3, 1.0, X[:, 0]),
        ValueError,
        "predictions may be of 16777216 classes at most, got 16777217",
    ),
    "replay without cross-entropy": (lambda: kept(3), ValueError, "cross_entropy must be given with TopPredictions"),
    "replay without top_k": (
        lambda: kept(None, cross_entropy=X[:, 0]),
        ValueError,
        "top_k must be at most the 3 classes of predictions, got None",
    ),
    "replay of other rows": (
        lambda: kept(3, cross_entropy=X[:23, 0]),
        ValueError,
        r"cross_entropy must be a tensor of shape \[24\]",
    ),
    "memory of other rows": (
        lambda: PredictionMemory(9, 30, top_k=3).keep(torch.arange(9), predictions()),
        ValueError,
        r"logits must have shape \[9, 30\] \(from sample and num_classes\), got \[24, 30\]",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_loss_that_pools_nothing_needs_no_top_k():
    criterion = ToastLoss(30, alpha=0.0)
    for _ in range(2):
        torch.testing.assert_close(criterion.linear(X, WEIGHT, Y), linear_toast_loss(X, WEIGHT, Y))
        criterion.eval()
