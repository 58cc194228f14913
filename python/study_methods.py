"""Self-distillation and its relatives, each as a setting of toast_kernels' loss, with its source and settings.

Every method is a loss, called as loss(logits, y, past, return_stats=True), and a past: what rows are distilled from.
METHODS has the settings that each is tried with; the first of them are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_kernels import HardReplay, PastPredictions, PredictionMemory, SoftTargets, ToastLoss, toast_loss


class NoPast:
    """No row is distilled from another prediction. The others have the same two methods."""

    def extend(self, x: Tensor, y: Any, rows: Tensor) -> tuple[Tensor, Any, PastPredictions | None]:
        """The batch as it is trained on, of the training images `rows`, and the predictions it is distilled from."""
        return x, y, None

    def keep(self, x: Tensor, y: Any, logits: Tensor, cross_entropy: Tensor, rows: Tensor) -> None:
        """Takes what the network made of the extended batch."""


class Replay(NoPast):
    """The last step's rows again, distilled from the predictions that they got there."""

    def __init__(self, fraction: float, temperature: float, distil_fraction: float = 1.0) -> None:
        self.replay = HardReplay(fraction, temperature=temperature, distil_fraction=distil_fraction)

    def extend(self, x: Tensor, y: Any, rows: Tensor) -> tuple[Tensor, Any, PastPredictions | None]:
        return self.replay.extend(x, y)

    def keep(self, x: Tensor, y: Any, logits: Tensor, cross_entropy: Tensor, rows: Tensor) -> None:
        self.replay.keep(x, y, logits, cross_entropy)


class OwnPredictions(NoPast):
    """Each image's prediction of an epoch ago."""

    def __init__(self, num_samples: int, num_classes: int, temperature: float) -> None:
        self.memory = PredictionMemory(num_samples, num_classes, temperature=temperature)

    def extend(self, x: Tensor, y: Any, rows: Tensor) -> tuple[Tensor, Any, PastPredictions]:
        return x, y, self.memory.past(rows)

    def keep(self, x: Tensor, y: Any, logits: Tensor, cross_entropy: Tensor, rows: Tensor) -> None:
        self.memory.keep(rows, logits)


class Classmates(NoPast):
    """What the network says, in the same step and without a gradient, of another image of the class, drawn at random.

    An image that is alone in its class is its own classmate.
    """

    def __init__(
        self, labels: Tensor, temperature: float, predict: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> None:
        self.predict, self.temperature, self.generator = predict, temperature, generator
        self.by_class = labels.argsort(stable=True)
        self.place = self.by_class.argsort()  # of each row in by_class
        count = labels.bincount()
        self.first, self.count = (count.cumsum(0) - count)[labels], count[labels]  # of each row's class

    def extend(self, x: Tensor, y: Any, rows: Tensor) -> tuple[Tensor, Any, PastPredictions]:
        targets = SoftTargets.view_logits(self.predict(self.classmates(rows)), self.temperature)
        index = torch.arange(len(rows), device=rows.device)
        return x, y, PastPredictions(targets, index, len(rows), temperature=self.temperature)

    def classmates(self, rows: Tensor) -> Tensor:
        first, count = self.first[rows], self.count[rows]
        draw = torch.rand(len(rows), generator=self.generator, device=rows.device)
        ahead = 1 + (draw * (count - 1)).long()
        return self.by_class[first + (self.place[rows] - first + ahead) % count]


class VirtualTeacher(nn.Module):
    """TF-KD's: probability `correct` on the label and the rest spread evenly, through a softmax at `temperature`.

    As in the released code: the student is not softened. At temperature 20 this is nearly uniform smoothing.
    """

    def __init__(self, num_classes: int, alpha: float, temperature: float, correct: float = 0.99) -> None:
        super().__init__()
        teacher = torch.full((num_classes, num_classes), (1 - correct) / (num_classes - 1)).fill_diagonal_(correct)
        self.alpha, self.table = alpha, SoftTargets.from_logits(teacher, temperature)

    def set_epoch(self, epoch: int) -> None:
        pass

    def forward(self, logits: Tensor, y: Any, past: None, return_stats: bool) -> tuple[Tensor, Any]:
        return toast_loss(logits, y, soft_targets=self.table, alpha=self.alpha, return_stats=return_stats)


class ClassMeans(nn.Module):
    """OLS: the class's mean probabilities over the last epoch's rows that were classified rightly.

    A class without such a row is trained with its label alone, and so is the first epoch [choice].
    """

    def __init__(self, num_classes: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.table = alpha, SoftTargets.empty(num_classes, num_classes)
        self.sums, self.counts = torch.zeros(num_classes, num_classes), torch.zeros(num_classes)

    def set_epoch(self, epoch: int) -> None:
        means = self.sums / self.counts.clamp(min=1)[:, None]
        self.table = SoftTargets.from_probs(means, filled=self.counts > 0)
        self.sums.zero_()
        self.counts.zero_()

    def forward(self, logits: Tensor, y: Tensor, past: None, return_stats: bool) -> tuple[Tensor, Any]:
        loss, stats = toast_loss(logits, y, soft_targets=self.table, alpha=self.alpha, return_stats=True)
        right = stats.argmax == y
        self.sums.index_add_(0, y[right], logits.detach()[right].softmax(dim=1))
        self.counts += y[right].bincount(minlength=len(self.counts))
        return loss, stats


class OwnTargets(ToastLoss):
    """PS-KD: cross-entropy with (1 - a) onehot(y) + a q, where q is the image's prediction of an epoch ago.

    a = alpha (epoch + 1) / num_epochs, and 0 in the first epoch. The gradient is that of (1 - a) times the loss with
    past_weight = a / (1 - a) and temperature 1.
    """

    def __init__(self, num_classes: int, alpha: float, num_epochs: int) -> None:
        super().__init__(num_classes, alpha=0.0, temperature=1.0, num_epochs=num_epochs)
        self.last_share = alpha

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.share = self.last_share * (epoch + 1) / self.num_epochs if epoch else 0.0
        self.past_weight = self.share / (1 - self.share)

    def forward(self, logits: Tensor, y: Tensor, past: PastPredictions, return_stats: bool) -> tuple[Tensor, Any]:
        loss, stats = super().forward(logits, y, past, return_stats=True)
        return (1 - self.share) * loss, stats


@dataclass(frozen=True)
class Setting:
    """What a method is made for: the size of the task, and a network to ask for predictions."""

    labels: Tensor  # int64 [training images]
    num_classes: int
    num_epochs: int
    predict: Callable[[Tensor], Tensor]  # rows of the training images to logits, newly augmented, without a gradient
    generator: torch.Generator


def _toast(at: Setting, **arguments: float) -> ToastLoss:
    arguments = {"alpha": 0.0, **arguments}
    return ToastLoss(
        at.num_classes, num_epochs=at.num_epochs, pool_rows=len(at.labels), dtype=torch.float32, **arguments
    )


def cross_entropy(at: Setting, label_smoothing: float = 0.0):
    return _toast(at, label_smoothing=label_smoothing), NoPast()


def ols(at: Setting, alpha: float):
    return ClassMeans(at.num_classes, alpha), NoPast()


def tf_kd(at: Setting, alpha: float, temperature: float):
    return VirtualTeacher(at.num_classes, alpha, temperature), NoPast()


def ps_kd(at: Setting, alpha: float):
    return OwnTargets(at.num_classes, alpha, at.num_epochs), OwnPredictions(len(at.labels), at.num_classes, 1.0)


def cs_kd(at: Setting, past_weight: float, temperature: float):
    past = Classmates(at.labels, temperature, at.predict, at.generator)
    return _toast(at, past_weight=past_weight, temperature=temperature), past


def toast(at: Setting, past_weight: float, alpha: float = 0.0, temperature: float = 3.0, fraction: float = 0.5,
          distil_fraction: float = 1.0):  # fmt: skip
    loss = _toast(at, alpha=alpha, past_weight=past_weight, temperature=temperature)
    return loss, Replay(fraction, temperature, distil_fraction)


def stage1(at: Setting, alpha: float):
    return _toast(at, alpha=alpha), NoPast()


def memory(at: Setting, past_weight: float, temperature: float = 3.0):
    past = OwnPredictions(len(at.labels), at.num_classes, temperature)
    return _toast(at, past_weight=past_weight, temperature=temperature), past


@dataclass(frozen=True)
class Method:
    title: str
    source: str
    published: str
    make: Callable  # (Setting, **settings) -> (loss, past)
    trials: tuple[dict[str, float], ...] = ()  # what it is tried with on the validation images, the published first
    rows: float = 1.0  # forward rows of a step, in new rows
    mixes: bool = True  # defined for images mixed of two classes
    budget: float = 1.0  # epochs, in the others' epochs


METHODS = {
    "ce": Method("cross-entropy", "", "", cross_entropy,
        ({"lr": 0.01, "weight_decay": 0.02}, {"lr": 0.005, "weight_decay": 0.02}, {"lr": 0.01, "weight_decay": 0.2})),
    "smoothing": Method("label smoothing", "Szegedy et al., CVPR 2016", "epsilon 0.1", cross_entropy,
        tuple({"label_smoothing": value} for value in (0.1, 0.05, 0.2))),
    "ols": Method("OLS, class means", "Zhang et al., IEEE TIP 2021", "alpha 0.5", ols,
        tuple({"alpha": value} for value in (0.5, 0.25, 0.75)), mixes=False),
    "ps-kd": Method("PS-KD, own predictions", "Kim et al., ICCV 2021", "alpha_T 0.8, ramping linearly, T 1", ps_kd,
        tuple({"alpha": value} for value in (0.8, 0.5, 0.3)), mixes=False),
    "dlb": Method("DLB, last mini-batch", "Shen et al., CVPR 2022", "T 3, weight 1, every row twice in a row", toast,
        tuple({"past_weight": value, "fraction": 1} for value in (1, 0.3, 3)), rows=2),
    "tf-kd": Method("TF-KD, virtual teacher", "Yuan et al., CVPR 2020",
        "teacher 0.99 at T 20; weight by data set, of which 0.1 is tried first", tf_kd,
        tuple({"alpha": value, "temperature": 20} for value in (0.1, 0.05, 0.2))),
    "cs-kd": Method("CS-KD, a classmate", "Yun et al., CVPR 2020", "T 4, weight 1", cs_kd,
        tuple({"past_weight": value, "temperature": 4} for value in (1, 0.3, 3)), rows=2, mixes=False),
    "stage1": Method("TOAST's stage 1, class medoids", "Yin et al., JAS 2024; ramp: PS-KD", "alpha 0.8", stage1,
        tuple({"alpha": value} for value in (0.8, 0.3, 0.1))),
    "stage2": Method("TOAST's stage 2, hard rows again", "Yin et al., JAS 2024; T, weight: DLB", "T 3, weight 1", toast,
        tuple({"past_weight": value} for value in (1, 0.3, 3)), rows=1.5),
    "stage2-half": Method("stage 2, all rows again, the hard half distilled", "a reading of it", "T 3, weight 1", toast,
        tuple({"past_weight": value, "fraction": 1, "distil_fraction": 0.5} for value in (1, 0.3, 3)), rows=2),
    "stage2-memory": Method("stage 2, own predictions of an epoch ago", "a reading of it", "T 3, weight 1", memory,
        tuple({"past_weight": value} for value in (1, 0.3, 3)), mixes=False),
    "toast": Method("TOAST, both stages", "Yin et al., JAS 2024; settings: PS-KD, DLB", "alpha 0.8, T 3, weight 1",
        toast,
        ({"alpha": 0.8, "past_weight": 1}, {"alpha": 0.3, "past_weight": 1}, {"alpha": 0.1, "past_weight": 0.3}),
        rows=1.5),
    "ce-1.5": Method("cross-entropy for 1.5 times the epochs", "", "", cross_entropy, budget=1.5),
    "ce-2": Method("cross-entropy for twice the epochs", "", "", cross_entropy, budget=2),
}  # fmt: skip
TRIALS = 3  # of every method that has settings of its own
