"""Your own pictures: a folder with one folder of images per class.

If it has the folders train, val and test, these are the splits, each with its class folders. Otherwise the images
of each class are dealt out 80 : 10 : 10 by a hash of their names, the same way every time.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from image_data import DataError, ImageData, Split
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = ("train", "val", "test")


def load(folder: Path, image_size: int) -> ImageData:
    """Every image in RGB, scaled and cropped at the centre to image_size x image_size, held in memory."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: expected one with a folder of images for each class")
    if all((folder / split).is_dir() for split in SPLITS):
        classes = _class_names(folder / "train")
        files = {split: _files_by_class(folder / split, classes) for split in SPLITS}
    else:
        classes = _class_names(folder)
        files = _deal_out(_files_by_class(folder, classes))
    splits = {split: _read(files[split], image_size) for split in SPLITS}
    return ImageData(
        name=folder.resolve().name, classes=classes, **splits, input_size=image_size, augmentation="photos"
    )


def _class_names(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} folder(s) of images, expected one per class and at least 2")
    return classes


def _files_by_class(folder: Path, classes: list[str]) -> list[list[Path]]:
    unknown = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in classes)
    if unknown := [name for name in unknown if not name.startswith(".")]:
        raise DataError(f"{folder} has classes that the training images have not: {', '.join(unknown[:5])}")
    return [sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES) for name in classes]


def _deal_out(files: list[list[Path]]) -> dict[str, list[list[Path]]]:
    """One tenth of each class, and at least one image, to val, as many to test, the rest to train."""
    dealt = {split: [] for split in SPLITS}
    for paths in files:
        if len(paths) in (1, 2):
            raise DataError(f"{paths[0].parent} has {len(paths)} image(s), expected at least 3: train, val and test")
        shuffled = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
        tenth = max(1, len(paths) // 10) if paths else 0
        dealt["val"].append(shuffled[:tenth])
        dealt["test"].append(shuffled[tenth : 2 * tenth])
        dealt["train"].append(shuffled[2 * tenth :])
    return dealt


def _read(files: list[list[Path]], image_size: int) -> Split:
    paths = [path for of_class in files for path in of_class]
    labels = [label for label, of_class in enumerate(files) for _ in of_class]
    if not paths:
        raise DataError(f"no images: expected files ending in {', '.join(sorted(SUFFIXES))} in the class folders")
    images = np.empty((len(paths), image_size, image_size, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        for row, pixels in enumerate(pool.map(lambda path: _decode(path, image_size), paths)):
            images[row] = pixels
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _decode(path: Path, image_size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BICUBIC))
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read: mend or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
