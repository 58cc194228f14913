"""Files that are either whole or not there: a full disk or a kill in mid-write costs nothing that was saved before."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import torch


class SaveError(Exception):
    """A file could not be written. What stood there before still does."""


class CheckpointError(Exception):
    """A file is not what save_tensors writes."""


def save_tensors(state: dict, path: Path) -> None:
    """torch.save, under a temporary name that takes its place only once every byte is on the disk."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    _replace(path, write)


def save_text(text: str, path: Path) -> None:
    save_bytes(text.encode(), path)


def save_bytes(content: bytes, path: Path) -> None:
    _replace(path, lambda temporary: temporary.write_bytes(content))


def load_tensors(path: Path) -> dict:
    """What save_tensors wrote: tensors and plain values only, no code is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is no checkpoint of this program, or is damaged") from error


def _replace(path: Path, write) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        kept = "; the one saved before is whole" if path.exists() else ""
        raise SaveError(f"cannot write {path}: {reason} ({_free_space(path)}){kept}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _free_space(path: Path) -> str:
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
