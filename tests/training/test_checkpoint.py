"""Saving: whole or not at all, whatever goes wrong in between."""

import errno
import os
import re

import pytest
import torch
from programs import checkpoint


def test_what_is_saved_is_what_is_loaded(tmp_path):
    state = {"weights": torch.randn(5), "epoch": 3, "nested": [{"nll": 0.5}, None, (1, 2)]}
    checkpoint.save_tensors(state, tmp_path / "new" / "checkpoint.pt")
    loaded = checkpoint.load_tensors(tmp_path / "new" / "checkpoint.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("moment", ["while writing", "at the last flush", "before the rename"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, moment):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_tensors({"epoch": 1}, path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut_off(state, file):
        file.write(b"half of a checkpoint")
        full()

    if moment == "while writing":
        monkeypatch.setattr(torch, "save", cut_off)
    else:
        monkeypatch.setattr(os, "fsync" if moment == "at the last flush" else "replace", full)
    with pytest.raises(checkpoint.SaveError, match=r"No space left on device .*the one saved before is whole"):
        checkpoint.save_tensors({"epoch": 2}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(checkpoint.SaveError, match=re.escape(str(tmp_path / "taken"))):
        checkpoint.save_text("results", tmp_path / "taken" / "results.json")


def test_loading_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(checkpoint.CheckpointError, match="is no checkpoint of this program"):
        checkpoint.load_tensors(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.pt is no checkpoint of this program"):
        checkpoint.load_tensors(tmp_path / "checkpoint.pt")
