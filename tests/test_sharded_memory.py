"""Memory of losses whose classes lie over ranks, of which one is enough: a gradient, and a few small chunks."""

import pytest
import torch
from blended_kl_cases import Case
from memory_of_torch import peak_bytes

from toast_kernels import toast_loss
from toast_kernels.sharded import loss

ROWS, CLASSES = 512, 4001
CHUNKS = 8  # that are held at once


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("soft", "past"), [(None, None), (None, "logits"), ("top-k", "dense")])
def test_forward_and_backward_hold_one_gradient(soft, past, reduction):
    logits, target, keywords = Case(ROWS, CLASSES, soft=soft, past=past, reduction=reduction).arguments()
    logits.requires_grad_()
    upstream = torch.rand(ROWS) if reduction == "none" else torch.tensor(0.5)

    def step():
        toast_loss(logits, target, process_group="world", **keywords).backward(upstream)
        logits.grad = None

    gradient = logits.numel() * logits.element_size()
    assert 0.99 * gradient <= peak_bytes(step) <= 1.05 * gradient + CHUNKS * 4 * loss.CHUNK["cpu"]
