"""The op toast_kernels::blended_kl and its autograd: loss and gradient are computed together, backward only scales."""

import functools
import importlib

import torch

from ..backends import choose
from . import reference

torch.library.define(
    "toast_kernels::blended_kl",
    "(Tensor logits, Tensor target, Tensor? target_b, Tensor? lam, Tensor? weight,"
    " Tensor? soft_values, Tensor? soft_indices, Tensor? soft_logsumexp, Tensor? soft_filled, Tensor? alpha,"
    " Tensor? past_values, Tensor? past_indices, Tensor? past_logsumexp, Tensor? past_entropy, Tensor? past_filled,"
    " Tensor? past_index, Tensor? past_weight, Tensor? upstream,"
    " float soft_temperature, float temperature, int ignore_index, float label_smoothing, str reduction,"
    " bool need_gradient, bool need_stats, str backend)"
    " -> (Tensor loss, Tensor gradient, Tensor stats, Tensor argmax)",
)
_op = torch.ops.toast_kernels.blended_kl.default


@functools.cache
def _kernels(backend):
    return importlib.import_module(f".{backend}", __package__)


@torch.library.impl("toast_kernels::blended_kl", "CompositeExplicitAutograd")
def _(*arguments):
    *arguments, backend = arguments
    with torch.cuda.device_of(arguments[0]):  # a kernel is launched on the current device
        if backend == "triton":
            return _triton(*arguments)
        return _kernels(backend).blended_kl(*arguments)


def _triton(*a):
    from .native import rows_of
    from .problem import Problem, Table

    def full(x):
        return None if x is None else x.contiguous()

    logits = rows_of(a[0])
    target, target_b, lam, weight = map(full, a[1:5])
    sv, si, sl, sf = a[5], *map(full, a[6:9])
    pv, pi, pl, pe, pf = a[10], *map(full, a[11:15])
    soft = None if sv is None else Table(rows_of(sv), si, sl, None, sf, a[18])
    past = None if pv is None else Table(rows_of(pv), pi, pl, pe, pf, a[19])
    problem = Problem(logits, target, target_b, lam, weight, soft, a[9], past, full(a[15]), a[16], full(a[17]), *a[19:])
    launch = _kernels("triton").Launch(problem)
    loss, gradient, stats, argmax = launch(problem)
    return (
        loss,
        logits.new_empty(0) if gradient is None else gradient,
        loss.new_empty(2, 0) if stats is None else stats,
        logits.new_empty(0, dtype=torch.int64) if argmax is None else argmax,
    )


@torch.library.register_fake("toast_kernels::blended_kl")
def _(logits, *rest):
    reduction, need_gradient, need_stats, _ = rest[-4:]
    num_rows, num_classes = logits.shape
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty((num_rows,) if reduction == "none" else (), dtype=real),
        logits.new_empty((num_rows, num_classes) if need_gradient else (0,)),
        logits.new_empty((2, num_rows if need_stats else 0), dtype=real),
        logits.new_empty((num_rows if need_stats else 0,), dtype=torch.int64),
    )


class BlendedKL(torch.autograd.Function):
    """Forward keeps the gradient; the first backward scales it in place and hands it over.

    For reduction "none" and for float16 logits, and in any further backward through the same graph, backward computes
    the gradient anew with the upstream gradient folded in before rounding. So what was handed over is never written
    to again, and a GradScaler's scale reaches float16 gradients before they underflow.
    """

    @staticmethod
    def forward(ctx, settings, backend, differentiate, need_stats, *tensors):
        now = differentiate and tensors[0].dtype != torch.float16 and settings[-1] != "none"
        loss, gradient, stats, argmax = _op(*tensors, None, *settings, now, need_stats, backend)
        ctx.mark_non_differentiable(stats, argmax)
        if not differentiate:
            return loss, stats, argmax
        ctx.settings, ctx.backend = settings, backend
        ctx.scale_only = now and torch.compiler.is_compiling()  # the compiler owns the memory: no hand-over
        ctx.save_for_backward(*((gradient,) if ctx.scale_only else tensors))
        ctx.gradient = gradient if now and not ctx.scale_only else None
        return loss, stats, argmax

    @staticmethod
    def backward(ctx, upstream, *_):
        if ctx.scale_only:
            (gradient,) = ctx.saved_tensors
            gradient = (gradient * upstream).to(gradient.dtype)
        elif ctx.gradient is None:
            with torch.no_grad():
                gradient = _op(*ctx.saved_tensors, upstream, *ctx.settings, True, False, ctx.backend)[1]
        else:
            gradient, ctx.gradient = ctx.gradient, None
            with torch.no_grad(), torch.cuda.device_of(gradient):
                _kernels(ctx.backend).scale_(gradient, upstream)
        if torch.is_grad_enabled() and not ctx.scale_only:
            gradient = NoSecondDerivative.apply(gradient, ctx.saved_tensors[0])
        return None, None, None, None, gradient, *(None,) * (len(ctx.needs_input_grad) - 5)


class NoSecondDerivative(torch.autograd.Function):
    """Under create_graph=True the gradient must not pass for a constant: differentiating it raises."""

    @staticmethod
    def forward(ctx, gradient, logits):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError('toast_loss has no second derivative; backend="reference" has')


def blended_kl(
    logits,  # [N, C]
    target,  # [N] int64 | [N, C] class probabilities | (y_a [N], y_b [N], lam [N])
    weight=None,  # [C]
    *,
    soft_targets=None,
    alpha=None,  # number or []
    past=None,
    past_index=None,  # [N]
    past_weight=None,  # number or []
    temperature,
    ignore_index,
    label_smoothing,
    reduction,
    need_stats,
    backend,
):
    """Loss, stats [2, N] (cross_entropy, logsumexp) and argmax [N] of checked arguments; see functional.toast_loss."""
    learned_target = isinstance(target, torch.Tensor) and target.requires_grad and torch.is_grad_enabled()
    kernels = choose(backend, logits.device, logits.shape[1])
    why_not = None
    if kernels in ("triton", "cuda") and logits.dtype == torch.float64:
        why_not = "computes in float32, and the logits are float64"
    elif kernels != "reference" and learned_target:
        why_not = "gives no gradient to the target, and this one requires grad"
    if why_not and backend != "auto":
        raise ValueError(f'backend "{kernels}" {why_not}; use "auto" or "reference"')
    if kernels == "reference" or why_not:
        loss, cross_entropy, logsumexp, argmax = reference.blended_kl(
            logits, target, weight, soft_targets=soft_targets, alpha=alpha, past=past, past_index=past_index,
            past_weight=past_weight, temperature=temperature, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction,
        )  # fmt: skip
        return loss, (cross_entropy, logsumexp), argmax

    target, target_b, lam = target if isinstance(target, tuple) else (target, None, None)
    soft, last = soft_targets, past
    tensors = (
        logits, target, target_b, lam, weight,
        *((None,) * 4 if soft is None else (soft.values, soft.indices, soft.logsumexp, soft.filled)),
        None if soft is None else torch.as_tensor(alpha, dtype=torch.float64),
        *((None,) * 5 if last is None else (last.values, last.indices, last.logsumexp, last.entropy, last.filled)),
        past_index,
        None if last is None else torch.as_tensor(past_weight, dtype=torch.float64),
    )  # fmt: skip
    soft_temperature = 1.0 if soft is None or soft.temperature is None else soft.temperature
    settings = (soft_temperature, temperature, ignore_index, label_smoothing, reduction)
    # Through the Function in any case: under torch.func and forward-mode AD it raises, where the bare op would be
    # taken for a constant.
    return BlendedKL.apply(settings, kernels, logits.requires_grad and torch.is_grad_enabled(), need_stats, *tensors)
