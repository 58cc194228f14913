"""folder:PATH: how images are dealt out to the splits, and errors that name the file to mend."""

import pytest
import torch
from PIL import Image
from programs import image_data, image_folder


def colour_of(label, number):
    return (40 + 100 * label, number * 5, 7)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 images of one colour each: red says the class, green the image."""
    for label, name in enumerate(["cats", "dogs"]):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.new("RGB", (50, 30), colour_of(label, number)).save(tmp_path / name / f"{number:02}.png")
    return tmp_path


def seen(split):
    """The colours of a split's images: which images they are."""
    return {tuple(image[:, 8, 8].tolist()) for image in split.images}


def test_images_are_dealt_out_once_each(folder):
    data = image_folder.load(folder, 16)
    assert data.classes == ["cats", "dogs"]
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 32, "val": 4, "test": 4}
    colours = [seen(split) for split in data.splits().values()]
    assert set.union(*colours) == {colour_of(label, number) for label in range(2) for number in range(20)}
    assert sum(map(len, colours)) == 40
    for split in data.splits().values():
        assert torch.equal(split.images[:, 0, 0, 0], (40 + 100 * split.labels).byte())


def test_dealing_is_the_same_every_time(folder):
    before = image_folder.load(folder, 16)
    again = image_folder.load(folder, 16)
    assert all(torch.equal(before.splits()[name].images, again.splits()[name].images) for name in before.splits())


def test_folders_named_train_val_test_are_the_splits(folder, tmp_path):
    for split, numbers in (("train", range(0, 10)), ("val", range(10, 15)), ("test", range(15, 20))):
        for name in ("cats", "dogs"):
            (tmp_path / "split" / split / name).mkdir(parents=True)
            for number in numbers:
                (folder / name / f"{number:02}.png").rename(tmp_path / "split" / split / name / f"{number:02}.png")
    data = image_folder.load(tmp_path / "split", 16)
    assert seen(data.val) == {colour_of(label, number) for label in range(2) for number in range(10, 15)}
    assert seen(data.test) == {colour_of(label, number) for label in range(2) for number in range(15, 20)}


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_any_colour_mode_becomes_rgb(folder, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (64, 20)).save(folder / "cats" / f"odd.{suffix}")
    assert image_folder.load(folder, 16).train.images.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize(
    "content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n cut off"], ids=["empty", "text", "cut"]
)
def test_an_unreadable_image_is_named(folder, content):
    (folder / "dogs" / "03.png").write_bytes(content)
    with pytest.raises(image_data.DataError, match=r"dogs/03\.png"):
        image_folder.load(folder, 16)


def test_a_truncated_image_is_named(folder):
    whole = (folder / "dogs" / "03.png").read_bytes()
    (folder / "dogs" / "03.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(image_data.DataError, match=r"dogs/03\.png"):
        image_folder.load(folder, 16)


def test_a_missing_folder(tmp_path):
    with pytest.raises(image_data.DataError, match=r"no folder .*nowhere"):
        image_folder.load(tmp_path / "nowhere", 16)


def test_one_class_is_not_enough(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(image_data.DataError, match="at least 2"):
        image_folder.load(tmp_path, 16)


def test_a_class_with_too_few_images_is_named(folder):
    for number in range(2, 20):
        (folder / "cats" / f"{number:02}.png").unlink()
    with pytest.raises(image_data.DataError, match=r"cats has 2 image\(s\), expected at least 3"):
        image_folder.load(folder, 16)


def test_a_class_that_was_never_trained_is_named(folder, tmp_path):
    for split in ("train", "val", "test"):
        for name in ("cats", "dogs"):
            (tmp_path / "split" / split / name).mkdir(parents=True)
    (tmp_path / "split" / "test" / "birds").mkdir()
    with pytest.raises(image_data.DataError, match="classes that the training images have not: birds"):
        image_folder.load(tmp_path / "split", 16)


def test_folders_without_images(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    with pytest.raises(image_data.DataError, match="no images"):
        image_folder.load(tmp_path, 16)
