"""What TOAST adds to a whole training step, and the loss behind a linear head.

    pytest bench/bench_training_step.py    (make bench, make gpu; bench/results/training_step.csv, small_step.csv,
                                            step_graph.csv, set_epoch.csv and head.csv)

The step is the training program's: a backbone of python/backbones.py, AdamW, a batch of new rows and half as many
replayed ones. Cross-entropy gets as many rows, so what is compared is the loss, the pooling of logits and the choice of
the hardest rows, and not the larger batch; and once the new rows alone. What is left of a step without a model is
small_step, and on a GPU step_graph is a whole step as a CUDA graph. What set_epoch does once an epoch stands apart.
"""

import copy

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


SIZE = 32  # of an image


class Step:
    """One training step on fixed rows."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = backbones.build("cnn", CLASSES, 1, SIZE).to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, capturable=ON_GPU)

    def __call__(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


class ToastStep(Step):
    """The same with TOAST: replayed rows and soft targets of an epoch's pool."""

    def __init__(self, new, labels):
        super().__init__()
        self.new, self.labels = new, labels
        self.replay, self.criterion = HardReplay(fraction=0.5), ToastLoss(CLASSES, top_k=64, pool_rows=POOL).to(DEVICE)
        self.criterion.set_epoch(0, 2)
        with torch.no_grad():
            logits = self.model(new)
            for _ in range(POOL // len(new)):
                self.criterion.bank.update(logits, labels)
        self.criterion.set_epoch(1, 2)
        self.steps = 0
        for _ in range(3):
            self()

    def __call__(self):
        x, y, past = self.replay.extend(self.new, self.labels)
        logits = self.model(x)
        loss, stats = self.criterion(logits, y, past=past, return_stats=True)
        super().__call__(loss)
        self.replay.keep(x, y, logits, stats.cross_entropy)

    def whole(self):
        """With the pool emptied when it is full, as at the end of an epoch."""
        self.steps += 1
        if self.steps % (POOL // BATCH) == 0:
            self.criterion.bank.reset()
        self()


def test_training_step(show):
    new = normal(BATCH, 1, SIZE, SIZE, dtype=torch.float32)
    labels = random_labels(BATCH, CLASSES)
    toast, plain, alone = ToastStep(new, labels), Step(), Step()
    toast.criterion.bank.reset()
    rows, classes, _ = copy.deepcopy(toast.replay).extend(new, labels)

    cases = {
        OURS: toast.whole,
        "F.cross_entropy": lambda: plain(F.cross_entropy(plain.model(rows), classes)),
        "F.cross_entropy, new rows only": lambda: alone(F.cross_entropy(alone.model(new), labels)),
    }
    times = measure(
        "training_step", cases, op="blended_kl", size=f"{len(rows)} rows, {CLASSES} classes", dtype="float32",
        work="training step", classes=CLASSES, rounds=40, seconds=30.0,
    )  # fmt: skip
    show(times[OURS], cost_of_toast=ratio(times, "F.cross_entropy", OURS)[0])


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_step_graph(show):
    """A whole step as one launch of a CUDA graph, with TOAST and with cross-entropy on the same rows."""
    new = normal(BATCH, 1, SIZE, SIZE, dtype=torch.float32)
    labels = random_labels(BATCH, CLASSES)
    toast, plain = ToastStep(new, labels), Step()
    rows, classes, _ = copy.deepcopy(toast.replay).extend(new, labels)
    cases = {
        OURS: captured(toast),
        "F.cross_entropy": captured(lambda: plain(F.cross_entropy(plain.model(rows), classes))),
    }
    times = measure(
        "step_graph", cases, op="blended_kl", size=f"{len(rows)} rows, {CLASSES} classes", dtype="float32",
        work="training step", classes=CLASSES, before={OURS: toast.criterion.bank.reset}, rounds=40,
    )  # fmt: skip
    show(times[OURS], cost_of_toast=ratio(times, "F.cross_entropy", OURS)[0])


def captured(step):
    """The replay of a CUDA graph of a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def test_small_step(show):
    """All that TOAST does in a step but for the model: replay, loss forward and backward, pool."""
    batch, classes, width = 128, 100, 16
    replay, criterion = HardReplay(fraction=0.5), ToastLoss(classes, pool_rows=256 * batch).to(DEVICE)
    new, labels = normal(batch, width, dtype=torch.float32), random_labels(batch, classes)
    logits = normal(batch + batch // 2, classes, dtype=torch.float32).requires_grad_()
    target = random_labels(len(logits), classes)
    for epoch in range(2):
        criterion.set_epoch(epoch, 2)
        criterion(logits, target)
    steps = 0

    def toast():
        nonlocal steps
        steps += 1
        if steps % 250 == 0:
            criterion.bank.reset()
        x, y, past = replay.extend(new, labels)
        loss, stats = criterion(logits, y, past, return_stats=True)
        logits.grad = None
        loss.backward()
        replay.keep(x, y, logits, stats.cross_entropy)

    def plain():
        logits.grad = None
        F.cross_entropy(logits, target).backward()

    for _ in range(3):
        toast()
    times = measure(
        "small_step", {OURS: toast, "F.cross_entropy": plain}, op="blended_kl",
        size=f"{len(logits)} rows, {classes} classes", dtype="float32", work="replay, loss, pool", classes=classes,
    )  # fmt: skip
    show(times[OURS], cost_of_toast=ratio(times, "F.cross_entropy", OURS)[0])


def test_set_epoch():
    """The medoids of an epoch's pooled logits, and soft targets of them: what set_epoch does."""
    bank = MedoidBank(CLASSES, top_k=64)
    for start in range(0, POOL, BATCH):
        rows = min(BATCH, POOL - start)
        bank.update(normal(rows, CLASSES, dtype=torch.float32, seed=start), random_labels(rows, CLASSES, seed=start))
    measure(
        "set_epoch", {OURS: bank.compute}, op="medoids", size=f"{POOL} rows, {CLASSES} classes, by {BATCH}",
        dtype="float16", work="medoids and soft targets", rounds=5, seconds=10.0,
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
        "head", cases, op="blended_kl", size=f"{rows} x {width} x {classes}", dtype=str(DTYPE).removeprefix("torch."),
        work="forward + backward", classes=classes, rounds=15,
    )  # fmt: skip
    show(times[OURS])
