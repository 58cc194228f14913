"""A user's program as mypy --strict sees it (make lint): what is inferred, and what is an error before it runs."""

import torch
from torch import Tensor
from typing_extensions import assert_type

from toast_kernels import (
    HardReplay,
    MedoidBank,
    PastPredictions,
    PredictionMemory,
    SoftTargets,
    ToastLoss,
    ToastStats,
    TopPredictions,
    class_medoids,
    linear_toast_loss,
    mixup_triple,
    toast_loss,
)


def functions(logits: Tensor, y: Tensor, stats: bool) -> None:
    assert_type(toast_loss(logits, y), Tensor)
    assert_type(toast_loss(logits, (y, y, 0.5), reduction="none", return_stats=True), tuple[Tensor, ToastStats])
    assert_type(toast_loss(logits, y, return_stats=stats), Tensor | tuple[Tensor, ToastStats])
    assert_type(class_medoids(logits, y, 3, metric="cosine", backend="reference"), Tensor)
    assert_type(mixup_triple(torch.eye(3)), tuple[Tensor, Tensor, Tensor])


def heads(x: Tensor, weight: Tensor, y: Tensor, stats: bool) -> None:
    assert_type(linear_toast_loss(x, weight, (y, y, 0.5), reduction="sum", shift=True), Tensor)
    assert_type(linear_toast_loss(x, weight, y, return_stats=True), tuple[Tensor, ToastStats])
    assert_type(linear_toast_loss(x, weight, y, return_top_k=3), tuple[Tensor, TopPredictions])
    loss, of_rows, predictions = linear_toast_loss(x, weight, y, return_stats=True, return_top_k=3)
    assert_type((loss, of_rows, predictions), tuple[Tensor, ToastStats, TopPredictions])
    criterion, replay = ToastLoss(3, top_k=2), HardReplay(0.5, top_k=2)
    criterion.set_epoch(0, 2)
    x, target, past = replay.extend(x.detach(), y)
    loss, of_rows, predictions = criterion.linear(x, weight, target, past, return_stats=True, return_top_k=True)
    replay.keep(x, target, predictions, of_rows.cross_entropy)
    assert_type(criterion.linear(x, weight, target, past), Tensor)
    assert_type(criterion.linear(x, weight, target, past, return_stats=True), tuple[Tensor, ToastStats])
    assert_type(criterion.linear(x, weight, target, past, return_top_k=True), tuple[Tensor, TopPredictions])
    assert isinstance(criterion.linear(x, weight, target, past, return_stats=stats), tuple)


def training(x: dict[str, Tensor], y: Tensor) -> None:
    criterion, replay = ToastLoss(3, metric="sqeuclidean"), HardReplay(0.5)
    criterion.set_epoch(0, 2)
    x, target, past = replay.extend(x, y)
    assert_type(past, PastPredictions | None)
    logits = x["features"]
    loss, stats = criterion(logits, target, past, return_stats=True)
    assert_type(criterion(logits, target, past), Tensor)
    assert_type(loss, Tensor)
    assert_type(stats, ToastStats)
    replay.keep(x, target, logits, stats.cross_entropy)

    memory = PredictionMemory(6, 3)
    memory.keep(torch.arange(6), logits[:6])
    assert_type(memory.past(torch.arange(6)), PastPredictions)
    bank = MedoidBank(3)
    bank.update(logits, target)
    assert_type(bank.compute(), SoftTargets)


def wrong(logits: Tensor, y: Tensor) -> None:
    toast_loss(logits, y, reduction="avg")  # type: ignore[call-overload]
    toast_loss(logits, y, backend="cpp")  # type: ignore[call-overload]
    linear_toast_loss(logits, logits, y, reduction="avg")  # type: ignore[call-overload]
    linear_toast_loss(logits, logits, 3)  # type: ignore[call-overload]
    class_medoids(logits, y, 3, metric="manhattan")  # type: ignore[arg-type]
    ToastLoss(3, reduction="avg")  # type: ignore[arg-type]
    ToastLoss(3, metric="manhattan", backend="cpp")  # type: ignore[arg-type]
