"""softmax_statistics in plain PyTorch, on any device."""

import torch

from ..native import widest


def softmax_statistics(
    logits,  # [R, C]
    temperature,
):
    wide = torch.promote_types(logits.dtype, torch.float32)
    widest_dtype = widest(logits.device)
    logsumexp = logits.new_empty(len(logits), dtype=widest_dtype)
    entropy = logits.new_empty(len(logits), dtype=wide)
    step = max(1, (1 << 22) // logits.shape[1])  # rows at once: temporaries stay below 100 MB
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        z = logits[rows].to(wide)
        top = z.amax(dim=1, keepdim=True)
        scaled = (z - torch.where(top == -torch.inf, 0, top)) / temperature
        logsumexp[rows] = top[:, 0].to(widest_dtype) / temperature + scaled.logsumexp(dim=1).to(widest_dtype)
        entropy[rows] = torch.special.entr(scaled.softmax(dim=1)).sum(dim=1)
    return logsumexp, entropy
