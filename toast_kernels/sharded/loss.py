"""toast_loss of logits whose classes lie over ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..arguments import Arguments, as_rows, numbers, to_problem
from ..backends import choose
from ..blended_kl import reference
from ..blended_kl.op import gradient_in_forward, has_storage, keep, kept, reject_second_derivative, times_upstream
from ..blended_kl.problem import Outputs, Problem, flatten, unflatten
from ..distributed import ProcessGroup
from ..uncompiled import run_as_is
from . import labels
from .arguments import check_own, check_widths, settings
from .dtensor import arrived, check_one_group, group_of, local
from .exchange import Exchange
from .rows import (
    Coefficients,
    Rows,
    Totals,
    coefficients,
    losses,
    names_of_statistics,
    prepare_rows,
    statistics,
    totals,
)
from .tables import Slice, checksums

# Logits worked on at a time, in up to 6 float32 copies: so many that they take longer than some hundred calls of
# PyTorch (of 2^17, which a second-level cache would hold, up to 1.5 times as long), and on a GPU what keeps it busy, or
# a part of all.
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 22}
PART_OF_ALL = 32


@torch.compiler.disable
def sharded_blended_kl(given: tuple, process_group: ProcessGroup | str | None) -> Outputs:
    """As blended_kl.plan.blended_kl, of this rank's columns of the logits."""
    given = Arguments(*given)
    exchange = Exchange(group_of("logits", given.logits, process_group), "toast_loss")
    problem, width, said = None, 0, {}
    with exchange.attempt():
        check_one_group("logits", given.logits, process_group)
        given = local(given)
        own = check_own(given, "toast_loss")
        said = settings(own)
        needs_gradient = own.logits.requires_grad and torch.is_grad_enabled()
        in_forward = needs_gradient and gradient_in_forward(own.logits, own.reduction)
        problem = to_problem(own, *numbers(own), in_forward)
        problem = problem._replace(logits=arrived(problem.logits))
        width = as_rows(given.logits).shape[1]
    widths = exchange.meet(width, said)
    slice_ = Slice(sum(widths[: exchange.rank]), width, sum(widths))
    check_widths(own, slice_.num_classes)
    return with_graph(as_rows(given.logits), *run(problem, slice_, exchange), problem, slice_)


@torch.no_grad()
def run(problem: Problem, own: Slice, exchange: Exchange) -> tuple[Outputs, Totals]:
    rows = prepare_rows(problem, own)
    scale = coefficients(problem, rows) if problem.need_gradient else None
    with exchange.attempt():
        reject_out_of_range(problem, own.num_classes)
    known = share_statistics(problem, rows, own, exchange)
    parts = gradient = None
    with exchange.attempt():
        if exchange.error is None:
            parts, gradient = differentiate(problem, rows, known, own, scale)
    loss, cross_entropy = share_losses(problem, rows, known, parts, exchange)
    stats = None
    if problem.need_stats:
        stats = torch.stack([cross_entropy, known.logsumexp]).to(problem.dtype)
    return Outputs(loss.to(problem.dtype), gradient, stats, known.argmax), known


def differentiate(
    problem: Problem, rows: Rows, known: Totals, own: Slice, scale: Coefficients | None
) -> tuple[Tensor, Tensor | None]:
    """rows.losses, by the fastest way there is."""
    backend = labels.backend_for(problem) if own.width else None
    if backend is None:
        return losses(problem, rows, known, own, step_of(problem.logits), scale)
    with torch.cuda.device_of(problem.logits):
        return labels.losses(problem, rows, known, own, scale, backend)


def reject_out_of_range(problem: Problem, num_classes: int) -> None:
    logits = problem.logits
    if logits.device.type == "cpu":
        reference.reject_out_of_range(problem._replace(logits=logits.new_empty(1, 1).expand(len(logits), num_classes)))


def share_statistics(problem: Problem, rows: Rows, own: Slice, exchange: Exchange) -> Totals:
    """Between two readings of the logits: the one small exchange that the gradient waits for."""
    same = what_all_have(problem, rows)
    num_rows, names = len(problem.logits), names_of_statistics(problem, rows)
    found = problem.logits.new_zeros((len(same) + len(names), num_rows), dtype=torch.float64)
    with exchange.attempt():
        if exchange.error is None:
            for row, (_, numbers_of) in zip(found, same, strict=False):
                row.copy_(numbers_of())
            found[len(same) :] = statistics(problem, rows, own, step_of(problem.logits))
    gathered = exchange.gather(found)
    for i, (name, _) in enumerate(same):
        exchange.compare(name, gathered[:, i])
    return totals(problem, rows, gathered[:, len(same) :], exchange.rank)


def what_all_have(problem: Problem, rows: Rows) -> list[tuple[str, Callable[[], Tensor]]]:
    """By name, [N] or [] numbers of what must be the same on every rank: themselves, or their checksums."""
    plain = {
        "target": problem.target if problem.has_labels else None,
        "target[1]": problem.target_b,
        "target[2] (lam)": problem.lam,
        "past_index": problem.past_index,
        "alpha": problem.alpha,
        "past_weight": problem.past_weight,
    }
    lookups = [("past", rows.past), *(("soft_targets", label.row) for label in rows.labels)]
    same = [(name, partial(torch.clone, x)) for name, x in plain.items() if isinstance(x, Tensor)]
    same += [(name, row.checksum) for name, row in lookups if row is not None]
    if problem.weight is not None:
        same.append(("weight", lambda: checksums(problem.weight[None])[0]))
    return same


def share_losses(
    problem: Problem, rows: Rows, known: Totals, parts: Tensor | None, exchange: Exchange
) -> tuple[Tensor, Tensor | None]:
    """The loss, [] or [N], and cross-entropies [N] for stats, in float64, of what each rank's classes add to them."""
    num_rows, by_rows = len(rows.used), problem.reduction == "none"
    found = known.logsumexp.new_zeros(2 * (num_rows if by_rows else 1) + (num_rows if problem.need_stats else 0))
    poison = rows.poison * torch.where(rows.used & known.logsumexp.isnan(), torch.nan, 1.0)
    if exchange.error is None:
        parts[[0, 2] if problem.need_stats else 0] *= poison
        terms = parts[:2] if by_rows else parts[:2].sum(1)
        found = torch.cat([terms.flatten(), *parts[2:]])
    found = exchange.finish(found)
    cross_entropy = found[len(found) - num_rows :] if problem.need_stats else None
    if by_rows:
        return found[:num_rows] + found[num_rows : 2 * num_rows], cross_entropy
    class_term, past_term = found[:2]
    if problem.reduction == "mean":
        sum_of_weights, rows_with_past = rows.divisors()
        class_term = torch.where(sum_of_weights == 0, torch.nan, class_term / sum_of_weights)
        past_term = past_term / rows_with_past
    return class_term + past_term, cross_entropy


def step_of(logits: Tensor) -> int:
    """Rows of a chunk."""
    least = CHUNK.get(logits.device.type, CHUNK["cuda"])
    elements = least if logits.device.type == "cpu" else max(least, logits.numel() // PART_OF_ALL)
    return max(1, elements // max(1, logits.shape[1]))


def with_graph(logits: Tensor, outputs: Outputs, known: Totals, problem: Problem, own: Slice) -> Outputs:
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return outputs
    loss = ShardedBlendedKL.apply(logits, outputs, known, problem, own)
    return outputs._replace(loss=loss, gradient=None)


class ShardedBlendedKL(torch.autograd.Function):
    """Gives the loss, which is computed already, its gradient by this rank's logits; there is nothing to exchange."""

    @staticmethod
    def forward(ctx, logits, outputs: Outputs, known: Totals, problem: Problem, own: Slice):
        ctx.in_forward, ctx.known, ctx.own = problem.need_gradient, known, own
        keep(ctx, [outputs.gradient] if ctx.in_forward else flatten(problem))
        return outputs.loss

    @staticmethod
    @run_as_is
    def backward(ctx, upstream):
        reject_second_derivative()
        return _gradient(ctx, upstream), None, None, None, None


def _gradient(ctx, upstream: Tensor) -> Tensor:
    if not has_storage(upstream):
        raise NotImplementedError("over a process group toast_loss takes one upstream gradient at a time")
    if ctx.in_forward:
        (gradient,) = kept(ctx)
        backend = choose("blended_kl", "auto", gradient.device, gradient.dtype)
        return times_upstream((gradient,), upstream, backend)[0]
    problem = unflatten(kept(ctx))._replace(upstream=upstream.double(), need_stats=False)
    rows = prepare_rows(problem, ctx.own)
    return differentiate(problem, rows, ctx.known, ctx.own, coefficients(problem, rows))[1]
