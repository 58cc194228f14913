"""The loss of x @ weight.T + bias with its gradients, in chunks of rows: N x C logits are never held.

A chunk is a product that gives its logits, blended_kl, which gives their gradient, and two products that take the
gradient on to x and weight. Until a chunk's logits take their place, a Problem's `logits` are the features x [N, D].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import implementation
from ..blended_kl import reference
from ..blended_kl.problem import Allocation, Outputs, Problem, number
from ..softmax_statistics.op import softmax_statistics


class Head(NamedTuple):
    """In any floating dtype: products are in that of the features."""

    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]


class Settings(NamedTuple):
    chunk_rows: int
    acc_dtype: torch.dtype  # of the gradients of weight and bias
    top_k: int  # 0: no predictions are wanted
    temperatures: list[float]  # of the predictions' logsumexps
    need_input: bool  # gradient
    need_weight: bool
    need_bias: bool
    backend: str


class Result(NamedTuple):
    loss: Tensor  # [], or [N] for reduction "none"
    stats: Tensor | None  # [2, N], as blended_kl's
    argmax: Tensor | None  # [N] int64
    top_logits: Tensor | None  # [N, k], descending
    top_indices: Tensor | None  # [N, k] int64
    logsumexp: Tensor | None  # [len(temperatures), N] float64
    input: Tensor | None  # [N, D]: the gradients
    weight: Tensor | None  # [C, D] in acc_dtype
    bias: Tensor | None  # [C] in acc_dtype


def gradient_is_written_over_logits(backend: str) -> bool:
    """Elsewhere a chunk's gradient has memory of its own. On a CPU the kernel has read a row before it writes it."""
    return backend == "cpu"


def allocate(problem: Problem, head: Head, settings: Settings) -> Result:
    """What `run` gives, not written yet but for a loss that is added up, and gradients where there are no rows."""
    x, (num_rows, width), (num_classes, _) = problem.logits, problem.logits.shape, head.weight.shape
    stats = argmax = top_logits = top_indices = logsumexp = None
    if problem.need_stats:
        stats = x.new_empty((2, num_rows), dtype=problem.dtype)
        argmax = x.new_empty(num_rows, dtype=torch.int64)
    if settings.top_k:
        top_logits = x.new_empty(num_rows, settings.top_k)
        top_indices = x.new_empty((num_rows, settings.top_k), dtype=torch.int64)
        logsumexp = x.new_empty((len(settings.temperatures), num_rows), dtype=torch.float64)
    of_head = x.new_empty if num_rows else x.new_zeros
    gradients = (
        x.new_empty(num_rows, width) if settings.need_input else None,
        of_head((num_classes, width), dtype=settings.acc_dtype) if settings.need_weight else None,
        of_head(num_classes, dtype=settings.acc_dtype) if settings.need_bias else None,
    )
    if problem.reduction == "none":
        loss = x.new_empty(num_rows, dtype=problem.dtype)
    else:
        loss = x.new_zeros((), dtype=torch.float64)
    return Result(loss, stats, argmax, top_logits, top_indices, logsumexp, *gradients)


def run(problem: Problem, head: Head, settings: Settings) -> Result:
    """Gradients are multiplied by problem.upstream, where there is one, before they are rounded."""
    result = allocate(problem, head, settings)
    x, num_classes = problem.logits, len(head.weight)
    weight, bias = (None if tensor is None else tensor.to(x.dtype) for tensor in head)
    problem, scale = _over_all_rows(problem, num_classes)
    logits = x.new_empty(min(settings.chunk_rows, len(x)), num_classes)
    launches = {}
    for start in range(0, len(x), settings.chunk_rows):
        rows = slice(start, min(start + settings.chunk_rows, len(x)))
        features, z = x[rows], logits[: rows.stop - start]
        if bias is None:
            torch.mm(features, weight.T, out=z)
        else:
            torch.addmm(bias, features, weight.T, out=z)
        if settings.top_k:
            _write_predictions(result, rows, z, settings.temperatures)
        chunk = problem_of_chunk(problem, rows, z)
        launch = launches.get(len(z))
        if launch is None:
            launch = launches[len(z)] = _launch(chunk, settings.backend)
        loss, gradient, stats, argmax = launch(chunk)
        if problem.reduction == "none":
            result.loss[rows] = loss
        else:
            result.loss.add_(loss)
        if problem.need_stats:
            result.stats[:, rows] = stats
            result.argmax[rows] = argmax
        if settings.need_input:
            torch.mm(gradient, weight, out=result.input[rows])
        if settings.need_weight:
            add_product(result.weight, gradient, features, is_first=start == 0)
        if settings.need_bias:
            add_product(result.bias[:, None], gradient, x.new_ones(len(z), 1), is_first=start == 0)
        del gradient  # before the next chunk's is allocated
    if problem.reduction == "none":
        return result
    loss = result.loss if scale is None else result.loss * scale
    return result._replace(loss=loss.to(problem.dtype))


def _over_all_rows(problem: Problem, num_classes: int) -> tuple[Problem, Tensor | None]:
    """The problem that chunks are cut from, and what their losses are multiplied by.

    "mean" divides by what all rows have, so chunks are added up: (sum_i a_i + lambda' sum_i b_i) / W with
    lambda' = lambda W / P. Where W is 0 the loss is NaN and the class term has no gradient.
    """
    if problem.reduction != "mean":
        return problem, None
    sum_of_weights, rows_with_past = _divisors(problem, num_classes)
    nothing = sum_of_weights == 0
    divisor = torch.where(nothing, 1, sum_of_weights)
    upstream = (1 if problem.upstream is None else problem.upstream) / divisor
    problem = problem._replace(reduction="sum", upstream=upstream.to(problem.dtype))
    if problem.past is not None:
        problem = problem._replace(past_weight=number(problem.past_weight * divisor / rows_with_past.clamp(min=1)))
    if problem.weight is not None:  # smoothing gives mass where the labels' weights do not
        problem = problem._replace(weight=torch.where(nothing, 0, problem.weight))
    return problem, torch.where(nothing, torch.nan, 1 / divisor)


def _divisors(problem: Problem, num_classes: int) -> tuple[Tensor, Tensor]:
    """[] float64: W, the sum of the weights of rows that are not ignored, and P, the number of those with a past."""
    x, weight = problem.logits, problem.weight
    row_weight = x.new_zeros(len(x), dtype=torch.float64)
    used, bad = torch.zeros_like(row_weight, dtype=torch.bool), torch.zeros_like(row_weight, dtype=torch.bool)
    labels = []
    if not problem.has_labels:
        row_weight, used = row_weight + 1, ~used
    elif problem.target_b is None:
        labels = [(problem.target, x.new_ones((), dtype=problem.dtype))]
    else:
        labels = [(problem.target, problem.lam), (problem.target_b, 1 - problem.lam)]
    for label, share in labels:
        kept = label != problem.ignore_index
        outside = kept & ((label < 0) | (label >= num_classes))
        if weight is not None:
            of_label = weight[torch.where(kept & ~outside, label, 0)]
            share = torch.where(share != 0, share * of_label, 0)  # 0 * inf = 0
        row_weight += torch.where(kept, share, 0)
        used, bad = used | kept, bad | outside
    has_past = torch.zeros_like(used)
    if problem.past is not None and len(problem.past.filled):
        index, num_past = problem.past_index, len(problem.past.filled)
        outside = (index < -1) | (index >= num_past)
        has_past = (index >= 0) & ~outside & problem.past.filled[index.clamp(0, num_past - 1)]
        bad = bad | (used & outside)
    used = used & ~bad
    return torch.where(used, row_weight, 0).sum(), (used & has_past).sum(dtype=torch.float64)


def problem_of_chunk(problem: Problem, rows: slice, logits: Tensor) -> Problem:
    """The problem of a chunk of rows, whose logits these are."""
    target, target_b, lam, past_index = (
        None if x is None else x[rows] for x in (problem.target, problem.target_b, problem.lam, problem.past_index)
    )
    upstream = problem.upstream
    if upstream is not None and upstream.dim():
        upstream = upstream[rows]
    return problem._replace(
        logits=logits, target=target, target_b=target_b, lam=lam, past_index=past_index, upstream=upstream
    )


def _launch(problem: Problem, backend: str) -> Callable[[Problem], Outputs]:
    if backend == "reference":
        return _reference
    if problem.need_gradient and gradient_is_written_over_logits(backend):
        return implementation("blended_kl", backend).Launch(problem, _OverLogits)
    launch = implementation("blended_kl", backend).Launch(problem)
    if backend == "triton" and problem.upstream is not None:  # which multiplies the loss too
        return lambda problem: (outputs := launch(problem))._replace(loss=outputs.loss / problem.upstream)
    return launch


class _OverLogits(Allocation):
    """Outputs whose gradient lies where the logits do."""

    def __init__(self, problem: Problem):
        super().__init__(problem._replace(need_gradient=False))

    def __call__(self, problem: Problem) -> Outputs:
        return super().__call__(problem._replace(need_gradient=False))._replace(gradient=problem.logits)


def _reference(problem: Problem) -> Outputs:
    if not problem.need_gradient:
        return reference.blended_kl(problem)
    with torch.enable_grad():
        logits = problem.logits.detach().requires_grad_()
        outputs = reference.blended_kl(problem._replace(logits=logits))
    upstream = torch.ones_like(outputs.loss) if problem.upstream is None else problem.upstream
    (gradient,) = torch.autograd.grad(outputs.loss, logits, upstream)
    return outputs._replace(loss=outputs.loss.detach(), gradient=gradient)


def _write_predictions(result: Result, rows: slice, z: Tensor, temperatures: list[float]) -> None:
    result.top_logits[rows], result.top_indices[rows] = z.topk(result.top_logits.shape[1], dim=1)
    for temperature in set(temperatures):
        logsumexp = softmax_statistics(z, temperature)[0]
        for i, wanted in enumerate(temperatures):
            if wanted == temperature:
                result.logsumexp[i, rows] = logsumexp


def add_product(
    total: Tensor,  # [C, D]
    gradient: Tensor,  # [R, C]
    features: Tensor,  # [R, D]
    is_first: bool,
) -> None:
    """total += gradient.T @ features, or where it is the first, total = gradient.T @ features. Where the product has
    another dtype it is added in blocks of classes, which, with the copies that add_ makes of them, take no more memory
    than the chunk's logits."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, features, beta=0 if is_first else 1)
        return
    bytes_a_class = features.shape[1] * (features.element_size() + total.element_size())
    step = max(1, gradient.numel() * gradient.element_size() // max(1, bytes_a_class))
    for block, of_classes in zip(total.split(step), gradient.T.split(step), strict=True):
        product = torch.mm(of_classes, features)
        block.copy_(product) if is_first else block.add_(product)
