"""What TOAST adds to a whole training step, and the loss behind a linear head.

    pytest bench/bench_training_step.py    (make bench, make gpu; bench/results/training_step.csv and head.csv)

The step is the training program's: a backbone of python/backbones.py, AdamW, a batch of new rows and half as many
replayed ones. Cross-entropy gets as many rows, so what is compared is the loss, the pooling of logits and the choice of
the hardest rows, and not the larger batch; and once the new rows alone. What set_epoch does once an epoch stands apart.
"""

import backbones
import pytest
import torch
import torch.nn.functional as F
from harness import measure, ratio
from peers import compiled, left_out, normal, random_labels
from results import DEVICE, OURS

from toast_kernels import HardReplay, MedoidBank, ToastLoss, toast_loss

ON_GPU = DEVICE.type == "cuda"
BATCH, CLASSES, POOL = (256, 21_841, 100_000) if ON_GPU else (128, 3250, 30_379)
HEADS = [(4096, 2048, 21_841), (2048, 2048, 128_256)] if ON_GPU else [(256, 256, 21_841)]
DTYPE, TOLERANCE = (torch.bfloat16, 2e-2) if ON_GPU else (torch.float32, 1e-5)


class Step:
    """One training step on fixed rows."""

    def __init__(self, size):
        torch.manual_seed(0)
        self.model = backbones.build("cnn", CLASSES, 1, size).to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def __call__(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def test_training_step(show):
    size = 32
    new = normal(BATCH, 1, size, size, dtype=torch.float32)
    labels = random_labels(BATCH, CLASSES)
    replay, criterion = HardReplay(fraction=0.5), ToastLoss(CLASSES, top_k=64)
    criterion.set_epoch(0, 2)
    toast, plain, alone = Step(size), Step(size), Step(size)
    with torch.no_grad():  # an epoch's pool, and its medoids: its memory is there from then on
        logits = toast.model(new)
        for _ in range(POOL // BATCH):
            criterion(logits, labels)
    criterion.set_epoch(1, 2)

    def toast_step():
        if criterion.bank.num_rows + BATCH > POOL:
            criterion.bank.reset()  # as at the end of an epoch
        x, y, past = replay.extend(new, labels)
        logits = toast.model(x)
        loss, stats = criterion(logits, y, past=past, return_stats=True)
        replay.keep(x, y, logits, stats.cross_entropy)
        toast(loss)

    for _ in range(2):
        toast_step()
    rows, classes, _ = replay.extend(new, labels)

    cases = {
        OURS: toast_step,
        "F.cross_entropy": lambda: plain(F.cross_entropy(plain.model(rows), classes)),
        "F.cross_entropy, new rows only": lambda: alone(F.cross_entropy(alone.model(new), labels)),
    }
    times = measure(
        "training_step", cases, size=f"{len(rows)} rows, {CLASSES} classes", dtype="float32", work="training step",
        classes=CLASSES, rounds=40, seconds=30.0,
    )  # fmt: skip
    show(times[OURS], cost_of_toast=ratio(times, "F.cross_entropy", OURS)[0])


def test_set_epoch():
    """The medoids of an epoch's pooled logits, and soft targets of them: what set_epoch does."""
    bank = MedoidBank(CLASSES, top_k=64)
    for start in range(0, POOL, BATCH):
        rows = min(BATCH, POOL - start)
        bank.update(normal(rows, CLASSES, dtype=torch.float32, seed=start), random_labels(rows, CLASSES, seed=start))
    measure(
        "set_epoch", {OURS: bank.compute}, size=f"{POOL} rows, {CLASSES} classes, by {BATCH}", dtype="float16",
        work="medoids and soft targets", rounds=5, seconds=10.0,
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "width", "classes"), HEADS)
def test_head(show, rows, width, classes):
    """Plain cross-entropy behind a linear head, forward and backward; fused heads never hold all logits."""
    x = normal(rows, width, dtype=DTYPE).div_(3).requires_grad_()
    weight = (normal(classes, width, dtype=DTYPE, seed=1) / width**0.5).requires_grad_()  # logits of deviation 3
    target = random_labels(rows, classes)
    peers = {
        OURS: lambda: toast_loss(x @ weight.t(), target),
        "F.cross_entropy": lambda: F.cross_entropy(x @ weight.t(), target),
        "torch.compile": compiled(lambda: F.cross_entropy((x @ weight.t()).float(), target)),
    }
    if not left_out("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        peers["Liger, fused"] = lambda: liger_fused_linear_cross_entropy(x, weight, target)
    if not left_out("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        peers["Cut Cross-Entropy"] = lambda: linear_cross_entropy(x, weight, target)

    cases = {name: lambda loss=loss: torch.autograd.grad(loss(), (x, weight)) for name, loss in peers.items()}
    expected = [gradient.float() for gradient in cases[OURS]()]
    for name, case in cases.items():
        torch.testing.assert_close(peers[name]().float(), peers[OURS]().float(), rtol=TOLERANCE, atol=0, msg=name)
        for gradient, wanted in zip(case(), expected, strict=True):
            error = (gradient.float() - wanted).norm() / wanted.norm()
            assert error < TOLERANCE, f"{name} has another gradient: off by {error:.1e}"
    times = measure(
        "head", cases, size=f"{rows} x {width} x {classes}", dtype=str(DTYPE).removeprefix("torch."),
        work="forward + backward", classes=classes, rounds=15,
    )  # fmt: skip
    show(times[OURS])
