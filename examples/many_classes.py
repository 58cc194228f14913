"""A head of very many classes: the whole of TOAST, and N x C logits are never held.

python examples/many_classes.py               20,000 classes: seconds on a CPU
python examples/many_classes.py 360000
"""

import sys

import torch
from torch import nn

from toast_kernels import HardReplay, ToastLoss

CLASSES = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
WIDTH, BATCH, STEPS, EPOCHS, TOP_K = 64, 256, 4, 2, 64


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    centres = torch.randn(CLASSES, WIDTH, device=device)
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).to(device)
    head = nn.Linear(WIDTH, CLASSES).to(device)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)

    criterion = ToastLoss(CLASSES, num_epochs=EPOCHS, top_k=TOP_K, dtype=torch.bfloat16).to(device)
    replay = HardReplay(top_k=TOP_K)
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch)
        for _ in range(STEPS):
            y = torch.randint(CLASSES, (BATCH,), device=device)
            x, y, past = replay.extend(centres[y] + 0.1 * torch.randn(BATCH, WIDTH, device=device), y)
            loss, stats, predictions = criterion.linear(
                body(x), head.weight, y, past, head.bias, return_stats=True, return_top_k=True
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            replay.keep(x, y, predictions, stats.cross_entropy)
        print(f"epoch {epoch}: loss {loss:.3f}, {int(criterion.filled.sum())} classes have soft targets")

    held = sum(buffer.nbytes for buffer in criterion.buffers()) / 1e6
    dense = 2 * CLASSES**2 / 1e6
    logits = 2 * len(x) * CLASSES * 4 / 1e6
    print(f"Soft targets of {CLASSES} classes: {held:,.0f} MB, all of their probabilities {dense:,.0f}.")
    print(f"All logits of a step and their gradient would have been {logits:,.0f} MB.")


if __name__ == "__main__":
    main()
