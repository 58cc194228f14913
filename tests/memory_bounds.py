"""Every load and store of a Triton kernel in the interpreter, held against the tensors it may touch."""

from contextlib import contextmanager, suppress
from unittest.mock import patch

import numpy as np
import torch

with suppress(ImportError):
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


@contextmanager
def only_within(tensors):
    """Raises (Triton's InterpreterError) where a kernel reads or writes an element that none of these tensors has."""
    spans = [spans_of(tensor) for tensor in tensors if tensor is not None and tensor.numel()]
    starts, ends = (np.concatenate(part).astype(np.uint64) for part in zip(*spans, strict=True))
    order = starts.argsort()
    starts, ends = starts[order], np.maximum.accumulate(ends[order])

    def check(pointers, mask):
        first = pointers.data[mask.data.astype(bool)].astype(np.uint64)
        last = first + np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        at = np.searchsorted(starts, first, side="right") - 1
        assert (at >= 0).all(), "below all tensors"
        assert (last <= ends[at]).all(), "beyond a tensor's row"

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_load(self, pointers, mask, *others, **keywords):
        check(pointers, mask)
        return load(self, pointers, mask, *others, **keywords)

    def checked_store(self, pointers, value, mask, *others, **keywords):
        check(pointers, mask)
        return store(self, pointers, value, mask, *others, **keywords)

    with (
        patch.object(InterpreterBuilder, "create_masked_load", checked_load),
        patch.object(InterpreterBuilder, "create_masked_store", checked_store),
    ):
        yield


def spans_of(tensor):
    """(first bytes, bytes beyond the last) of each run of elements that lie together: of a matrix, its rows."""
    if tensor.is_contiguous():
        tensor = tensor.reshape(1, -1)
    size = tensor.element_size()
    starts = tensor.data_ptr() + size * tensor.stride(0) * np.arange(len(tensor), dtype=np.int64)
    return starts, starts + size * tensor.shape[1]


@contextmanager
def within_arguments():
    """Each kernel only_within the tensors that its launch gives it."""
    launch = GridExecutor.__call__

    def checked_launch(self, *arguments, **keywords):
        with only_within(list(tensors_in([*arguments, *keywords.values()]))):
            return launch(self, *arguments, **keywords)

    with patch.object(GridExecutor, "__call__", checked_launch):
        yield


def tensors_in(values):
    for value in values:
        value = getattr(value, "base", value) if hasattr(value, "block_shape") else value  # of a tensor descriptor
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors_in(value)
