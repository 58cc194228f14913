"""torch.export: an exported loss has the gradients of the eager one, never None, for batches of any size."""

import pytest
import torch
from blended_kl_cases import BACKENDS, device_of

from toast_kernels import linear_toast_loss, toast_loss


class Loss(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, logits, target):
        return toast_loss(logits, target, **self.settings).sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("example_learns", [False, True], ids=["example without gradient", "example with gradient"])
def test_gradients_of_an_exported_loss(backend, reduction, example_learns):
    """Whether the example that it was exported with required gradients or not."""
    device = device_of(backend)
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.tensor([0, 1, 2, 0, -100], device=device)
    loss = Loss(reduction=reduction, backend=backend)
    program = torch.export.export(loss, (logits.clone().requires_grad_(example_learns), target)).module()
    gradients = []
    for function in (program, loss):
        leaf = logits.clone().requires_grad_()
        function(leaf, target).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


class HeadAndLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 20)

    def forward(self, x, y):
        return linear_toast_loss(x, self.head.weight, y, self.head.bias), toast_loss(self.head(x), y)


def test_any_number_of_rows():
    module = HeadAndLoss()
    rows = {0: torch.export.Dim("rows", min=2, max=800)}
    program = torch.export.export(module, (torch.randn(64, 8), torch.arange(64) % 20), dynamic_shapes=(rows, rows))
    for n in (3, 700):
        batch = torch.randn(n, 8), torch.arange(n) % 20
        torch.testing.assert_close(program.module()(*batch), module(*batch))
