"""ToastLoss with DistributedDataParallel: the loss stays outside, and set_epoch is called by every rank.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from toast_kernels import ToastLoss

CLASSES, WIDTH, ROWS, EPOCHS = 20, 16, 640, 3


def main() -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives use the current device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    y = torch.arange(ROWS) % CLASSES
    data = TensorDataset(2 * torch.randn(CLASSES, WIDTH)[y] + torch.randn(ROWS, WIDTH), y)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    model = DistributedDataParallel(nn.Linear(WIDTH, CLASSES).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    criterion = ToastLoss(CLASSES, num_epochs=EPOCHS).to(device)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        criterion.set_epoch(epoch)  # medoids of all ranks' rows: every rank has the same soft targets
        for x, y in loader:
            loss = criterion(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: last loss {loss.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
