"""blended_kl with its gradient: the op toast_kernels::blended_kl for compilers, an autograd.Function for eager calls.

Loss and gradient are computed together, in the forward pass; the backward pass only scales.
"""

import functools
import importlib

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .problem import Outputs, Problem, allocate, flatten, number, schema, unflatten

torch.library.define(
    "toast_kernels::blended_kl",
    f"({schema()}, str backend) -> (Tensor loss, Tensor gradient, Tensor stats, Tensor argmax)",
)
_op = torch.ops.toast_kernels.blended_kl.default


@functools.cache
def kernels(backend: str):
    """The module of a backend: Launch and scale_."""
    return importlib.import_module(f".{backend}", __package__)


def gradient_in_forward(logits: Tensor, reduction: str) -> bool:
    """For reduction "none" and for float16 logits the backward pass computes it, with the upstream gradient folded in
    before rounding: so a GradScaler's scale reaches float16 gradients before they underflow."""
    return reduction != "none" and logits.dtype != torch.float16


# The op. A Tensor is all that it can return: what there is none of is empty.


def _tensors(outputs: Outputs, logits: Tensor) -> tuple:
    return tuple(logits.new_empty(0) if x is None else x for x in outputs)


@torch.library.impl("toast_kernels::blended_kl", "CompositeExplicitAutograd")
def _(*arguments):
    *arguments, backend = arguments
    problem = unflatten(arguments)
    problem = problem._replace(alpha=number(problem.alpha), past_weight=number(problem.past_weight))
    with torch.cuda.device_of(problem.logits):  # a kernel is launched on the current device
        return _tensors(kernels(backend).Launch(problem)(problem), problem.logits)


@torch.library.register_fake("toast_kernels::blended_kl")
def _(*arguments):
    problem = unflatten(arguments[:-1])
    return _tensors(allocate(problem), problem.logits)


def _save(ctx, inputs, output):
    problem = unflatten(inputs[:-1])
    ctx.set_materialize_grads(False)
    ctx.in_forward = problem.need_gradient
    if ctx.in_forward:
        ctx.save_for_backward(output[1])
        return
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.inputs = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]


def _backward(ctx, upstream, *_):
    nothing = (None,) * (len(ctx.needs_input_grad) - 1)
    if upstream is None:
        return None, *nothing
    if ctx.in_forward:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(gradient.dtype), *nothing
    inputs = list(ctx.inputs)
    for i, x in zip(ctx.tensors, ctx.saved_tensors, strict=True):
        inputs[i] = x
    problem = unflatten(inputs[:-1])._replace(upstream=upstream.contiguous(), need_gradient=True, need_stats=False)
    return _op(*flatten(problem), inputs[-1])[1], *nothing


torch.library.register_autograd("toast_kernels::blended_kl", _backward, setup_context=_save)


def traced(problem: Problem, backend: str) -> Outputs:
    """Through the op: what compilers, fake tensors and other dispatch modes see."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError('toast_loss\'s kernels have no torch.func transforms; backend="reference" has')
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(problem.logits).tangent is not None:
        raise NotImplementedError('toast_loss\'s kernels have no forward-mode derivative; backend="reference" has')
    loss, _, stats, argmax = _op(*flatten(problem), backend)
    return Outputs(loss, None, stats.detach(), argmax)


class BlendedKL(torch.autograd.Function):
    """Gives the loss, which is computed already, its gradient.

    The gradient that came with it is scaled in place and handed over, unless the graph is kept to be run again: so one
    gradient is all the memory that it takes, and nothing that was handed over is written to.
    """

    @staticmethod
    def forward(ctx, logits, outputs: Outputs, scale_, gradient_of):
        """gradient_of(logits, upstream): where outputs have none."""
        ctx.save_for_backward(logits if outputs.gradient is None else outputs.gradient)
        ctx.scale_, ctx.gradient_of = scale_, gradient_of
        return outputs.loss

    @staticmethod
    def backward(ctx, upstream):
        if not torch.is_grad_enabled():
            return BlendedKL.gradient(ctx, upstream), None, None, None
        with torch.no_grad():
            gradient = BlendedKL.gradient(ctx, upstream)
        return NoSecondDerivative.apply(gradient, gradient.new_empty(0).requires_grad_()), None, None, None

    @staticmethod
    def gradient(ctx, upstream):
        (saved,) = ctx.saved_tensors
        if ctx.gradient_of is not None:
            return ctx.gradient_of(saved, upstream)
        if _graph_is_kept():
            return saved * upstream
        gradient = saved.detach()  # autograd hands a tensor over that nobody else holds
        ctx.scale_(gradient, upstream)
        return gradient


# Function.apply less its look for torch.func transforms, under which no plan is found.
with_gradient = super(torch.autograd.Function, BlendedKL).apply
# Whether the backward pass that runs may be run again: retain_graph, create_graph.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class NoSecondDerivative(torch.autograd.Function):
    """Under create_graph=True the gradient must not pass for a constant: differentiating it raises."""

    @staticmethod
    def forward(ctx, gradient, differentiable):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError('toast_loss has no second derivative; backend="reference" has')
