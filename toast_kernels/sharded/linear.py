"""linear_toast_loss of a head whose classes lie over ranks: each has the weights of some, and all of the features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import Arguments, numbers, to_problem
from ..backends import choose
from ..blended_kl.op import gradient_in_forward, has_storage, keep, kept, reject_second_derivative, times_upstream
from ..blended_kl.problem import Problem, flatten, unflatten
from ..distributed import ProcessGroup
from ..functional import ToastStats
from ..linear import check_acc_dtype, check_linear, choose_chunk_rows, flattened, product_dtype
from ..linear_blended_kl.chunks import Head, add_product, problem_of_chunk
from ..uncompiled import run_as_is
from .arguments import check_own, check_widths, settings
from .dtensor import arrived, check_one_group, group_of, local, slice_of, whole
from .exchange import Exchange
from .loss import differentiate, reject_out_of_range, share_losses, share_statistics
from .rows import Totals, coefficients, cut, prepare_rows
from .tables import Slice, parts_of

CALL = "linear_toast_loss"


class Work(NamedTuple):
    own: Slice
    chunk_rows: int
    acc_dtype: torch.dtype
    needs: tuple[bool, ...]  # gradients of input, weight and bias


@torch.compiler.disable
def sharded_linear_toast_loss(
    input: Tensor,
    linear_weight: Tensor,  # [width, D]
    linear_bias: Tensor | None,  # [width]
    process_group: ProcessGroup | str | None,
    *,
    shift: int,
    return_top_k: int | None,
    chunk_bytes: int | None,
    acc_dtype: torch.dtype | None,
    **given: Any,  # Arguments but for logits
) -> Tensor | tuple[Tensor, ToastStats]:
    """linear.linear_toast_loss, of this rank's classes."""
    exchange = Exchange(group_of("linear_weight", linear_weight, process_group), CALL)
    width, said = 0, {}
    with exchange.attempt():
        check_one_group("linear_weight", linear_weight, process_group)
        input = whole("input", input)
        linear_weight = slice_of("linear_weight", linear_weight, 0)
        linear_bias = slice_of("linear_bias", linear_bias, 0)
        given = local(Arguments(logits=input, **given))
        width = len(linear_weight) if isinstance(linear_weight, Tensor) and linear_weight.dim() else 0
        target, past, past_index = given.target, given.past, given.past_index
        head = [linear_weight, linear_bias]
        if not width:  # one class, for checks that want one
            head = [x if x is None else x.new_zeros(1, *x.shape[1:]) for x in head]
            if isinstance(target, Tensor) and target.is_floating_point():
                target = target.new_zeros(*target.shape[:-1], 1)
        shape = check_linear(input, *head, target, past_index, shift)
        if return_top_k is not None:
            raise ValueError(f"return_top_k must be None over a process group, got {return_top_k!r}")
        dtype = product_dtype(input, *head)
        acc_dtype = check_acc_dtype(acc_dtype, dtype)
        x = input.reshape(shape.numel(), input.shape[-1]).to(dtype)
        target, past, past_index = flattened(target, past, past_index, shape, int(shift), given.ignore_index)
        logits = x.new_empty(1, width).expand(len(x), width)
        given = given._replace(logits=logits, target=target, past=past, past_index=past_index)
        given = check_own(given, CALL)
        grad = torch.is_grad_enabled()
        needs = tuple(grad and y is not None and y.requires_grad for y in (input, linear_weight, linear_bias))
        problem = to_problem(given, *numbers(given), any(needs) and gradient_in_forward(x, given.reduction))
        problem = problem._replace(logits=arrived(x))
        of_head = {"D": x.shape[1], "linear_bias": None if linear_bias is None else "given", "shift": int(shift)}
        of_work = {"chunk_bytes": chunk_bytes, "acc_dtype": acc_dtype}
        of_work |= {"whether input requires grad": needs[0], "whether anything requires grad": any(needs)}
        said = settings(given) | of_head | of_work
    widths = exchange.meet(width, said)
    own = Slice(sum(widths[: exchange.rank]), width, sum(widths))
    check_widths(given, own.num_classes)
    work = Work(own, choose_chunk_rows(chunk_bytes, x, max(widths), in_place=False), acc_dtype, needs)
    with exchange.attempt():
        reject_out_of_range(problem, own.num_classes)
    in_forward = work if problem.need_gradient else work._replace(needs=(False,) * 3)
    found, known, gradients = run(problem, Head(linear_weight, linear_bias), in_forward, exchange)
    loss, cross_entropy = share_losses(problem, prepare_rows(problem, own), known, found, exchange)
    loss = loss.to(problem.dtype)
    if any(needs):
        loss = ShardedLinear.apply(x, linear_weight, linear_bias, loss, gradients, known, problem, work, exchange)
    if problem.reduction == "none":
        loss = loss.reshape(shape)
    if not problem.need_stats:
        return loss
    stats = cross_entropy.to(problem.dtype), known.logsumexp.to(problem.dtype), known.argmax
    return loss, ToastStats(*(y.reshape(shape) for y in stats))


@torch.no_grad()
def run(
    problem: Problem,  # whose logits are the features [N, D]
    head: Head,
    work: Work,
    exchange: Exchange,
    known: Totals | None = None,  # from an earlier run
) -> tuple[Tensor | None, Totals, list[Tensor | None]]:
    """What share_losses takes, the rows' totals, and the gradients of input, which is that of all ranks, of weight and
    of bias."""
    with torch.autocast(problem.logits.device.type, enabled=False), torch.cuda.device_of(problem.logits):
        x, own, (need_input, need_weight, need_bias) = problem.logits, work.own, work.needs
        of_input = of_weight = of_bias = None
        with exchange.attempt():
            weight, bias = (None if y is None else arrived(y).to(x.dtype) for y in head)
            rows = prepare_rows(problem, own)
            scale = coefficients(problem, rows) if any(work.needs) else None
            if need_input:
                of_input = torch.empty_like(x)
                products = torch.empty_like(x[: work.chunk_rows], dtype=problem.dtype)
            if need_weight:
                of_weight = torch.empty_like(weight, dtype=work.acc_dtype)
            if need_bias:
                of_bias = torch.zeros_like(bias, dtype=work.acc_dtype)
        exchange.settle()  # from here on a rank that fails still has what it must send
        found, totals = [], []
        for part in parts_of(len(x), work.chunk_rows):
            features, of_rows = x[part], cut(rows, part)
            chunk = problem_of_chunk(problem, part, features[:, :1])  # until the logits are there
            with exchange.attempt():
                if exchange.error is None:
                    z = torch.mm(features, weight.T) if bias is None else torch.addmm(bias, features, weight.T)
                    chunk = chunk._replace(logits=z)
            here = share_statistics(chunk, of_rows, own, exchange) if known is None else cut(known, part)
            totals.append(here)
            product = products[: len(features)].zero_() if need_input else None
            with exchange.attempt():
                if exchange.error is None:
                    losses, gradient = differentiate(chunk, of_rows, here, own, cut(scale, part))
                    found.append(losses)
                    if need_input:
                        product.copy_(torch.mm(gradient, weight))
                    if need_weight:
                        add_product(of_weight, gradient, features, is_first=part.start == 0)
                    if need_bias:
                        of_bias += gradient.sum(0, dtype=problem.dtype)
            if need_input:
                of_input[part] = exchange.add(product)
        found = torch.cat(found, 1) if exchange.error is None else None
        return found, known or joined(totals), [of_input, of_weight, of_bias]


def joined(parts: list):
    """The inverse of `cut`, of Totals or what stands in them."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], list):
        return [joined(x) for x in zip(*parts, strict=True)]
    return parts[0] and Totals(*(joined(x) for x in zip(*parts, strict=True)))


class ShardedLinear(torch.autograd.Function):
    """Gives the loss, which is computed already, its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, loss, gradients, known: Totals, problem: Problem, work: Work, exchange: Exchange):
        ctx.in_forward, ctx.known, ctx.work, ctx.exchange = problem.need_gradient, known, work, exchange
        ctx.dtypes = [None if y is None else y.dtype for y in (x, weight, bias)]
        keep(ctx, gradients if ctx.in_forward else [*flatten(problem), weight, bias])
        return loss

    @staticmethod
    @run_as_is
    def backward(ctx, upstream):
        reject_second_derivative(CALL)
        if not has_storage(upstream):
            raise NotImplementedError(f"{CALL} takes one upstream gradient at a time, not is_grads_batched")
        if ctx.in_forward:
            backend = choose("blended_kl", "auto", upstream.device, ctx.dtypes[0])
            gradients = times_upstream(kept(ctx), upstream, backend)
        else:
            gradients = _recomputed(ctx, upstream)
        gradients = [g if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *gradients, *(None,) * 6


def _recomputed(ctx, upstream: Tensor) -> list:
    with ctx.exchange.attempt():
        *fields, weight, bias = kept(ctx)
        problem = unflatten(fields)._replace(upstream=upstream.double(), need_stats=False)
    ctx.exchange.settle()
    _, _, gradients = run(problem, Head(weight, bias), ctx.work, ctx.exchange, ctx.known)
    ctx.exchange.settle()
    return gradients
