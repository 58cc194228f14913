"""The library's functions: arguments are checked and explained here, then handed to the op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch

from .annotations import Backend, Metric, Reduction, Target
from .arguments import label_shape
from .backends import FLOATS
from .blended_kl.plan import PLAIN, blended_kl
from .checks import check_int, check_int64, check_labels, type_of
from .medoids import chunks
from .medoids import op as medoids
from .medoids.reference import METRICS
from .sharded.dtensor import is_dtensor
from .soft_targets import SoftTargets

if TYPE_CHECKING:
    from .distributed import ProcessGroup


class ToastStats(NamedTuple):
    """What the loss knows about each row, detached, in the target's shape."""

    cross_entropy: torch.Tensor
    logsumexp: torch.Tensor
    argmax: torch.Tensor


@overload
def toast_loss(
    logits: torch.Tensor, target: Target, weight: torch.Tensor | None = ..., *, soft_targets: SoftTargets | None = ...,
    alpha: float | torch.Tensor | None = ..., past: SoftTargets | torch.Tensor | None = ...,
    past_index: torch.Tensor | None = ..., past_weight: float | torch.Tensor = ..., temperature: float = ...,
    ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    return_stats: Literal[False] = ..., backend: Backend = ..., process_group: ProcessGroup | str | None = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def toast_loss(
    logits: torch.Tensor, target: Target, weight: torch.Tensor | None = ..., *, soft_targets: SoftTargets | None = ...,
    alpha: float | torch.Tensor | None = ..., past: SoftTargets | torch.Tensor | None = ...,
    past_index: torch.Tensor | None = ..., past_weight: float | torch.Tensor = ..., temperature: float = ...,
    ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    return_stats: Literal[True], backend: Backend = ..., process_group: ProcessGroup | str | None = ...,
) -> tuple[torch.Tensor, ToastStats]: ...  # fmt: skip
@overload
def toast_loss(
    logits: torch.Tensor, target: Target, weight: torch.Tensor | None = ..., *, soft_targets: SoftTargets | None = ...,
    alpha: float | torch.Tensor | None = ..., past: SoftTargets | torch.Tensor | None = ...,
    past_index: torch.Tensor | None = ..., past_weight: float | torch.Tensor = ..., temperature: float = ...,
    ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    return_stats: bool, backend: Backend = ..., process_group: ProcessGroup | str | None = ...,
) -> torch.Tensor | tuple[torch.Tensor, ToastStats]: ...  # fmt: skip
def toast_loss(
    logits: torch.Tensor,
    target: Target,
    weight: torch.Tensor | None = None,
    *,
    soft_targets: SoftTargets | None = None,
    alpha: float | torch.Tensor | None = None,
    past: SoftTargets | torch.Tensor | None = None,
    past_index: torch.Tensor | None = None,
    past_weight: float | torch.Tensor = 1.0,
    temperature: float = 3.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    return_stats: bool = False,
    backend: Backend = "auto",
    process_group: ProcessGroup | str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ToastStats]:
    r"""Cross-entropy blended with class soft targets, plus distillation from past predictions.

    With nothing added this is :func:`torch.nn.functional.cross_entropy`, in every combination of its options. For
    row i with logits z, label y, soft target S[y] and past prediction q = Q[r]:

    .. math::
        a_i &= (1 - \alpha)\, CE(z, y) + \alpha\, w_y H(S_y, softmax(z)), \qquad H(s, p) = -\sum_j s_j \log p_j \\
        b_i &= T^2\, KL(q \,\|\, softmax(z / T)) \\
        l_i &= a_i + \lambda b_i

    A top-k row of S or Q lists k classes and gives what is left of 1, rest, to the m classes that it does not list and
    whose logit is not -inf: rest / m each. Without such a class the rest is dropped.

    Loss and gradient are computed in one pass over the logits (the gradient in backward for float16 and "none").

    Args:
        logits: ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``; float64, float32, bfloat16 or float16; -inf is legal
            (a masked class: probability 0).
        target: one of

            - int64, int32 or uint8 labels in [0, C) or ignore_index, shaped like logits without the class dimension;
            - class probabilities shaped like logits (no soft_targets then);
            - a Mixup or CutMix triple ``(y_a, y_b, lam)``: two label tensors and a number in [0, 1] or one per
              label. The class term is ``lam * a(y_a) + (1 - lam) * a(y_b)``.
        weight: ``[C]`` class weights, as in cross_entropy.
        soft_targets: one row of probabilities per class. A class whose row is not filled uses alpha = 0.
        alpha: share of the soft target, in [0, 1], which soft_targets need; a number or a 0-d tensor (torch.compile
            specialises on numbers).
        past: past predictions Q at this temperature, or the logits ``[M, C]`` they come from.
        past_index: int64 or int32 in the shape of the labels, row of `past` for each row of logits, or -1 for none. May
            be left out when `past` has one row per row of logits.
        past_weight: lambda >= 0; a number or a 0-d tensor. (ToastLoss starts from 0.3.)
        temperature: T > 0 of the past term.
        ignore_index: rows with this label take no part: loss 0 and gradient 0, whatever their logits hold.
        label_smoothing: in [0, 1], of the hard part, as in cross_entropy.
        reduction: "none" gives l in the shape of the labels, "sum" adds, "mean" averages each term over the rows
            that have it: a weighted as in cross_entropy, b over the rows with a past. Where the weights add up to 0 the
            mean is NaN, as there, and a has gradient 0, which is NaN there.
        return_stats: also return :class:`ToastStats`: cross_entropy against the labels alone (no weight,
            smoothing or blending; 0 in ignored rows), logsumexp and argmax of the logits.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        process_group: of torch.distributed, or "world", its default group: each rank has the logits of some of the
            classes, in the order of the ranks (a tensor parallel head); see below.

    Returns:
        The loss in float32 (float64 for float64 logits), or ``(loss, stats)``. Soft targets and past predictions are
        constants. Logits get a gradient; so do class probabilities and, with them, weight, from the reference, which
        "auto" then takes. Where another argument requires grad (weight, lam, alpha, past_weight), and for a second
        derivative (create_graph=True), kernels raise; backend="reference" has them. label_smoothing and temperature
        that require grad raise.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range.
        IndexError: on a CPU, a label or past_index out of range. On a GPU nothing can be raised without waiting for it:
            the loss and the gradient of that row are NaN.

    **Classes over ranks.** With `process_group`, or with logits that are a DTensor sharded on its class dimension, each
    rank gives its slice of the classes: logits ``[N, C_r, ...]``, where C_r may differ from rank to rank and be 0; a
    past of logits or full rows ``[M, C_r]``; soft targets ``[C, C_r]``, as :meth:`SoftTargets.view_logits` makes them
    of a rank's own columns; class probabilities shaped like its logits. All else is whole and the same on every rank:
    labels in [0, C), weight, top-k rows of all C classes. Loss and stats are those of one process, the same on every
    rank, and the gradient is this rank's slice; the backward pass exchanges nothing. The call is collective: if a rank
    fails in it, or they differ in labels, lam, past_index, weight, top-k rows that are looked up, which rows are
    filled, numbers or settings, all raise; slices are each rank's own and not compared, nor is linear_toast_loss's
    input. A rank that does not come is a RuntimeError within the group's timeout. It runs eagerly, in PyTorch's
    operations on chunks (backend "auto" alone), with one gradient of extra memory, three small exchanges, of which one
    lies between the two readings of the logits; a GPU is waited for. Only logits get a gradient.

    Source: Yin et al., "Two-Stage Approach for Targeted Knowledge Transfer in Self-Knowledge Distillation" (TOAST),
    IEEE/CAA J. Autom. Sinica 11(11), 2024: soft targets from class medoids, past predictions, combined linearly. The
    convex blend is PS-KD's (ICCV 2021), T^2 KL with T = 3 and lambda = 1 is DLB's (CVPR 2022).
    """
    alpha = 0.0 if alpha is None and soft_targets is None else alpha
    given = (
        logits, target, weight, soft_targets, alpha, past, past_index, past_weight, temperature, ignore_index,
        label_smoothing, reduction, return_stats, backend,
    )  # fmt: skip
    if process_group is not None or (type(logits) not in PLAIN and is_dtensor(logits)):
        from .sharded.loss import sharded_blended_kl  # which needs this module

        loss, _, stats, argmax = sharded_blended_kl(given, process_group)
    else:
        loss, _, stats, argmax = blended_kl(given)
    shape = None if logits.dim() == 2 else label_shape(logits)
    if shape is not None and reduction == "none":
        loss = loss.reshape(shape)
    if not return_stats:
        return loss
    stats = *stats.unbind(0), argmax
    return loss, ToastStats(*(stats if shape is None else (x.reshape(shape) for x in stats)))


def class_medoids(
    x: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    metric: Metric = "euclidean",
    mask: torch.Tensor | None = None,
    ignore_index: int = -100,
    device: torch.device | str | None = None,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    r"""Index of each class's medoid: the row with the smallest sum of distances to the rows of its class.

    .. math:: E(i) = \sum_{j:\, y_j = y_i} d(x_i, x_j), \qquad m_c = \arg\min_{i:\, y_i = c} E(i)

    Exact and deterministic: E is the cost in float64 arithmetic of the values as given, costs within a relative
    1e-12 are a tie, and the lowest index wins (backends may differ where two costs differ by just that). The matrix of
    distances is never held: memory is O(N). On a device without float64 (MPS) costs are float32's: that of the choice
    is the smallest up to a relative 1e-5.

    Args:
        x: ``[N, D]`` float64, float32, bfloat16 or float16, in any layout. No gradient flows to it.
        labels: ``[N]`` int64, int32 or uint8, in [0, num_classes) or ignore_index.
        num_classes: K >= 1.
        metric: "euclidean", "sqeuclidean", "cosine" (a zero row lies at distance 1 from every other row),
            "cityblock", all as in SciPy, or "jeffreys": KL(p || q) + KL(q || p) of p = softmax(x).
        mask: ``[N]`` bool, False leaves a row out.
        ignore_index: rows with this label are left out.
        device: where to compute, for x on the CPU; default: where x is. See below.
        chunk_bytes: the most memory that a chunk takes there; default, with another device: 512 MiB.
        backend: "auto", "reference", "cpu" or "triton".

    Rows with a NaN or infinite value are left out too. The label of a row that is left out is not looked at.

    On a CPU rows are read where they lie, also in a memory-mapped file (``torch.from_file``, ``torch.from_numpy`` of a
    numpy.memmap); euclidean copies some 64 MB of them at a time, other metrics a few. With `device` or `chunk_bytes` x
    may be larger than the device's memory, or than the computer's: classes are gathered in chunks of whole ones, in
    host memory that is pinned for a GPU, where the next is gathered while it computes. Each of their rows is gathered
    once. A chunk's rows and what is made of them take at most `chunk_bytes` on the device, and 16 MB more on a GPU; two
    chunks' rows are in host memory (for a CPU one). The answer is the same.

    Returns:
        int64 ``[K]`` on the device of x: row numbers in x, -1 for a class without rows.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; a class that needs more than
            `chunk_bytes` on another device than x's (on a CPU such a class is done where it lies).
        IndexError: a label out of range (with x on a GPU a device-side assertion fails instead).

    Source: Yin et al. (TOAST), 2024: "class medoids generated based on logit vectors per class"; the abstract names
    no metric: the default and the others are this library's choice.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in FLOATS:
        raise TypeError(f"x must be a float64, float32, bfloat16 or float16 tensor, got {type_of(x)}")
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, D], got {list(x.shape)}")
    check_labels("labels", labels)
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool):
        raise TypeError(f"mask must be a bool tensor or None, got {type_of(mask)}")
    for name, rows in (("labels", labels), ("mask", mask)):
        if rows is not None and rows.shape != x.shape[:1]:
            raise ValueError(f"{name} must have shape [N] with N = {x.shape[0]} (from x), got {list(rows.shape)}")
        if rows is not None and rows.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {rows.device}")
    num_classes, ignore_index = check_int("num_classes", num_classes, 1), check_int64("ignore_index", ignore_index)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}")
    labels = labels.long() if labels.dtype == torch.uint8 else labels
    arguments = labels, num_classes, metric, mask, ignore_index, backend
    device = x.device if device is None else _usable(device)
    if chunk_bytes is None and device.type == x.device.type and device.index in (None, x.device.index):
        return medoids.class_medoids(x.resolve_neg(), *arguments)
    if x.device.type != "cpu":
        raise ValueError(f"x must be on the CPU where chunk_bytes or another device is given, got x on {x.device}")
    chunk_bytes = check_int("chunk_bytes", chunk_bytes, or_none=True)
    if chunk_bytes is None:
        chunk_bytes = chunks.CHUNK_BYTES
    return chunks.class_medoids(x, *arguments, device, chunk_bytes)


def _usable(device: torch.device | str) -> torch.device:
    try:
        usable = torch.device(device)
        if usable.type != "cpu":
            torch.empty(0, device=usable)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device must be one that there is, its name or None, got {device!r}: {error}") from None
    return usable
