"""The glyph data set: its size, its held-out faces, and that it is drawn the same every time."""

import numpy as np
import pytest
import torch
from programs import PYTHON, glyphs


@pytest.fixture(scope="module")
def data():
    return glyphs.load(PYTHON.parent / "data")


def test_more_than_three_thousand_classes(data):
    assert len(data.classes) == 3250
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 27129, "val": 3250, "test": 8734}


@pytest.mark.more
def test_all_classes_are_those_of_the_training_faces(data):
    whole = glyphs.load(PYTHON.parent / "data", all_classes=True)
    assert len(whole.classes) == 7142
    assert {name: len(split) for name, split in whole.splits().items()} == {"train": 36752, "val": 5021, "test": 10797}
    assert torch.bincount(whole.train.labels, minlength=7142).min() == 1
    assert set(data.classes) < set(whole.classes)


def test_faces_are_held_out_whole():
    assert len(set(glyphs.FACES)) == len(glyphs.FACES) == 16
    assert not set(glyphs.TRAIN_FACES) & {*glyphs.VAL_FACES, *glyphs.TEST_FACES}
    assert not set(glyphs.VAL_FACES) & set(glyphs.TEST_FACES)


def test_every_class_can_be_learned_and_tested(data):
    drawn_by = {name: torch.bincount(split.labels, minlength=3250) for name, split in data.splits().items()}
    assert drawn_by["train"].min() >= 3
    assert drawn_by["test"].min() >= 1
    assert (drawn_by["train"] + drawn_by["val"] + drawn_by["test"]).min() >= glyphs.LEAST_FACES


def test_labels_are_code_points_in_order(data):
    assert data.classes[0] == "U+0021 exclamation mark"
    assert data.classes[ord("A") - ord("!")] == "U+0041 latin capital letter a"
    assert data.classes == sorted(data.classes, key=lambda name: int(name.split()[0][2:], 16))


def test_no_image_is_blank_and_none_touches_the_border(data):
    for split in data.splits().values():
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == (1, glyphs.IMAGE_SIZE, glyphs.IMAGE_SIZE)
        assert (split.images.amax(dim=(1, 2, 3)) > 0).all()
        border = torch.ones(glyphs.IMAGE_SIZE, glyphs.IMAGE_SIZE, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert (split.images[:, 0, border] == 0).all()


def test_drawing_is_deterministic_and_equals_what_is_cached(data):
    path = glyphs._font_path("DejaVuSans")
    for character in "Aé←Ж":
        drawn = glyphs.draw(path, character)
        np.testing.assert_array_equal(drawn, glyphs.draw(path, character))
        label = next(i for i, name in enumerate(data.classes) if name.startswith(f"U+{ord(character):04X} "))
        cached = data.train.images[data.train.labels == label][:, 0].numpy()
        assert any(np.array_equal(drawn, image) for image in cached)


def test_a_blank_glyph_is_none():
    assert glyphs.draw(glyphs._font_path("DejaVuSans"), "\N{NO-BREAK SPACE}") is None


def test_a_wide_glyph_is_shrunk_to_fit():
    drawn = glyphs.draw(glyphs._font_path("DejaVuSans"), "\N{LONG RIGHTWARDS DOUBLE ARROW}")
    columns = drawn.any(axis=0).nonzero()[0]
    assert columns[0] >= glyphs.MARGIN - 1
    assert columns[-1] <= glyphs.IMAGE_SIZE - glyphs.MARGIN


def test_first_classes_keeps_only_these(data):
    few = data.first_classes(10)
    assert len(few.classes) == 10
    for name, split in few.splits().items():
        assert torch.equal(split.labels, data.splits()[name].labels[data.splits()[name].labels < 10])
        assert len(split.images) == len(split.labels)
