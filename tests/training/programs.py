"""The programs in python/ as the tests use them."""

from pathlib import Path

import optional
import torch

PYTHON = Path(__file__).resolve().parents[2] / "python"
optional.skip_without("matplotlib", "PIL", "fontTools", "rich", "scipy")

import augment  # noqa: E402, F401
import backbones  # noqa: E402, F401
import checkpoint  # noqa: E402, F401
import digits  # noqa: E402, F401
import fashion_mnist  # noqa: E402, F401
import glyphs  # noqa: E402, F401
import image_data  # noqa: E402
import image_folder  # noqa: E402, F401
import metrics  # noqa: E402, F401
import options  # noqa: E402, F401
import pictures  # noqa: E402, F401
import record  # noqa: E402, F401
import seeds  # noqa: E402, F401
import study_cost  # noqa: E402, F401
import study_methods  # noqa: E402, F401
import study_plan  # noqa: E402, F401
import study_regimes  # noqa: E402, F401
import study_report  # noqa: E402, F401
import study_results  # noqa: E402, F401
import study_run  # noqa: E402, F401
import study_table  # noqa: E402, F401
import train  # noqa: E402, F401
import train_report  # noqa: E402, F401
import training  # noqa: E402, F401

import study  # noqa: E402, F401


def squares(*sizes: int) -> image_data.ImageData:
    """So many images to train on, to validate and to test: of six classes, a bright square's place in noise says
    which."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        labels = torch.arange(n) % 6
        images = torch.randint(0, 120, (n, 1, 16, 16), generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, 5 * (label // 3) : 5 * (label // 3) + 8, 4 * (label % 3) : 4 * (label % 3) + 7] += 130
        return image_data.Split(images.byte(), labels)

    classes = [f"square {label}" for label in range(6)]
    return image_data.ImageData("squares", classes, *map(split, sizes), 16, "glyphs")
