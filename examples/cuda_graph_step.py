"""A whole TOAST training step in one CUDA graph: replay, forward, loss with its pool, backward and optimizer.

    python examples/cuda_graph_step.py

A graph repeats the same launches on the same memory, with nothing of Python in between. So what it needs is:

- a batch that is copied to where the graph reads it;
- ToastLoss(pool_rows=...), a pool that does not grow; soft targets and HardReplay have fixed memory anyway;
- an optimizer made with capturable=True;
- some ordinary steps first, in which all of this memory is made.

set_epoch writes the new soft targets where the old ones were: the graph serves all epochs.

Without a GPU the same steps run one by one.
"""

import time

import torch
from torch import Tensor, nn

from toast_kernels import HardReplay, ToastLoss

WARM_UP = 3  # ordinary steps at the start


class Trainer:
    """Trains on batches of one size; from the fourth on, each step is one launch."""

    def __init__(self, model: nn.Module, optimizer, criterion: ToastLoss, replay: HardReplay, x: Tensor, y: Tensor):
        self.model, self.optimizer, self.criterion, self.replay = model, optimizer, criterion, replay
        self.x, self.y = torch.empty_like(x), torch.empty_like(y)  # what the graph reads
        self.loss = torch.zeros((), device=x.device)  # and writes
        self.graph, self.steps = None, 0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """The batch's loss, [], until the next step writes over it."""
        self.x.copy_(x)
        self.y.copy_(y)
        if self.x.device.type != "cuda":
            self.run()
        elif self.steps < WARM_UP:
            stream = torch.cuda.Stream()  # as a capture does: not on the default stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.run()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):  # records the step and does not run it
                    self.run()
            self.graph.replay()
        self.steps += 1
        return self.loss

    def run(self) -> None:
        x, y, past = self.replay.extend(self.x, self.y)
        logits = self.model(x)
        loss, stats = self.criterion(logits, y, past, return_stats=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.replay.keep(x, y, logits, stats.cross_entropy)  # after backward
        self.loss.copy_(loss.detach())


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        print("There is no GPU here: the steps run one by one.")
    torch.manual_seed(0)
    classes, width, batch, steps, epochs = 100, 64, 128, 50, 4
    centres = torch.randn(classes, width, device=device)
    model = nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=device.type == "cuda")
    criterion = ToastLoss(classes, num_epochs=epochs, pool_rows=batch * steps).to(device)

    def draw() -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (batch,), device=device)
        return centres[y] + torch.randn(batch, width, device=device), y

    trainer = Trainer(model, optimizer, criterion, HardReplay(), *draw())
    for epoch in range(epochs):
        criterion.set_epoch(epoch)
        total, began = torch.zeros((), device=device), time.perf_counter()
        for _ in range(steps):
            total += trainer.step(*draw())
        mean = total.item() / steps  # waits for the GPU
        seconds = time.perf_counter() - began
        print(f"epoch {epoch}: loss {mean:.3f}, {1e6 * seconds / steps:.0f} us a step, the first ones included")


if __name__ == "__main__":
    main()
