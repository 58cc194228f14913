"""scikit-learn's digits: 1,797 grey 8 x 8 pictures in ten classes, which its wheel carries."""

from __future__ import annotations

import torch
from image_data import DataError, ImageData, Split

INPUT_SIZE = 16  # the least that the networks take


def load() -> ImageData:
    """Dealt out 60 : 20 : 20, the same way every time."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the data set digits needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().byte().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    val, test, train = order.split([len(order) // 5, len(order) // 5, len(order) - 2 * (len(order) // 5)])
    return ImageData(
        name="digits",
        classes=[str(digit) for digit in range(10)],
        **{name: Split(images[rows], labels[rows]) for name, rows in (("train", train), ("val", val), ("test", test))},
        input_size=INPUT_SIZE,
        augmentation="none",
    )
