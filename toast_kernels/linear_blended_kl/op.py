"""Gradients of the chunked loss: the op toast_kernels::linear_blended_kl for compilers, an autograd.Function for eager
calls.

As in blended_kl they come with the loss and are scaled in the backward pass; for float16 and reduction "none" the
backward pass runs the chunks again, with the upstream gradient folded in.
"""

import torch

from ..blended_kl.op import has_storage, keep, kept, reject_second_derivative, times_upstream
from ..blended_kl.problem import Problem, arguments_of_op, flatten, is_traced, none_as_empty, number, schema, unflatten
from ..uncompiled import run_as_is
from .chunks import Head, Result, Settings, allocate, run

torch.library.define(
    "toast_kernels::linear_blended_kl",
    f"({schema()}, Tensor linear_weight, Tensor? linear_bias, SymInt chunk_rows, ScalarType acc_dtype, int top_k, "
    "float[] temperatures, bool need_input, bool need_weight, bool need_bias, str backend) -> "
    f"({', '.join(f'Tensor {name}' for name in Result._fields)})",
)
_op = torch.ops.toast_kernels.linear_blended_kl.default
_SETTINGS = len(Settings._fields)
_HEAD = slice(-_SETTINGS - 2, -_SETTINGS)


def linear_blended_kl(problem: Problem, head: Head, settings: Settings) -> Result:
    """The result, its loss with a graph; problem.logits are the features, problem.need_gradient says whether the
    gradients that are needed come with the loss."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'linear_toast_loss has no torch.func transforms; toast_loss of backend "reference" has grad, jvp, hessian'
        )
    needs_graph = settings.need_input or settings.need_weight or settings.need_bias
    if not problem.need_gradient:
        settings = settings._replace(need_input=False, need_weight=False, need_bias=False)
    if is_traced() or problem.logits.is_meta:  # the op knows what shapes come of shapes
        return Result(*_op(*arguments_of_op(problem), *head, *settings))
    result = _run(problem, head, settings)
    if needs_graph:
        result = result._replace(loss=LinearBlendedKL.apply(problem.logits, *head, result, problem, settings))
    return result


@torch.library.impl("toast_kernels::linear_blended_kl", "CompositeExplicitAutograd")
def _(*arguments):
    problem, head, settings = _given(arguments)
    problem = problem._replace(alpha=number(problem.alpha), past_weight=number(problem.past_weight))
    return none_as_empty(_run(problem, head, settings), problem.logits)


@torch.library.register_fake("toast_kernels::linear_blended_kl")
def _(*arguments):
    problem, head, settings = _given(arguments)
    result = allocate(problem, head, settings)
    return none_as_empty(result._replace(loss=result.loss.to(problem.dtype)), problem.logits)


def _given(arguments) -> tuple[Problem, Head, Settings]:
    return unflatten(arguments[: _HEAD.start]), Head(*arguments[_HEAD]), Settings(*arguments[-_SETTINGS:])


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    problem, head, settings = _given(inputs)
    ctx.in_forward, ctx.settings = problem.need_gradient, settings
    ctx.dtypes = [None if x is None else x.dtype for x in (problem.logits, *head)]
    keep(ctx, output[-3:] if ctx.in_forward else inputs[:-_SETTINGS])


def _backward(ctx, upstream, *_):
    reject_second_derivative("linear_toast_loss")
    gradients = [None] * 3
    if upstream is not None:
        needs = ctx.needs_input_grad[0], *ctx.needs_input_grad[_HEAD]
        if ctx.in_forward:
            gradients = [g * upstream for g in kept(ctx)]
        else:
            *arguments, weight, bias = kept(ctx)
            problem = unflatten(arguments)._replace(
                upstream=upstream.contiguous(), need_gradient=True, need_stats=False
            )
            settings = ctx.settings._replace(top_k=0)
            settings = settings._replace(need_input=needs[0], need_weight=needs[1], need_bias=needs[2])
            gradients = _op(*arguments_of_op(problem), weight, bias, *settings)[-3:]
        gradients = [g.to(dtype) if need else None for g, dtype, need in zip(gradients, ctx.dtypes, needs, strict=True)]
    of_x, *of_head = gradients
    count = len(ctx.needs_input_grad)
    return of_x, *(None,) * (count - 1 - len(of_head) - _SETTINGS), *of_head, *(None,) * _SETTINGS


torch.library.register_autograd("toast_kernels::linear_blended_kl", _backward, setup_context=_save)


# Eager calls.


@torch.no_grad()
def _run(problem: Problem, head: Head, settings: Settings) -> Result:
    x = problem.logits
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        return run(problem._replace(logits=x.detach()), Head(*(y if y is None else y.detach() for y in head)), settings)


class LinearBlendedKL(torch.autograd.Function):
    """Gives the loss, which is computed already, its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, result: Result, problem: Problem, settings: Settings):
        ctx.settings, ctx.in_forward = settings, problem.need_gradient
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias)]
        keep(ctx, result[-3:] if problem.need_gradient else [*flatten(problem), weight, bias])
        return result.loss

    @staticmethod
    @run_as_is
    def backward(ctx, upstream):
        reject_second_derivative("linear_toast_loss")
        if not has_storage(upstream):
            raise NotImplementedError("linear_toast_loss takes one upstream gradient at a time, not is_grads_batched")
        if ctx.in_forward:
            gradients = times_upstream(kept(ctx), upstream, ctx.settings.backend)
        else:
            gradients = _recomputed(ctx, upstream)
        gradients = [g if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *gradients, None, None, None


def _recomputed(ctx, upstream) -> tuple:
    *fields, weight, bias = kept(ctx)
    problem = unflatten(fields)
    upstream = upstream.resolve_neg().to(problem.dtype).contiguous()
    problem = problem._replace(upstream=upstream, need_gradient=True, need_stats=False)
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    settings = ctx.settings._replace(need_input=need_input, need_weight=need_weight, need_bias=need_bias, top_k=0)
    return _run(problem, Head(weight, bias), settings)[-3:]
