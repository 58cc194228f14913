"""Fashion-MNIST: IDX files tiny and real, damaged ones, and a machine that is offline."""

import gzip
import struct
import urllib.error

import pytest
import torch
from programs import fashion_mnist, image_data


def write_idx(path, array, magic=None, claimed=None):
    sizes = claimed or array.shape
    header = magic or bytes([0, 0, 8, array.dim()])
    path.write_bytes(gzip.compress(header + struct.pack(f">{len(sizes)}I", *sizes) + array.byte().numpy().tobytes()))


@pytest.fixture
def folder(tmp_path):
    """Twenty training and six test images, 28 x 28, with known pixels."""
    for prefix, n in (("train", 20), ("t10k", 6)):
        images = torch.arange(n).view(n, 1, 1) + torch.arange(28).view(1, 28, 1) + torch.zeros(28)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", torch.arange(n) % 10)
    return tmp_path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no-debian")
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_splits_of_tiny_files(folder):
    data = fashion_mnist.load(folder)
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 16, "val": 4, "test": 6}
    assert data.train.images[3, 0, 5, 0] == 8
    assert data.val.labels.tolist() == [6, 7, 8, 9]
    assert data.test.images.shape == (6, 1, 28, 28)


def test_a_subfolder_of_the_data_folder_is_found(folder):
    (folder / "fashion-mnist").mkdir()
    for path in folder.glob("*.gz"):
        path.rename(folder / "fashion-mnist" / path.name)
    assert fashion_mnist.find_folder(folder) == folder / "fashion-mnist"


def test_offline_without_files_the_error_says_what_to_do(tmp_path, offline):
    with pytest.raises(image_data.DataError, match=r"no route to host.*Copy the four files into"):
        fashion_mnist.load(tmp_path)
    assert not list(tmp_path.rglob("*.gz"))


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, offline, monkeypatch):
    def answer(*_, **__):
        (tmp_path / "login.html").write_bytes(b"<html>please log in</html>")
        return open(tmp_path / "login.html", "rb")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(image_data.DataError, match="MD5 differs"):
        fashion_mnist.load(tmp_path)
    assert not list(tmp_path.rglob("*.gz"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "cannot read"),
        (lambda path: path.write_bytes(b"no gzip at all"), "cannot read"),
        (lambda path: write_idx(path, torch.zeros(20, 28, 28), magic=bytes([0, 0, 13, 3])), "not an IDX file"),
        (lambda path: write_idx(path, torch.zeros(20, 28, 28), claimed=(21, 28, 28)), "should hold 16464 bytes"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "not an IDX file"),
        (lambda path: write_idx(path, torch.zeros(19, 28, 28)), "19 train images but 20 labels"),
    ],
    ids=["truncated", "not-gzip", "floats", "short", "empty", "one-image-missing"],
)
def test_a_damaged_file_is_named(folder, damage, message):
    damage(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(image_data.DataError, match=message) as error:
        fashion_mnist.load(folder)
    assert str(folder) in str(error.value)


def test_a_label_out_of_range_is_an_error(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", torch.full((20,), 10))
    with pytest.raises(image_data.DataError, match="a train label is 10, expected 0 to 9"):
        fashion_mnist.load(folder)


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_files(tmp_path):
    data = fashion_mnist.load(tmp_path)
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 55000, "val": 5000, "test": 10000}
    labels = torch.cat([data.train.labels, data.val.labels])
    assert torch.bincount(labels).tolist() == [6000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    pixels = torch.cat([data.train.images, data.val.images]).double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=1e-4)  # the constants that everyone normalises with
    assert pixels.std().item() == pytest.approx(0.3530, abs=1e-4)
