"""The whole of TOAST in a training loop of one's own: class soft targets, and the hardest rows once more.

python examples/plain_loop.py
"""

import torch
from torch import nn

from toast_kernels import HardReplay, ToastLoss

CLASSES, WIDTH, BATCH, STEPS, EPOCHS = 100, 64, 128, 50, 4


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    centres = torch.randn(CLASSES, WIDTH, device=device)
    model = nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, CLASSES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = ToastLoss(CLASSES, num_epochs=EPOCHS).to(device)
    replay = HardReplay(fraction=0.5)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(CLASSES, (BATCH,), device=device)
        return centres[y] + torch.randn(BATCH, WIDTH, device=device), y

    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch)  # soft targets from the last epoch's logits
        criterion.train()
        for _ in range(STEPS):
            x, y, past = replay.extend(*draw())  # the hardest rows of the last step come along
            logits = model(x)
            loss, stats = criterion(logits, y, past, return_stats=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            replay.keep(x, y, logits, stats.cross_entropy)  # after backward
        criterion.eval()  # plain cross-entropy from here on
        with torch.no_grad():
            x, y = draw()
            logits = model(x)
            accuracy = (logits.argmax(dim=1) == y).float().mean()
            print(f"epoch {epoch}: held-out loss {criterion(logits, y):.3f}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
