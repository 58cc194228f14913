"""ToastLoss with Accelerate: gradient accumulation, and a state that save_state and load_state carry.

accelerate launch --num_processes 2 examples/accelerate_accumulation.py     (needs accelerate; --cpu without GPUs)
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toast_kernels import ToastLoss

CLASSES, WIDTH, ROWS, EPOCHS = 20, 16, 640, 3
FOLDER = "runs/accelerate"  # the same for all processes


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    y = torch.arange(ROWS) % CLASSES
    x = 2 * torch.randn(CLASSES, WIDTH)[y] + torch.randn(ROWS, WIDTH)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    model = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = ToastLoss(CLASSES, num_epochs=EPOCHS).to(accelerator.device)
    accelerator.register_for_checkpointing(criterion)

    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch)  # each micro-batch's rows are pooled, and so are all ranks'
        accelerator.save_state(FOLDER)  # after set_epoch: the pool is not saved
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: last loss {loss.item():.3f}")

    accelerator.load_state(FOLDER)  # the start of the last epoch
    accelerator.end_training()


if __name__ == "__main__":
    main()
