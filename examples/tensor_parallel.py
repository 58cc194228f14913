"""A head whose classes lie over ranks: each rank has all features and labels, and the weights of some classes.

torchrun --nproc-per-node 2 examples/tensor_parallel.py
"""

import os
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from toast_kernels import SoftTargets, class_medoids, linear_toast_loss

CLASSES, WIDTH, ROWS, EPOCHS, TEMPERATURE = 1000, 32, 4000, 3, 3.0


def main() -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives use the current device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same rows and features on every rank
    y = torch.arange(ROWS, device=device) % CLASSES
    x = 2 * torch.randn(CLASSES, WIDTH, device=device)[y] + torch.randn(ROWS, WIDTH, device=device)
    features = nn.Linear(WIDTH, WIDTH).to(device)
    torch.manual_seed(1 + rank)
    first, last = rank * CLASSES // world, (rank + 1) * CLASSES // world  # slices of any width, in the ranks' order
    head = nn.Linear(WIDTH, last - first, bias=False).to(device)  # of classes first to last - 1
    optimizer = torch.optim.AdamW([*features.parameters(), *head.parameters()], lr=1e-2)

    soft_targets = None
    for epoch in range(EPOCHS):
        for rows in torch.arange(ROWS, device=device).split(500):
            loss = linear_toast_loss(
                features(x[rows]), head.weight, y[rows], process_group="world",
                soft_targets=soft_targets, alpha=0.3 if soft_targets else 0.0,
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():  # medoids in feature space; of their logits each rank has its columns
            pooled = features(x)
            medoids = class_medoids(pooled, y, CLASSES)
            logits = F.linear(pooled[medoids.clamp(min=0)], head.weight)
            soft_targets = replace(SoftTargets.view_logits(logits, TEMPERATURE), filled=medoids >= 0)
        if rank == 0:
            print(f"epoch {epoch}: last loss {loss.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
