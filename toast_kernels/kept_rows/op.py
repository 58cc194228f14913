"""pool_rows and carry_rows: what of a training step's rows is kept, for the class medoids and for the next step.

Plain functions that write into the caller's buffers. They have no gradient, and torch.compile leaves out what calls
them (MedoidBank.update, HardReplay.keep). On a GPU they do not wait for the device.
"""

from typing import NamedTuple

from torch import Tensor

from ..backends import choose, implementation


class Slots(NamedTuple):
    """Memory for K carried rows, written by every carry_rows.

    A slot without a row: filled False, label ignore_index, lam 1, index -1, age and row 0; its logits and statistics
    stay as they were.
    """

    distilled: Tensor  # int64 [K + 1]: of so many carried rows, how many are distilled
    labels: Tensor | None  # int64 [K]
    labels_b: Tensor | None  # int64 [K]
    lam: Tensor | None  # float32 [K]
    logits: Tensor  # [K, C]
    logsumexp: Tensor | None  # float64 [K], of logits / temperature; None: no statistics
    entropy: Tensor | None  # [K] float32, float64 for float64 logits: of softmax(logits / temperature)
    filled: Tensor  # bool [K]
    index: Tensor  # int64 [K]: the slot's own number where the row is distilled, else -1
    age: Tensor  # int64 [K]: how often in a row the row is carried
    row: Tensor  # int64 [K]: its position in the batch that it was chosen from


class PoolMemory(NamedTuple):
    """Memory for R pooled rows, written by every pool_rows."""

    logits: Tensor  # [R, C] floating; or features [R, D]
    labels: Tensor  # int64 [R]
    positions: Tensor  # int64 [R]: the row's number among all rows that came
    counts: Tensor  # int64 [3]: rows that wanted a place after the last one's; rows that came; 0 between two calls


def pool_rows(
    logits,  # [N, C], or features [N, D]
    labels,  # int64 [N]
    memory,  # PoolMemory
    num_classes,  # C
    ignore_index,
    places=None,  # int64 [N]: the pool's row for each; outside [0, R): none
    backend="auto",
):
    """Copies the rows whose label is not ignore_index to the pool, rounded to its dtype: to `places`, no two of them
    equal, or one after the other behind those that came before. Rows beyond the pool are counted and not written.

    Raises IndexError on the CPU for a label that is neither in [0, C) nor ignore_index; then nothing is written.
    """
    backend = _backend(backend, logits)
    labels = labels.contiguous()
    if backend != "cpu" and logits.device.type == "cpu":
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
        if wrong.any():
            raise_label(labels[wrong][0], num_classes, ignore_index)
    if labels.shape[0]:
        implementation("kept_rows", backend).pool_rows(logits, labels, memory, num_classes, ignore_index, places)


def carry_rows(
    logits,  # [N, C]
    labels,  # int64 [N], or None: every row counts as labelled
    labels_b,  # int64 [N], or None
    lam,  # float32 [N], or None
    score,  # [N] floating: higher for harder rows
    num_new,  # of the N rows; the others come after them
    ages,  # int64 [N - num_new] of those others, >= 1; None where they are all unlabelled; may be slots.age
    slots,  # Slots for K <= N rows
    max_age,
    ignore_index,
    temperature,
    backend="auto",
):
    """Fills slot j with the j-th hardest row that may be carried; of equal scores the first row comes first. Returns
    whether it is known that all slots have a row: False on a GPU, which would have to be waited for.

    A row may be carried if its age is below max_age (a new row's is 0), its score finite, and one of its labels not
    ignore_index.
    """
    backend = _backend(backend, logits)
    score = score if score.is_floating_point() else score.float()
    batch = (None if part is None else part.resolve_neg().contiguous() for part in (labels, labels_b, lam, score))
    carry = implementation("kept_rows", backend).carry_rows
    return bool(carry(logits, *batch, num_new, ages, slots, max_age, ignore_index, temperature))


def raise_label(label, num_classes, ignore_index):
    raise IndexError(f"target must be in [0, {num_classes}) or ignore_index = {ignore_index}, got {int(label)}")


def _backend(backend: str, logits: Tensor) -> str:
    return choose("kept_rows", backend, logits.device, logits.dtype, logits.shape[1])
