"""Neither torch's default device nor its default dtype changes a result: what the library makes is where its inputs
are."""

import contextlib

import pytest
import torch
from blended_kl_cases import Case, normal
from medoid_cases import METRICS

from toast_kernels import (
    HardReplay,
    MedoidBank,
    PredictionMemory,
    SoftTargets,
    ToastLoss,
    class_medoids,
    mixup_triple,
    toast_loss,
)
from toast_kernels.mixup import main_class


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}
LOSSES = {
    "plain": Case(6, 33),
    "everything": Case(6, 33, soft="dense", past="dense", target="mixup", weighted=True, label_smoothing=0.1),
    "lists": Case(6, 33, soft="top-k", past="top-k", reduction="none"),
    "past logits": Case(6, 33, past="logits"),
    "probabilities": Case(6, 33, target="probabilities", past="dense"),
    "float64": Case(6, 33, torch.float64, soft="dense", past="dense"),
    "float16": Case(6, 33, torch.float16, soft="bfloat16"),
}
LOGITS, LABELS = normal(40, 7, seed=1).float(), torch.arange(40) % 7
IMAGES = normal(40, 3, seed=2).float()


def loss(case, backend):
    def run():
        leaf = logits.clone().requires_grad_()
        loss, stats = toast_loss(leaf, target, return_stats=True, backend=backend, **keywords)
        loss.backward(upstream)
        return (loss.detach(), leaf.grad, *stats)

    logits, target, keywords = case.arguments()
    upstream = torch.ones(
        6 if case.reduction == "none" else (), dtype=Case.dtype if case.dtype != torch.float64 else case.dtype
    )
    return run


def loss_without_past_index(backend):
    def run():
        triple = LABELS, LABELS.roll(1), 0.3
        return (toast_loss(LOGITS, triple, past=LOGITS.flip(0), backend=backend),)

    return run


def compiled_loss():
    soft = SoftTargets.from_logits(LOGITS[:7])
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: toast_loss(z, LABELS, soft_targets=soft, alpha=0.3), backend="eager")
    return (compiled(LOGITS),)


def soft_targets():
    tables = (
        SoftTargets.from_logits(LOGITS, 2.0),
        SoftTargets.from_logits(LOGITS.bfloat16(), top_k=3),
        SoftTargets.from_probs(LOGITS.softmax(1), filled=LABELS > 2),
        SoftTargets.view_logits(LOGITS, 3.0),
    )
    moved = [table.to("cpu")[1:3] for table in tables]
    return [x for table in moved for x in (table.values, table.entropy, table.filled, table.dense())]


def medoids(metric, backend):
    return lambda: (class_medoids(LOGITS, LABELS, 7, metric=metric, backend=backend),)


def bank(**settings):
    def run():
        bank = MedoidBank(7, **settings)
        bank.update(LOGITS[:20], LABELS[:20])
        bank.update(LOGITS[20:], (LABELS[20:], LABELS[:20], 0.7))
        table = bank.compute()
        return table.values, table.entropy, bank.medoids

    return run


def replay(**settings):
    def run():
        replay = HardReplay(0.5, **settings)
        torch.manual_seed(0)
        results = []
        for at in (0, 10, 20):
            x, y, past = replay.extend(IMAGES[at : at + 10], LABELS[at : at + 10])
            logits = LOGITS[: len(x)].clone().requires_grad_()
            loss = toast_loss(
                logits, y, past=None if past is None else past.targets, reduction="none",
                past_index=None if past is None or past.targets is None else past.index,
            )  # fmt: skip
            loss.sum().backward()
            replay.keep(x, y, logits, loss.detach())
            results += [x, y, loss.detach(), logits.grad]
        return results

    return run


def memory():
    memory = PredictionMemory(40, 7, top_k=3, device="cpu")
    sample = torch.arange(20, device="cpu")
    memory.keep(sample, LOGITS[:20])
    past = memory.past(sample)
    return past.targets.values, past.index


def module():
    criterion = ToastLoss(7, reduction="sum").to_empty(device="cpu")
    criterion.reset_parameters()
    results = []
    for epoch in range(2):
        criterion.set_epoch(epoch, 2)
        logits = LOGITS.clone().requires_grad_()
        loss = criterion(logits, LABELS)
        loss.backward()
        results += [loss.detach(), logits.grad]
    return results


def share_just_below():
    """Which bfloat16 rounds to 0.9, from where on a row belongs to a class."""
    return (main_class((LABELS, LABELS.roll(1), 0.899), 0.9, -100),)


ROWS = torch.eye(3) * 0.6 + torch.eye(3).roll(1, 0) * 0.4
RUNS = {
    "compiled loss": compiled_loss,
    "soft targets": soft_targets,
    "bank": bank(),
    "bank of a fixed size": bank(pool_rows=50, top_k=2),
    "replay": replay(),
    "replay, top-k": replay(top_k=2),
    "memory": memory,
    "share just below": share_just_below,
    "mixup_triple": lambda: mixup_triple(ROWS),
    "module": module,
}
for backend in ("cpu", "reference"):
    RUNS |= {f"loss, {name}, {backend}": loss(case, backend) for name, case in LOSSES.items()}
    RUNS |= {f"medoids, {metric}, {backend}": medoids(metric, backend) for metric in METRICS}
    RUNS[f"loss without past_index, {backend}"] = loss_without_past_index(backend)


@pytest.mark.parametrize("defaults", DEFAULTS)
@pytest.mark.parametrize("run", RUNS)
def test_results_do_not_depend_on_torchs_defaults(run, defaults):
    expected = RUNS[run]()
    with DEFAULTS[defaults]():
        results = RUNS[run]()
    for one, other in zip(results, expected, strict=True):
        assert (one.device, one.dtype) == (other.device, other.dtype)
        assert torch.equal(one, other)
