"""Every load and store of a Triton kernel in the interpreter, held against the tensors it may touch."""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder


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

    def checked_load(self, pointers, mask, *others):
        check(pointers, mask)
        return load(self, pointers, mask, *others)

    def checked_store(self, pointers, value, mask, *others):
        check(pointers, mask)
        return store(self, pointers, value, mask, *others)

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
