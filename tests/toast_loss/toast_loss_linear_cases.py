"""Features, heads and training losses for the tests of ToastLoss.linear."""

import torch
import torch.nn.functional as F
from torch import nn

from toast_kernels import HardReplay, ToastLoss, linear_toast_loss

EXACT = {"dtype": torch.float64, "pool_dtype": torch.float64}


def rows_of(classes, width, rows=24, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(classes, (rows,), generator=generator)


def head_of(classes, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(classes, width, generator=generator, dtype=torch.float64).to(dtype)


def targets_of(kind, labels, classes):
    if kind == "triples":
        return labels, labels.roll(1), torch.linspace(0, 1, len(labels))
    if kind == "probabilities":
        return 0.95 * F.one_hot(labels, classes).double() + 0.05 * F.one_hot(labels.roll(1), classes).double()
    if kind == "ignored":
        return labels.masked_fill(torch.arange(len(labels)) % 5 == 2, -100)
    return labels


class Model(nn.Module):
    """Features, a head and the loss; replays in every step."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 30)
        self.criterion = ToastLoss(30, top_k=4, num_epochs=4, **settings)
        self.replay = HardReplay(top_k=4)

    def run(self, first, last):
        """Steps, three an epoch; their losses."""
        losses = []
        for step in range(first, last):
            self.criterion.set_epoch(step // 3)
            x, y, past = self.replay.extend(*rows_of(30, 6, seed=step, dtype=torch.float32))
            loss, stats, predictions = self.criterion.linear(
                self.body(x), self.head.weight, y, past, self.head.bias, return_stats=True, return_top_k=True
            )
            self.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter -= 0.1 * parameter.grad
            self.replay.keep(x, y, predictions, stats.cross_entropy)
            losses.append(loss.item())
        return losses


X, Y = rows_of(30, 6, dtype=torch.float32)
WEIGHT = head_of(30, 6, dtype=torch.float32)


def after(call, **settings):
    """A training loss that was called once."""
    criterion = ToastLoss(30, num_epochs=2, **{"top_k": 3, **settings})
    criterion.set_epoch(0)
    call(criterion)
    return criterion


def predictions(top_k=3):
    return linear_toast_loss(X, WEIGHT, Y, return_top_k=top_k)[1]


def nothing(_):
    pass
