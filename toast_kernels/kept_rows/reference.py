"""pool_rows and carry_rows in plain PyTorch, on any device; nothing waits for it."""

import torch

from ..softmax_statistics.op import softmax_statistics


@torch.no_grad()
def pool_rows(
    logits,  # [N, C], N <= R
    labels,  # [N]
    pool,  # [R, C]
    pool_labels,  # [R]
    start,
    ignore_index,
):
    if isinstance(start, int):
        pool[start : start + len(labels)] = logits
        pool_labels[start : start + len(labels)] = labels
        return
    to = start + torch.arange(len(labels), dtype=torch.int64, device=labels.device)
    fits = to < len(pool)
    to %= len(pool)  # so that no two rows have one place
    pool.index_copy_(0, to, torch.where(fits[:, None], logits.to(pool.dtype), pool[to]))
    pool_labels.index_copy_(0, to, torch.where(fits, labels, pool_labels[to]))


@torch.no_grad()
def carry_rows(
    logits,  # [N, C]
    labels,  # [N] or None
    labels_b,  # [N] or None
    lam,  # [N] or None
    score,  # [N]
    num_new,
    ages,  # [N - num_new] or None
    slots,
    max_age,
    ignore_index,
    temperature,
):
    count, num_slots = len(logits), len(slots.filled)
    age = slots.age.new_zeros(count)
    if ages is not None:
        age[num_new:] = ages
    may = (age < max_age) & score.isfinite()
    if labels is not None:
        labelled = labels != ignore_index
        may &= labelled if labels_b is None else labelled | (labels_b != ignore_index)
    rows = torch.where(may, score, -torch.inf).argsort(descending=True, stable=True)[:num_slots]
    slot = torch.arange(num_slots, dtype=torch.int64, device=logits.device)
    chosen = may.sum().clamp(max=num_slots)
    filled = slot < chosen
    slots.filled.copy_(filled)
    slots.index.copy_(torch.where(slot < slots.distilled.index_select(0, chosen), slot, -1))
    slots.row.copy_(torch.where(filled, rows, 0))
    slots.age.copy_(torch.where(filled, age[rows] + 1, 0))
    for out, values, empty in (
        (slots.labels, labels, ignore_index), (slots.labels_b, labels_b, ignore_index), (slots.lam, lam, 1.0)
    ):  # fmt: skip
        if values is not None:
            out.copy_(torch.where(filled, values[rows], empty))
    slots.logits.copy_(torch.where(filled[:, None], logits[rows], slots.logits))
    if slots.logsumexp is not None:
        logsumexp, entropy = softmax_statistics(slots.logits, temperature)
        slots.logsumexp.copy_(torch.where(filled, logsumexp, slots.logsumexp))
        slots.entropy.copy_(torch.where(filled, entropy, slots.entropy))
