"""class_medoids of rows that do not fit where it computes: whole classes at a time are gathered and brought there."""

from itertools import pairwise

import torch

from ..backends import choose
from . import op
from .reference import TILE, raise_label

CHUNK_BYTES = 1 << 29  # by default


def class_medoids(
    x,  # [N, D] on the CPU, also memory-mapped
    labels,  # [N] int64 or int32
    num_classes,
    metric,
    mask,  # [N] bool or None
    ignore_index,
    backend,
    device,
    chunk_bytes,
):  # -> [K] int64 on the CPU
    """On checked arguments; see functional.class_medoids. A chunk's rows are gathered once, in ascending order. Classes
    that are too large for a chunk are left where they lie if the device is the CPU."""
    x = x.detach()
    kernels = choose("medoids", backend, device, x.dtype, x.shape[1])
    row_bytes, class_bytes = needed_bytes(x)
    if chunk_bytes < row_bytes + class_bytes:
        raise ValueError(
            f"chunk_bytes must be at least {row_bytes + class_bytes}, what one row of {x.shape[1]} numbers needs, "
            f"got {chunk_bytes}"
        )
    used = _used_rows(x, labels, mask, num_classes, ignore_index)
    counts = labels[used].long().bincount(minlength=num_classes)
    needed = torch.where(counts > 0, counts * row_bytes + class_bytes, 0)
    too_large = needed > chunk_bytes
    if too_large.any() and device.type != "cpu":
        most = int(needed.argmax())
        raise ValueError(
            f"chunk_bytes must be at least {int(needed[most])}, what the {int(counts[most])} rows of class {most} need "
            f'on {device} at once, got {chunk_bytes}; or device="cpu", which takes such classes from where they lie'
        )
    borders = class_borders(needed.masked_fill(too_large, 0), chunk_bytes)
    spans = list(pairwise(borders))
    classes = torch.arange(num_classes, dtype=torch.int64, device="cpu")
    ends = torch.tensor(borders[1:], dtype=torch.int64, device="cpu")
    chunk_of = torch.bucketize(classes, ends, right=True, out_int32=True)
    left_out = len(spans)
    chunk_of[too_large] = left_out
    chunk_of = torch.where(used, chunk_of[labels.clamp(0, num_classes - 1)], left_out)
    order, sizes = chunk_of.argsort(stable=True), chunk_of.bincount(minlength=left_out + 1).tolist()

    places = torch.full((num_classes,), -1, dtype=torch.int64, device=device)  # of the medoids in order
    chunks = order.split(sizes)[:left_out]
    start = 0
    for (first, end), rows, values in zip(spans, chunks, _gathered(x, chunks, device), strict=True):
        own = _send(labels[rows] - first, device)
        found = op.class_medoids(values, own, end - first, metric, None, -1, kernels)
        places[first:end] = torch.where(found < 0, -1, found + start)
        start += len(rows)
    places = places.cpu()
    medoids = torch.full((num_classes,), -1, dtype=torch.int64, device="cpu")
    medoids[places >= 0] = order[places[places >= 0]]
    if too_large.any():
        own = torch.where(used & too_large[labels.clamp(0, num_classes - 1)], labels, -1)
        in_place = op.class_medoids(x, own, num_classes, metric, None, -1, kernels)
        medoids = torch.where(too_large, in_place, medoids)
    return medoids


def needed_bytes(x):
    """(bytes a row, bytes a class) that a chunk takes at most, with every metric and backend, beside a fixed amount:
    the row; as it is packed, in 4 bytes a number, and what is known of it; a class's means and their parts, float64."""
    return x.shape[1] * (x.element_size() + 4) + 256, x.shape[1] * 32 + 256


def _used_rows(x, labels, mask, num_classes, ignore_index):
    """[N] bool: rows that have a class. Of other rows only those are read whose label is out of range: that is an
    error if they are finite."""
    used = labels != ignore_index
    if mask is not None:
        used &= mask
    inside = (labels >= 0) & (labels < num_classes)
    for rows in (used & ~inside).nonzero()[:, 0].split(max(1, TILE // max(1, x.shape[1]))):
        for row in rows[x[rows].isfinite().all(dim=1)][:1].tolist():
            raise_label(row, int(labels[row]), num_classes, ignore_index)
    return used & inside


def class_borders(needed, most):
    """Borders of runs of consecutive classes that need at most so much together; the first is 0, the last K."""
    before, borders = needed.cumsum(0), [0]
    while borders[-1] < len(needed):
        done = before[borders[-1] - 1] if borders[-1] else 0
        borders.append(int(torch.searchsorted(before, done + most, right=True)))
    return borders


def _gathered(x, chunks, device):
    """Of each chunk of row numbers its rows on the device. For a GPU the next rows are gathered in pinned memory while
    it works on these; where the memory was used before, by the last copy but one, that is waited for."""
    if not chunks:
        return
    pinned = device.type == "cuda"
    most = max(map(len, chunks))
    buffers = [x.new_empty(most, x.shape[1], pin_memory=pinned) for _ in range(1 + pinned)]
    copied = [torch.cuda.Event() for _ in buffers] if pinned else []
    for i, rows in enumerate(chunks):
        slot = i % len(buffers)
        if pinned:
            copied[slot].synchronize()
        values = torch.index_select(x, 0, rows, out=buffers[slot][: len(rows)])
        values = values.to(device, non_blocking=pinned)
        if pinned:
            copied[slot].record(torch.cuda.current_stream(device))
        yield values


def _send(tensor, device):
    """To the device; nothing waits for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
