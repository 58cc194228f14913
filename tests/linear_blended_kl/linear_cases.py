"""Seeded inputs for the tests of linear_toast_loss, the float64 truth, and how far a result may be from it."""

import torch
import torch.nn.functional as F
from blended_kl_cases import device_of, in_float64, moved, normal
from tolerances import ROUNDINGS

from toast_kernels import SoftTargets, linear_toast_loss, toast_loss

WIDTH = 24


def head(case, width=WIDTH):
    """input [N, D], linear_weight [C, D] and linear_bias [C], whose logits are about as large as those of a Case."""
    shapes = ((case.rows, width), (case.classes, width), (case.classes,))
    scales = (1.0, 3.0 / width**0.5, 1.0)
    return [
        normal(*shape, seed=case.seed + 20 + i, scale=scale).to(case.dtype)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]


def chunk_of(rows, case, backend="cpu"):
    """chunk_bytes for this many rows."""
    return rows * case.classes * case.dtype.itemsize * (1 if backend in ("cpu", "auto") else 2)


def differentiated(loss_of, tensors, upstream):
    """The loss of leaves like these, its gradients, and what else there is."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    result = loss_of(*leaves)
    loss, *others = result if type(result) is tuple else (result,)
    gradients = torch.autograd.grad(loss, leaves, upstream.to(loss.dtype).to(loss.device))
    return [loss.detach(), *gradients], others


def by_chunks(case, rows, backend="cpu", tensors=None, **more):
    """([loss, gradients], others) of linear_toast_loss with so many rows a chunk; on the CPU again."""
    device = device_of(backend)
    _, target, keywords = case.arguments()
    target, keywords = moved(target, device), {key: moved(x, device) for key, x in keywords.items()}

    def loss_of(x, weight, bias):
        return linear_toast_loss(
            x, weight, target, bias, chunk_bytes=chunk_of(rows, case, backend), backend=backend, **keywords, **more
        )

    found, others = differentiated(loss_of, moved(tuple(tensors or head(case)), device), case.upstream())
    return [x.cpu() for x in found], others


def naive(case, dtype=None):
    """[loss, gradients] of plain PyTorch in the case's dtype, or in another one."""
    _, target, keywords = case.arguments()
    tensors = head(case)
    if dtype is not None:
        tensors = [x.to(dtype) for x in tensors]
        keywords = {key: in_float64(x) if isinstance(x, SoftTargets) else x for key, x in keywords.items()}
        if isinstance(target, torch.Tensor) and target.is_floating_point():
            target = target.to(dtype)

    def loss_of(x, weight, bias):
        return toast_loss(F.linear(x, weight, bias), target, backend="reference", **keywords)

    return differentiated(loss_of, tensors, case.upstream())[0]


def assert_as_good(actual, naive, truth, dtype, *, large=1.0, what=""):
    """|actual - truth| <= |naive - truth| + (eps(dtype) + roundings) |truth|, of the whole and of its worst element.

    large: the magnitude of what cancels in the truth, in times of it.
    """
    computed = torch.promote_types(dtype, torch.float32)
    allowance = torch.finfo(dtype).eps + ROUNDINGS[computed] * torch.finfo(computed).eps * large
    for name, norm in (("all elements", 2), ("the worst element", torch.inf)):
        error, plain, size = (
            float(torch.linalg.vector_norm(x, norm)) for x in (actual.double() - truth, naive.double() - truth, truth)
        )
        assert error <= plain + allowance * size, (
            f"{what}, {name}: off by {error / size:.3g}, plain PyTorch in {dtype} by {plain / size:.3g}"
        )


def check(case, rows, backend="cpu", **more):
    """linear_toast_loss in chunks is as good as plain PyTorch on all the logits."""
    actual, _ = by_chunks(case, rows, backend, **more)
    truth = naive(case, torch.float64)
    large = case.temperature**2 if case.past else 1.0
    for name, *values in zip(
        ("loss", "input", "linear_weight", "linear_bias"), actual, naive(case), truth, strict=True
    ):
        assert_as_good(*values, case.dtype, large=large, what=f"{name} of {case}")
