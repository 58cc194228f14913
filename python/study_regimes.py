"""The conditions that a study trains under: each differs from the base in one factor, with as many
steps unless that is the epochs.

What is drawn (which images stay, which labels are wrong, which classes are rare) changes with the seed and is the same
for all methods. Validation and test images are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from image_data import ImageData, Split
from torch import Generator, Tensor


@dataclass(frozen=True)
class Regime:
    title: str
    share: float = 1.0  # of each class's training images, at least one
    rarest: float = 1.0  # share that the rarest class keeps; the others geometrically in between
    noise: float = 0.0  # share of training labels replaced by another class's, evenly drawn
    epochs: float = 1.0
    augmentation: str | None = None  # a name in augment.AUGMENTATIONS instead of the data's own
    mix: str = "none"


REGIMES = {
    "base": Regime("base: all data, the usual augmentation"),
    "epochs-x4": Regime("four times the epochs", epochs=4),
    "epochs-x8": Regime("eight times the epochs", epochs=8),
    "half": Regime("half of the data", share=0.5),
    "quarter": Regime("a quarter of the data", share=0.25),
    "no-augmentation": Regime("no augmentation", augmentation="none"),
    "mixup": Regime("Mixup", mix="mixup"),
    "cutmix": Regime("CutMix", mix="cutmix"),
    "noise-20": Regime("20% wrong labels", noise=0.2),
    "noise-40": Regime("40% wrong labels", noise=0.4),
    "imbalance": Regime("imbalance: the rarest class has a tenth", rarest=0.1),
}


def apply(regime: Regime, data: ImageData, seed: int) -> ImageData:
    """The same data under this regime."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = len(data.classes)
    rank = torch.randperm(num_classes, generator=generator).double() / (num_classes - 1)
    rows = _keep(data.train.labels, regime.share * regime.rarest**rank, generator)
    labels = _with_noise(data.train.labels[rows], regime.noise, num_classes, generator)
    return replace(
        data,
        train=Split(data.train.images[rows], labels),
        augmentation=regime.augmentation or data.augmentation,
    )


def _keep(labels: Tensor, share: Tensor, generator: Generator) -> Tensor:
    """Rows, ascending: of each class its share [C], rounded, at least one where there is one, drawn evenly."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    count = labels.bincount(minlength=len(share))
    place = torch.arange(len(labels)) - (count.cumsum(0) - count)[labels[by_class]]
    quota = (share * count).round().clamp(min=1)
    return by_class[place < quota[labels[by_class]]].sort().values


def _with_noise(labels: Tensor, noise: float, num_classes: int, generator: Generator) -> Tensor:
    wrong = torch.randperm(len(labels), generator=generator)[: round(noise * len(labels))]
    shift = torch.randint(1, num_classes, (len(wrong),), generator=generator)
    labels = labels.clone()
    labels[wrong] = (labels[wrong] + shift) % num_classes
    return labels
