"""Batches for the tests of HardReplay that say where their rows came from."""

import torch
import torch.nn.functional as F

CLASSES = 4


def make_batch(step, rows=8):
    """Inputs that say where they came from: step and row."""
    generator = torch.Generator().manual_seed(step)
    x = torch.stack([torch.full((rows,), float(step)), torch.arange(rows).float()], dim=1)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def make_logits(rows, seed, dtype=torch.float32):
    return (2 * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed))).to(dtype)


def row_names(x):
    return [tuple(map(int, row)) for row in x]


def carried_rows(x, past):
    """The names of the rows that were carried. Empty slots come last and repeat new rows."""
    filled, new, slots = past.targets.filled, x[: past.num_new], x[past.num_new :]
    count = int(filled.sum())
    assert filled[:count].all()
    assert torch.equal(slots[count:], new[torch.arange(count, len(slots)) % len(new)])
    assert past.index[: past.num_new].tolist() == [-1] * past.num_new
    assert past.index[past.num_new + count :].tolist() == [-1] * (len(slots) - count)
    return row_names(slots[filled])


def hardest(logits, y, count):
    """Of the first 8 rows, which are the new ones in a first step."""
    logits, y = logits[:8], y[:8]
    loss = F.cross_entropy(logits.double(), y, reduction="none").tolist()
    return sorted(range(len(y)), key=lambda i: (-loss[i], i))[:count]


def take_step(replay, number):
    x, y, past = replay.extend(*make_batch(number))
    replay.keep(x, y, make_logits(len(x), number))
    return x, y, past
