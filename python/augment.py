"""Batches of bytes become batches of floats, randomly moved, and for Mixup and CutMix mixed: all in torch, batched.

Every random number comes from a generator that is given, so that a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Mixed = tuple[Tensor, Tensor, float]  # the labels y_a, the labels y_b, the share lam of y_a


@dataclass(frozen=True)
class Augmentation:
    """Each is the largest amount of a change whose amount is drawn anew for every image, evenly from both signs."""

    rotation: float = 0.0  # degrees
    shear: float = 0.0  # shift across, for one up
    scale: float = 0.0  # log of the factor
    shift: float = 0.0  # share of the image
    contrast: float = 0.0  # share of the ink taken away
    blur: float = 0.0  # weight of the 3 x 3 mean
    noise: float = 0.0  # standard deviation
    flip: bool = False


NONE = Augmentation()
AUGMENTATIONS = {
    "none": NONE,
    "glyphs": Augmentation(rotation=8, shear=0.25, scale=0.15, shift=0.06, contrast=0.4, blur=0.7, noise=0.08),
    "photos": Augmentation(scale=0.1, shift=0.1, flip=True),
}


def to_inputs(images: Tensor, size: int, augmentation: Augmentation, generator: Generator | None = None) -> Tensor:
    """uint8 [N, channels, height, width] to float32 [N, channels, size, size], about -1 to 1, augmented."""
    pixels = images.float().div_(255)
    if augmentation == NONE and images.shape[-2:] == (size, size):
        moved = pixels
    else:
        grid = F.affine_grid(
            _affine(len(images), augmentation, images.device, generator),
            [*images.shape[:2], size, size],
            align_corners=False,
        )
        moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    if augmentation.contrast:
        moved *= 1 - augmentation.contrast * _uniform(len(images), images.device, generator)
    if augmentation.blur:
        weight = augmentation.blur * _uniform(len(images), images.device, generator)
        moved = torch.lerp(moved, F.avg_pool2d(moved, 3, stride=1, padding=1), weight)
    if augmentation.noise:
        level = augmentation.noise * _uniform(len(images), images.device, generator)
        moved += level * torch.randn(moved.shape, device=images.device, generator=generator)
    return moved.sub_(0.5).mul_(2).contiguous(memory_format=torch.channels_last)


def _affine(n: int, augmentation: Augmentation, device: torch.device, generator: Generator | None) -> Tensor:
    """[n, 2, 3]: where each output position, in [-1, 1], is read in the input."""
    draws = torch.zeros(6, n, device=device)
    if augmentation != NONE:
        draws = torch.rand(6, n, device=device, generator=generator) * 2 - 1
    angle = draws[0] * math.radians(augmentation.rotation)
    shear = draws[1] * augmentation.shear
    scale = torch.exp(draws[2] * augmentation.scale)
    mirror = torch.where(draws[5] < 0, -1.0, 1.0) if augmentation.flip else torch.ones_like(angle)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x = torch.stack([cos * mirror, cos * shear - sin, 2 * augmentation.shift * draws[3]], dim=1)
    y = torch.stack([sin * mirror, sin * shear + cos, 2 * augmentation.shift * draws[4]], dim=1)
    return torch.stack([x, y], dim=1)


def _uniform(n: int, device: torch.device, generator: Generator | None) -> Tensor:
    return torch.rand(n, 1, 1, 1, device=device, generator=generator)


def mixup(x: Tensor, y: Tensor, generator: Generator) -> tuple[Tensor, Mixed]:
    """Zhang et al. 2018 with Beta(1, 1): a batch blended with itself in another order."""
    lam, order = _draw_mix(len(x), generator)
    order = order.to(x.device)
    return torch.lerp(x[order], x, lam), (y, y[order], lam)


def cutmix(x: Tensor, y: Tensor, generator: Generator) -> tuple[Tensor, Mixed]:
    """Yun et al. 2019 with Beta(1, 1): a box of every image comes from another of the batch."""
    lam, order = _draw_mix(len(x), generator)
    order = order.to(x.device)
    height, width = x.shape[-2:]
    side = math.sqrt(1 - lam)
    centre = torch.rand(2, generator=generator).tolist()
    top, bottom = _span(centre[0], side, height)
    left, right = _span(centre[1], side, width)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[order][..., top:bottom, left:right]
    return mixed, (y, y[order], 1 - (bottom - top) * (right - left) / (height * width))


MIXES = {"mixup": mixup, "cutmix": cutmix}


def _draw_mix(n: int, generator: Generator) -> tuple[float, Tensor]:
    return torch.rand((), generator=generator).item(), torch.randperm(n, generator=generator)


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    return max(0, round((centre - side / 2) * length)), min(length, round((centre + side / 2) * length))
