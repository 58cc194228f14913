"""linear_toast_loss: toast_loss of a linear layer's output, which is never held whole."""

import math
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from .annotations import Backend, Reduction, Target
from .arguments import Arguments, check, learned, numbers, to_problem
from .backends import FLOATS, choose
from .blended_kl.cuda import held
from .blended_kl.op import gradient_in_forward
from .blended_kl.problem import is_traced
from .blended_kl.reference import reject_out_of_range
from .checks import check_int, check_positive, type_of
from .distributed import ProcessGroup
from .functional import ToastStats
from .linear_blended_kl.chunks import Head, Settings, gradient_is_written_over_logits
from .linear_blended_kl.op import linear_blended_kl
from .sharded.dtensor import is_dtensor
from .soft_targets import SoftTargets
from .top_predictions import TopPredictions

# Bytes of a chunk where the user names none: a quarter of what the gradients of input and weight take, but so many at
# least. On a GPU these are 1024 rows of 128,256 bfloat16 logits, for products at their full rate.
LEAST_CHUNK = {"cpu": 32 << 20, "cuda": 1 << 29}

LinearLoss: TypeAlias = (  # with what was asked for beside it
    Tensor | tuple[Tensor, ToastStats] | tuple[Tensor, TopPredictions] | tuple[Tensor, ToastStats, TopPredictions]
)


@overload
def linear_toast_loss(
    input: Tensor, linear_weight: Tensor, target: Target, linear_bias: Tensor | None = ..., *,
    weight: Tensor | None = ..., soft_targets: SoftTargets | None = ..., alpha: float | Tensor | None = ...,
    past: SoftTargets | Tensor | None = ..., past_index: Tensor | None = ..., past_weight: float | Tensor = ...,
    temperature: float = ..., ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    shift: int = ..., return_stats: Literal[False] = ..., return_top_k: None = ..., soft_temperature: float = ...,
    chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ..., backend: Backend = ...,
    process_group: ProcessGroup | str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def linear_toast_loss(
    input: Tensor, linear_weight: Tensor, target: Target, linear_bias: Tensor | None = ..., *,
    weight: Tensor | None = ..., soft_targets: SoftTargets | None = ..., alpha: float | Tensor | None = ...,
    past: SoftTargets | Tensor | None = ..., past_index: Tensor | None = ..., past_weight: float | Tensor = ...,
    temperature: float = ..., ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    shift: int = ..., return_stats: Literal[True], return_top_k: None = ..., soft_temperature: float = ...,
    chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ..., backend: Backend = ...,
    process_group: ProcessGroup | str | None = ...,
) -> tuple[Tensor, ToastStats]: ...  # fmt: skip
@overload
def linear_toast_loss(
    input: Tensor, linear_weight: Tensor, target: Target, linear_bias: Tensor | None = ..., *,
    weight: Tensor | None = ..., soft_targets: SoftTargets | None = ..., alpha: float | Tensor | None = ...,
    past: SoftTargets | Tensor | None = ..., past_index: Tensor | None = ..., past_weight: float | Tensor = ...,
    temperature: float = ..., ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    shift: int = ..., return_stats: Literal[False] = ..., return_top_k: int, soft_temperature: float = ...,
    chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ..., backend: Backend = ...,
    process_group: ProcessGroup | str | None = ...,
) -> tuple[Tensor, TopPredictions]: ...  # fmt: skip
@overload
def linear_toast_loss(
    input: Tensor, linear_weight: Tensor, target: Target, linear_bias: Tensor | None = ..., *,
    weight: Tensor | None = ..., soft_targets: SoftTargets | None = ..., alpha: float | Tensor | None = ...,
    past: SoftTargets | Tensor | None = ..., past_index: Tensor | None = ..., past_weight: float | Tensor = ...,
    temperature: float = ..., ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    shift: int = ..., return_stats: Literal[True], return_top_k: int, soft_temperature: float = ...,
    chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ..., backend: Backend = ...,
    process_group: ProcessGroup | str | None = ...,
) -> tuple[Tensor, ToastStats, TopPredictions]: ...  # fmt: skip
@overload
def linear_toast_loss(
    input: Tensor, linear_weight: Tensor, target: Target, linear_bias: Tensor | None = ..., *,
    weight: Tensor | None = ..., soft_targets: SoftTargets | None = ..., alpha: float | Tensor | None = ...,
    past: SoftTargets | Tensor | None = ..., past_index: Tensor | None = ..., past_weight: float | Tensor = ...,
    temperature: float = ..., ignore_index: int = ..., label_smoothing: float = ..., reduction: Reduction = ...,
    shift: int = ..., return_stats: bool = ..., return_top_k: int | None = ..., soft_temperature: float = ...,
    chunk_bytes: int | None = ..., acc_dtype: torch.dtype | None = ..., backend: Backend = ...,
    process_group: ProcessGroup | str | None = ...,
) -> LinearLoss: ...  # fmt: skip
def linear_toast_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    linear_bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    soft_targets: SoftTargets | None = None,
    alpha: float | Tensor | None = None,
    past: SoftTargets | Tensor | None = None,
    past_index: Tensor | None = None,
    past_weight: float | Tensor = 1.0,
    temperature: float = 3.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    shift: int = 0,
    return_stats: bool = False,
    return_top_k: int | None = None,
    soft_temperature: float = 1.0,
    chunk_bytes: int | None = None,
    acc_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
    process_group: ProcessGroup | str | None = None,
) -> LinearLoss:
    r""":func:`toast_loss` of a linear layer's output, without ever holding it: for heads of very many classes.

        linear_toast_loss(input, linear_weight, target, linear_bias)    # is, rounding apart,
        toast_loss(F.linear(input, linear_weight, linear_bias), target)

    but instead of N x C logits and their gradient it holds a chunk of rows at a time. Each chunk is multiplied out,
    loss and gradient are computed as in toast_loss, and two products take the gradient on to input and linear_weight;
    a product that nobody needs (a frozen head, frozen features) is not computed. Arguments have the names they have
    in :func:`torch.nn.functional.linear_cross_entropy`.

    Args:
        input: features ``[..., D]``, say ``[N, D]`` or ``[B, T, D]``; float64, float32, bfloat16 or float16.
        linear_weight: ``[C, D]``, in the dtype of input (under autocast in any).
        target: labels ``[...]``; class probabilities ``[..., C]``; or a triple ``(y_a, y_b, lam)``, as in toast_loss.
        linear_bias: ``[C]``.
        weight: ``[C]`` class weights.
        soft_targets, alpha, past_weight, temperature, ignore_index, label_smoothing, reduction: as in toast_loss.
            "mean" divides by what all rows have, not those of a chunk.
        past: SoftTargets of M rows (top-k rows are small), or logits ``[M, C]``.
        past_index: ``[...]``, as in toast_loss.
        shift: s >= 0 (True is 1) for language models: position t of the last dimension of ``...`` is scored against
            target[..., t + s], and the last s positions, which have none, are ignored rows. Labels only. All else, as
            past_index and what is returned, belongs to position t.
        return_stats: also return :class:`ToastStats`, shaped ``[...]``.
        return_top_k: also return :class:`TopPredictions` of this many classes, 1 <= k <= C.
        soft_temperature: > 0, of the third logsumexp in these.
        chunk_bytes: the most memory that a chunk's logits may take; on a GPU, together with their gradient, which on
            a CPU is written over them. By default a quarter of what the gradients of input and linear_weight take, or
            more where that is less than 32 MiB (on a GPU 512 MiB).
        acc_dtype: dtype in which the gradients of linear_weight and linear_bias are added up over the chunks: float32
            (float64 for float64), the default, or the dtype of input, which saves memory. A chunk's own product is
            always rounded to the dtype of input.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        process_group: as in toast_loss: each rank has linear_weight ``[C_r, D]`` and linear_bias ``[C_r]`` of some of
            the classes (or they are DTensors sharded on dimension 0), and all of input, whose gradient is that of all
            ranks: it is exchanged chunk by chunk, with the loss or, for float16 and "none", in the backward pass, which
            every rank must run then. return_top_k is not to be had.

    Returns:
        The loss in float32 (float64 for float64 input), followed in a tuple by what was asked for: the loss, stats,
        predictions. It can be differentiated once, by input, linear_weight and linear_bias. Gradients are computed with
        the loss and scaled in the backward pass; for float16 and reduction "none" the backward pass computes the
        chunks again, with the upstream gradient folded in.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range.
        IndexError: on a CPU, a label or past_index out of range. On a GPU the loss is NaN.
    """
    alpha = 0.0 if alpha is None and soft_targets is None else alpha
    if process_group is not None or is_dtensor(linear_weight):
        from .sharded.linear import sharded_linear_toast_loss  # which needs this module

        return sharded_linear_toast_loss(
            input, linear_weight, linear_bias, process_group, shift=shift, return_top_k=return_top_k,
            chunk_bytes=chunk_bytes, acc_dtype=acc_dtype, target=target, weight=weight, soft_targets=soft_targets,
            alpha=alpha, past=past, past_index=past_index, past_weight=past_weight, temperature=temperature,
            ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction, return_stats=return_stats,
            backend=backend,
        )  # fmt: skip
    rows_shape = check_linear(input, linear_weight, linear_bias, target, past_index, shift)
    num_classes, width = linear_weight.shape
    dtype = product_dtype(input, linear_weight, linear_bias)
    acc_dtype = check_acc_dtype(acc_dtype, dtype)
    return_top_k = check_int("return_top_k", return_top_k, 1, num_classes, or_none=True)
    soft_temperature = check_positive("soft_temperature", soft_temperature)

    x = input.reshape(math.prod(rows_shape), width).to(dtype)
    target, past, past_index = flattened(target, past, past_index, rows_shape, int(shift), ignore_index)
    # Has the logits' shape and takes the memory of one row.
    logits = x.new_empty(1, num_classes).expand(x.shape[0], num_classes)
    given = Arguments(
        logits, target, weight, soft_targets, alpha, past, past_index, past_weight, temperature, ignore_index,
        label_smoothing, reduction, return_stats, backend,
    )  # fmt: skip
    check(given)
    grad = torch.is_grad_enabled()
    if grad and (names := learned(given)):
        raise ValueError(f"{names[0]} must not require grad: linear_toast_loss gives it no gradient")
    backend = choose("blended_kl", backend, x.device, dtype, num_classes, held=held(given))
    needs = [grad and tensor is not None and tensor.requires_grad for tensor in (input, linear_weight, linear_bias)]
    in_forward = any(needs) and gradient_in_forward(logits, reduction)
    problem = to_problem(given, *numbers(given), in_forward)
    if x.device.type == "cpu" and not is_traced():
        reject_out_of_range(problem)
    chunk_rows = choose_chunk_rows(
        chunk_bytes, x, num_classes, gradient_is_written_over_logits(backend) or not any(needs)
    )
    settings = Settings(
        chunk_rows, acc_dtype, return_top_k or 0, [1.0, problem.temperature, soft_temperature], *needs, backend
    )
    result = linear_blended_kl(problem._replace(logits=x), Head(linear_weight, linear_bias), settings)

    returned = [result.loss.reshape(rows_shape) if reduction == "none" else result.loss]
    if return_stats:
        returned.append(ToastStats(*(s.reshape(rows_shape) for s in (*result.stats, result.argmax))))
    if return_top_k is not None:
        listed = (tensor.reshape(*rows_shape, return_top_k) for tensor in (result.top_logits, result.top_indices))
        returned.append(TopPredictions(*listed, *(s.reshape(rows_shape) for s in result.logsumexp), num_classes))
    return tuple(returned) if len(returned) > 1 else returned[0]


def check_linear(input, linear_weight, linear_bias, target, past_index, shift) -> torch.Size:
    """The rows' shape, of arguments whose shapes, dtypes and devices fit together."""
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if (name != "linear_bias" or tensor is not None) and (
            not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS
        ):
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {type_of(tensor)}")
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")
    if input.dim() == 0:
        raise ValueError("input must have shape [..., D], got []")
    rows_shape, width = input.shape[:-1], input.shape[-1]
    if linear_weight.dim() != 2 or linear_weight.shape[1] != width or linear_weight.shape[0] == 0:
        raise ValueError(
            f"linear_weight must have shape [C, D] with C >= 1 and D = {width} (from input), "
            f"got {list(linear_weight.shape)}"
        )
    num_classes = linear_weight.shape[0]
    if linear_bias is not None and linear_bias.shape != (num_classes,):
        raise ValueError(
            f"linear_bias must have shape [C] with C = {num_classes} (from linear_weight), "
            f"got {list(linear_bias.shape)}"
        )
    probabilities = isinstance(target, Tensor) and target.is_floating_point()
    if isinstance(target, (tuple, list)):
        of_rows = [(f"target[{i}]", y) for i, y in enumerate(target[:2])]
    else:
        of_rows = [("target of class probabilities" if probabilities else "target", target)]
    for name, tensor in (*of_rows, ("past_index", past_index)):
        shape = [*rows_shape, num_classes] if name.endswith("probabilities") else list(rows_shape)
        if isinstance(tensor, Tensor) and list(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} (from input), got {list(tensor.shape)}")
    if not isinstance(shift, bool):  # True is 1
        check_int("shift", shift, 0)
    if shift and (probabilities or not rows_shape):
        raise ValueError(f"shift = {int(shift)} needs labels of shape [..., T], got {type_of(target)}")
    return rows_shape


def product_dtype(input, linear_weight, linear_bias) -> torch.dtype:
    """What F.linear computes in here."""
    kind = input.device.type
    autocasts = torch.amp.is_autocast_available(kind)  # not "meta"
    if autocasts and torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")
    return input.dtype


def check_acc_dtype(acc_dtype, dtype) -> torch.dtype:
    wide = torch.promote_types(dtype, torch.float32)
    if acc_dtype not in (None, wide, dtype):
        expected = " or ".join(dict.fromkeys(map(str, (wide, dtype))))
        raise ValueError(f"acc_dtype must be {expected} where products are in {dtype}, or None, got {acc_dtype}")
    return acc_dtype or wide


def flattened(target, past, past_index, shape, shift, ignore_index):
    """With one dimension of rows, of which row t has the label of row t + shift."""

    def rows(x, beyond):
        """`beyond` stands where there is no row t + shift."""
        if not isinstance(x, Tensor) or x.shape != shape:
            return x  # a number for all rows; a wrong shape, which has an error of its own
        if shift:
            shifted = x.new_full(shape, beyond)
            shifted[..., : max(0, shape[-1] - shift)] = x[..., shift:]
            x = shifted
        return x.reshape(-1)

    if isinstance(target, Tensor):
        target = target.reshape(-1, target.shape[-1]) if target.is_floating_point() else rows(target, ignore_index)
    elif isinstance(target, (tuple, list)) and len(target) == 3:
        target = rows(target[0], ignore_index), rows(target[1], ignore_index), rows(target[2], 0)
    if isinstance(past, Tensor) and past.dim() > 2:
        past = past.flatten(0, -2)
    if isinstance(past_index, Tensor) and past_index.shape == shape:
        past_index = past_index.reshape(-1)
    return target, past, past_index


def choose_chunk_rows(chunk_bytes, x, num_classes, in_place: bool) -> int:
    """Rows of a chunk: as many as fit, of about equal chunks."""
    num_rows, width = x.shape
    size = x.element_size()
    row = num_classes * size * (1 if in_place else 2)
    chunk_bytes = check_int("chunk_bytes", chunk_bytes, or_none=True)
    if chunk_bytes is None:
        gradients = (num_rows + num_classes) * width * size
        chunk_bytes = max(row, gradients // 4, LEAST_CHUNK.get(x.device.type, LEAST_CHUNK["cuda"]))
    elif chunk_bytes < row:
        raise ValueError(
            f"chunk_bytes must be at least {row}, what one row of {num_classes} logits needs, got {chunk_bytes}"
        )
    most = chunk_bytes // row
    if num_rows <= most:
        return max(1, num_rows)
    # A vector's worth, as the weight's product sums over rows: in bfloat16 that of 176 takes 1.3 times as long a row as
    # that of 192. And chunks begin at aligned labels.
    unit = next(rows for rows in (64 // size, 8, 1) if rows <= most)
    chunks = -(-num_rows // (most // unit * unit))
    return -(-num_rows // (chunks * unit)) * unit
