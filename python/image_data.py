"""What a data set is to the training programs, and where each one is found by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor


class DataError(Exception):
    """The data are missing or unreadable, and the message says what to do about it."""


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8 [N, channels, height, width]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def of_classes(self, num_classes: int) -> Split:
        keep = self.labels < num_classes
        return Split(self.images[keep], self.labels[keep])


@dataclass(frozen=True)
class ImageData:
    """Three splits held in memory as bytes, and what the programs need to know to train on them."""

    name: str
    classes: list[str]
    train: Split
    val: Split
    test: Split
    input_size: int  # the network sees input_size x input_size crops of the stored images
    augmentation: str  # a name in augment.AUGMENTATIONS

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def to(self, device: torch.device) -> ImageData:
        return replace(self, **{name: split.to(device) for name, split in self.splits().items()})

    def first_classes(self, num_classes: int) -> ImageData:
        """The same data with only the first `num_classes` classes."""
        if not 2 <= num_classes <= len(self.classes):
            raise DataError(f"--classes must be in [2, {len(self.classes)}] for {self.name}, got {num_classes}")
        splits = {name: split.of_classes(num_classes) for name, split in self.splits().items()}
        return replace(self, classes=self.classes[:num_classes], **splits)


def load(name: str, data_dir: Path, image_size: int) -> ImageData:
    """The data set called `name`: glyphs, all-glyphs, fashion-mnist, digits, or folder:PATH."""
    if name in ("glyphs", "all-glyphs"):
        import glyphs

        return glyphs.load(data_dir, all_classes=name == "all-glyphs")
    if name == "fashion-mnist":
        import fashion_mnist

        return fashion_mnist.load(data_dir)
    if name == "digits":
        import digits

        return digits.load()
    if name.startswith("folder:"):
        import image_folder

        return image_folder.load(Path(name.removeprefix("folder:")), image_size)
    raise DataError(f"unknown data set {name!r}: expected glyphs, all-glyphs, fashion-mnist, digits or folder:PATH")
