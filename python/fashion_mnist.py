"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70,000 grey 28 x 28 pictures of clothes in ten classes, as IDX files.

Looked for in the data folder, then where Debian's package dataset-fashion-mnist puts it, then downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
from checkpoint import save_bytes
from image_data import DataError, ImageData, Split
from torch import Tensor

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {  # of the published .gz files
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
VAL_IMAGES = 5000  # the last of the training file


def load(data_dir: Path) -> ImageData:
    folder = find_folder(data_dir)
    train = _read_split(folder, "train")
    val_images = min(VAL_IMAGES, len(train) // 5)
    first = len(train) - val_images
    return ImageData(
        name="fashion-mnist",
        classes=CLASSES,
        train=Split(train.images[:first], train.labels[:first]),
        val=Split(train.images[first:], train.labels[first:]),
        test=_read_split(folder, "t10k"),
        input_size=28,
        augmentation="photos",
    )


def find_folder(data_dir: Path) -> Path:
    """The first of the known places that has all four files; the download, if none has."""
    places = [data_dir, data_dir / "fashion-mnist", DEBIAN_FOLDER]
    for place in places:
        if all((place / name).exists() for name in MD5):
            return place
    return _download(data_dir / "fashion-mnist", places)


def _download(folder: Path, places: list[Path]) -> Path:
    for name, md5 in MD5.items():
        try:
            with urllib.request.urlopen(f"{ADDRESS}/{name}", timeout=30) as answer:
                content = answer.read()
        except OSError as error:
            raise DataError(
                f"no Fashion-MNIST: {', '.join(MD5)} are not together in any of {', '.join(map(str, places))}, and "
                f"{ADDRESS} cannot be reached ({error}). Copy the four files into {folder}, or install Debian's "
                "dataset-fashion-mnist."
            ) from error
        if hashlib.md5(content).hexdigest() != md5:
            raise DataError(f"{ADDRESS}/{name} is not the published file (its MD5 differs): try again")
        save_bytes(content, folder / name)
    return folder


def _read_split(folder: Path, prefix: str) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", dims=3)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", dims=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels")
    if labels.numel() and labels.max() >= len(CLASSES):
        raise DataError(f"{folder}: a {prefix} label is {labels.max().item()}, expected 0 to {len(CLASSES) - 1}")
    return Split(images.unsqueeze(1), labels.long())


def read_idx(path: Path, dims: int) -> Tensor:
    """An IDX file of bytes: magic 0x0000 08 dims, each size as a big-endian uint32, then the bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise DataError(f"{path} is not an IDX file of bytes with {dims} dimension(s)")
    sizes = struct.unpack(f">{dims}I", content[4:header])
    if len(content) != header + math.prod(sizes):
        raise DataError(f"{path} should hold {math.prod(sizes)} bytes of data, it has {len(content) - header}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())
