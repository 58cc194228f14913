"""Thousands of classes of real images, on every machine: the glyphs of the fonts inside matplotlib's wheel.

A class is a Unicode code point, an image is that code point drawn by one font face. Whole faces are held out, so
that a test measures what was learned about a character and not about a face: one for validation, three for test.
Of all-glyphs every code point that a training face draws is a class, also where no other face does.
The faces are 12 of DejaVu (Sans, Sans Mono, Serif) and 4 of STIXGeneral; drawing them takes a few seconds, once.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import torch
from checkpoint import load_tensors, save_tensors
from fontTools.ttLib import TTFont
from image_data import ImageData, Split
from PIL import Image, ImageDraw, ImageFont

TEST_FACES = ("DejaVuSans-Oblique", "DejaVuSansMono-BoldOblique", "DejaVuSerif-Bold")
VAL_FACES = ("DejaVuSans-BoldOblique",)
TRAIN_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
)
FACES = TRAIN_FACES + VAL_FACES + TEST_FACES
LEAST_FACES = 7  # a code point drawn by fewer faces is no class, unless all are

IMAGE_SIZE = 48
INPUT_SIZE = 32
EM = 34  # font size in pixels: an ascender and a descender fit in the image with a margin to move in
BASELINE = 36
MARGIN = 3


def load(data_dir: Path, all_classes: bool = False) -> ImageData:
    """The glyphs, drawn on the first call and kept in `data_dir`."""
    name, least_faces = ("all-glyphs", 1) if all_classes else ("glyphs", LEAST_FACES)
    cache = data_dir / f"glyphs-{_recipe_digest(least_faces)}.pt"
    if cache.exists():
        drawn = load_tensors(cache)
    else:
        drawn = draw_faces(least_faces, TRAIN_FACES if all_classes else TEST_FACES)
        save_tensors(drawn, cache)

    face, codepoints = drawn["face"], drawn["codepoints"]
    classes, labels = codepoints.unique(return_inverse=True)

    def split(faces: tuple[str, ...]) -> Split:
        rows = torch.isin(face, torch.tensor([FACES.index(name) for name in faces]))
        return Split(drawn["images"][rows], labels[rows])

    return ImageData(
        name=name,
        classes=[_class_name(codepoint) for codepoint in classes.tolist()],
        train=split(TRAIN_FACES),
        val=split(VAL_FACES),
        test=split(TEST_FACES),
        input_size=INPUT_SIZE,
        augmentation="glyphs",
    )


def draw_faces(least_faces: int, needed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Every code point that so many faces have, and one of those that are needed, by every face that has it: images
    uint8 [N, 1, 48, 48], codepoints and face int64 [N]."""
    pictures = {
        (name, codepoint): picture
        for name in FACES
        for codepoint, picture in _draw_face(name)
        if picture is not None  # a blank glyph says nothing of its class
    }
    faces_with = Counter(codepoint for _, codepoint in pictures)
    classes = {codepoint for name, codepoint in pictures if name in needed and faces_with[codepoint] >= least_faces}
    kept = [key for key in pictures if key[1] in classes]
    return {
        "images": torch.from_numpy(np.stack([pictures[key] for key in kept])).unsqueeze(1),
        "codepoints": torch.tensor([codepoint for _, codepoint in kept]),
        "face": torch.tensor([FACES.index(name) for name, _ in kept]),
    }


def _draw_face(name: str):
    path = _font_path(name)
    with TTFont(path, lazy=True) as font:
        codepoints = sorted(font.getBestCmap())
    for codepoint in codepoints:
        # C*, Z*: controls, private use, separators; M*: marks that only mean something on another glyph
        if unicodedata.category(chr(codepoint))[0] not in "CZM":
            yield codepoint, draw(path, chr(codepoint))


def draw(path: Path, character: str) -> np.ndarray | None:
    """White ink on black, uint8 [48, 48]: centred across, on a common baseline, shrunk only if it would not fit."""
    room = IMAGE_SIZE - 2 * MARGIN
    size = EM
    left, top, right, bottom = _font(path, size).getbbox(character, anchor="ls")
    if right <= left or bottom <= top:
        return None
    if max(right - left, bottom - top) > room:
        size = int(EM * room / max(right - left, bottom - top))
        left, top, right, bottom = _font(path, size).getbbox(character, anchor="ls")
    x = (IMAGE_SIZE - right - left) / 2
    y = min(max(BASELINE, MARGIN - top), IMAGE_SIZE - MARGIN - bottom)
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    ImageDraw.Draw(image).text((round(x), y), character, fill=255, font=_font(path, size), anchor="ls")
    pixels = np.array(image)
    return pixels if pixels.any() else None


_fonts: dict[tuple[Path, int], ImageFont.FreeTypeFont] = {}


def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    if (path, size) not in _fonts:
        _fonts[path, size] = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    return _fonts[path, size]


def _font_path(name: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def _class_name(codepoint: int) -> str:
    return f"U+{codepoint:04X} {unicodedata.name(chr(codepoint), '').lower()}".rstrip()


def _recipe_digest(least_faces: int) -> str:
    """Changes with the fonts and with the way they are drawn, so that an old cache is never taken for a new one."""
    sizes = [_font_path(name).stat().st_size for name in FACES]
    recipe = (FACES, sizes, least_faces, IMAGE_SIZE, EM, BASELINE, MARGIN, unicodedata.unidata_version)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
