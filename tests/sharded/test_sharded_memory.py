"""Memory of losses whose classes lie over ranks, of which one is enough: a gradient, and a few small chunks."""

import pytest
import torch
from blended_kl_cases import Case
from memory_of_torch import peak_bytes

from toast_kernels import linear_toast_loss, toast_loss
from toast_kernels.sharded.loss import CHUNK

pytestmark = pytest.mark.usefixtures("world_of_one")
ROWS, CLASSES = 512, 4001
HELD = 6  # chunks of PyTorch's operations at once


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
    assert 0.99 * gradient <= peak_bytes(step) <= 1.05 * gradient + HELD * 4 * CHUNK["cpu"]


def test_linear_holds_a_chunk_and_its_gradient():
    """Beyond the gradients of features and weight."""
    logits, target, keywords = Case(ROWS, CLASSES, past="logits").arguments()
    x, weight = (torch.full((n, 32), 0.01, requires_grad=True) for n in (ROWS, CLASSES))
    chunk = 64 * CLASSES * logits.element_size()

    def step():
        loss = linear_toast_loss(x, weight, target, process_group="world", chunk_bytes=2 * chunk, **keywords)
        loss.backward()
        x.grad = weight.grad = None

    gradients = (x.numel() + weight.numel()) * 4
    assert chunk <= peak_bytes(step) <= 1.1 * gradients + 2.2 * chunk + HELD * 4 * CHUNK["cpu"]
