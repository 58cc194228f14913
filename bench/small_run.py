"""A small run of every GPU kernel, for compute-sanitizer, under which a large one would take hours."""

import torch

from toast_kernels import SoftTargets, class_medoids, toast_loss


def losses():
    """Each way a row is worked on (several a program, held, in blocks), with dense and with listed soft targets."""
    for classes in (100, 1000, 20_001):
        logits = torch.randn(5, classes, device="cuda", dtype=torch.bfloat16).requires_grad_()
        target = torch.tensor([0, 1, -100, 3, classes - 1], device="cuda")
        past = SoftTargets.from_logits(torch.randn(5, classes, device="cuda"), 3.0)
        lists = SoftTargets.from_logits(torch.randn(5, classes, device="cuda"), 3.0, top_k=70)
        for rows in (past, lists, torch.randn(5, classes, device="cuda")):
            for reduction in ("mean", "none"):
                toast_loss(logits, target, past=rows, label_smoothing=0.1, reduction=reduction).sum().mul(
                    0.5
                ).backward()


def medoids():
    x = torch.randn(300, 40, device="cuda")
    labels = torch.randint(3, (300,), device="cuda")
    for metric in ("euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys"):
        class_medoids(x, labels, 4, metric=metric)


if __name__ == "__main__":
    losses()
    medoids()
    torch.cuda.synchronize()
