"""A head of very many classes whose logits are never whole: linear_toast_loss works through them in chunks of rows.

python examples/many_classes.py
"""

import torch
from torch import nn

from toast_kernels import linear_toast_loss

CLASSES, WIDTH, BATCH, STEPS = 20_000, 64, 512, 5


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    centres = torch.randn(CLASSES, WIDTH, device=device)
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).to(device)
    head = nn.Linear(WIDTH, CLASSES).to(device)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=1e-3)
    for step in range(STEPS):
        y = torch.randint(CLASSES, (BATCH,), device=device)
        features = body(centres[y] + 0.1 * torch.randn(BATCH, WIDTH, device=device))
        loss, stats = linear_toast_loss(features, head.weight, y, head.bias, chunk_bytes=8 << 20, return_stats=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits = (stats.argmax == y).float().mean()
        print(f"step {step}: loss {loss:.3f}, accuracy {hits:.1%}")
    logits = BATCH * CLASSES * 4 / 2**20
    print(f"All logits would have taken {logits:.0f} MB, and their gradient as much again; a chunk took 8.")


if __name__ == "__main__":
    main()
