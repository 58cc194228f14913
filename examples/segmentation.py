"""ToastLoss for segmentation: [N, C, H, W] logits, void pixels ignored, and a pool that does not grow with pixels.

python examples/segmentation.py
"""

import torch
from torch import nn

from toast_kernels import ToastLoss

CLASSES, SIDE, BATCH, STEPS, EPOCHS, VOID = 8, 32, 4, 20, 4, 255


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of blocks, one grey value a class, in noise; a tenth of the pixels has no label."""
    blocks = torch.randint(CLASSES, (BATCH, SIDE // 8, SIDE // 8))
    labels = blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    pictures = labels[:, None] / CLASSES + 0.1 * torch.randn(BATCH, 1, SIDE, SIDE)
    return pictures, labels.masked_fill(torch.rand(labels.shape) < 0.1, VOID)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CLASSES, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    # A sample of each class's pixels is enough to find a typical one.
    criterion = ToastLoss(CLASSES, num_epochs=EPOCHS, ignore_index=VOID, max_rows_per_class=500)
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch)
        for _ in range(STEPS):
            pictures, labels = draw()
            loss = criterion(model(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: last loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
