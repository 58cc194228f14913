"""A small run of every GPU kernel, for compute-sanitizer, under which a large one would take hours.

python tools/small_run.py [triton] [cuda] [medoids]         (all three where none is named)
"""

import sys

import torch

from toast_kernels import SoftTargets, backends, class_medoids, toast_loss
from toast_kernels.medoids.reference import METRICS

CUDA = torch.device("cuda")


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=CUDA, dtype=dtype)


def losses(backend):
    """Each way a row is worked on, every encoding and kind of target. Of Triton (several rows a program, a row held, or
    in blocks) not every combination, since each is a kernel to compile; of CUDA, clusters of 2, 8 and 16 blocks too,
    and a row in pieces."""
    half, short, single = torch.float16, torch.bfloat16, torch.float32
    sizes = [(100, half), (1000, short), (1001, single), (20_001, short)]
    if backend == "cuda":
        sizes += [(70_001, single), (200_000, half), (600_001, single)]
    for classes, dtype in sizes:
        logits = normal(5, classes, dtype=dtype).requires_grad_()
        target = torch.tensor([0, 1, -100, 3, 2], device=CUDA)
        mixed = target, target.flip(0), torch.rand(5, device=CUDA)
        dense_past, listed_past = (SoftTargets.from_logits(normal(5, classes), 3.0, top_k=k) for k in (None, 70))
        lists = SoftTargets.empty(classes, classes, top_k=70, device=CUDA)
        lists[:5] = SoftTargets.from_probs(normal(5, classes).softmax(1), top_k=70)
        dense = SoftTargets.from_logits(normal(classes, classes)) if classes < 2000 else lists
        for labels, soft, past, reduction in (
            (target, dense, listed_past, "mean"),
            (mixed, lists, dense_past, "none"),
            (mixed, dense, normal(5, classes, dtype=dtype), "sum"),
        ):
            loss, _ = toast_loss(
                logits, labels, soft_targets=soft, alpha=0.4, past=past, label_smoothing=0.1, reduction=reduction,
                return_stats=True, backend=backend,
            )  # fmt: skip
            loss.sum().mul(0.5).backward()
        toast_loss(logits, logits.detach().float().softmax(1), backend=backend).backward()


def medoids():
    for rows, width in ((300, 40), (70, 1500)):
        x, labels = normal(rows, width), torch.randint(3, (rows,), device=CUDA)
        for metric in METRICS:
            class_medoids(x, labels, 4, metric=metric)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ("triton", "cuda", "medoids")
    for backend in ("triton", "cuda"):
        if backend in wanted:
            why_not = backends.missing(backend, CUDA)
            print(f"the kernels of {backend}: {why_not or 'run'}")
            if not why_not:
                losses(backend)
    if "medoids" in wanted:
        medoids()
    torch.cuda.synchronize()
