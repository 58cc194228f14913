"""blended_kl with its gradient: the op toast_kernels::blended_kl for compilers, an autograd.Function for eager calls.

Loss and gradient are computed together, in the forward pass, and the backward pass only scales; but for float16 logits
and reduction "none", see gradient_in_forward.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import implementation
from ..uncompiled import run_as_is
from .problem import (
    Outputs,
    Problem,
    allocate,
    arguments_of_op,
    flatten,
    is_traced,
    none_as_empty,
    number,
    schema,
    unflatten,
)

torch.library.define(
    "toast_kernels::blended_kl",
    f"({schema()}, str backend) -> (Tensor loss, Tensor gradient, Tensor stats, Tensor argmax)",
)
_op = torch.ops.toast_kernels.blended_kl.default


def gradient_in_forward(logits: Tensor, reduction: str) -> bool:
    """For reduction "none" and for float16 logits the backward pass computes it, with the upstream gradient folded in
    before rounding: so a GradScaler's scale reaches float16 gradients before they underflow."""
    return reduction != "none" and logits.dtype != torch.float16


@torch.library.impl("toast_kernels::blended_kl", "CompositeExplicitAutograd")
def _(*arguments):
    *arguments, backend = arguments
    problem = unflatten(arguments)
    problem = problem._replace(alpha=number(problem.alpha), past_weight=number(problem.past_weight))
    with torch.cuda.device_of(problem.logits):  # a kernel is launched on the current device
        return none_as_empty(implementation("blended_kl", backend).Launch(problem)(problem), problem.logits)


@torch.library.register_fake("toast_kernels::blended_kl")
def _(*arguments):
    problem = unflatten(arguments[:-1])
    return none_as_empty(allocate(problem), problem.logits)


_KEPT = object()  # stands for a tensor that autograd keeps


def keep(ctx, arguments) -> None:
    """Lets autograd keep the tensors among these, so that it looks at their versions and hooks see them."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.strides = None if is_traced() else [x.stride() for x in tensors]
    ctx.arguments = [_KEPT if isinstance(x, Tensor) else x for x in arguments]


def kept(ctx) -> list:
    """What was handed to `keep`; a tensor that a hook has laid out in memory in another way, contiguous."""
    tensors = ctx.saved_tensors
    if ctx.strides is not None:
        tensors = [
            x if x.stride() == stride and not x.is_neg() else x.resolve_neg().contiguous()
            for x, stride in zip(tensors, ctx.strides, strict=True)
        ]
    tensors = iter(tensors)
    return [next(tensors) if x is _KEPT else x for x in ctx.arguments]


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.in_forward = unflatten(inputs[:-1]).need_gradient
    keep(ctx, output[1:2] if ctx.in_forward else inputs)


@run_as_is
def _backward(ctx, upstream, *_):
    reject_second_derivative()
    gradient = None
    if upstream is not None:
        if ctx.in_forward:
            (gradient,) = kept(ctx)
            gradient = (gradient * upstream).to(gradient.dtype)
        else:
            *arguments, backend = kept(ctx)
            gradient = _gradient_by_op(unflatten(arguments), upstream, backend)
    return gradient, *(None,) * (len(ctx.needs_input_grad) - 1)


def _gradient_by_op(problem: Problem, upstream: Tensor, backend: str) -> Tensor:
    problem = problem._replace(upstream=upstream.resolve_neg().contiguous(), need_gradient=True, need_stats=False)
    return _op(*arguments_of_op(problem), backend)[1]


torch.library.register_autograd("toast_kernels::blended_kl", _backward, setup_context=_save)


def traced(problem: Problem, backend: str) -> Outputs:
    """Through the op: what compilers, fake tensors and other dispatch modes see."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'toast_loss\'s kernels have no torch.func transforms; backend="reference" has grad, jvp, hessian'
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(problem.logits).tangent is not None:
        raise NotImplementedError('toast_loss\'s kernels have no forward-mode derivative; backend="reference" has')
    loss, _, stats, argmax = _op(*arguments_of_op(problem), backend)
    return Outputs(loss, None, stats.detach(), argmax)


class BlendedKL(torch.autograd.Function):
    """Gives the loss, which is computed already, its gradient.

    The gradient that came with it is scaled in place and handed over, unless the graph is kept to be run again: so one
    gradient is all the memory that it takes.
    """

    @staticmethod
    def forward(ctx, logits, outputs: Outputs, plan, problem: Problem):
        """plan.gradient(problem, upstream) is the gradient where outputs have none."""
        loss, gradient, _, _ = outputs
        ctx.plan = plan
        if plan.need_gradient:
            ctx.save_for_backward(gradient)
        else:
            keep(ctx, flatten(problem))
        return loss

    @staticmethod
    @run_as_is
    def backward(ctx, upstream):
        reject_second_derivative()
        return BlendedKL.gradient(ctx, upstream), None, None, None

    @staticmethod
    def gradient(ctx, upstream):
        plan, batched = ctx.plan, not has_storage(upstream)  # is_grads_batched: several upstream gradients in one
        batched = batched or torch._C._len_torch_dispatch_stack() > 0
        if not plan.need_gradient:
            problem = unflatten(kept(ctx))
            return _gradient_by_op(problem, upstream, plan.backend) if batched else plan.gradient(problem, upstream)
        (saved,) = ctx.saved_tensors
        if batched:
            return saved * upstream
        (gradient,) = times_upstream((saved,), upstream, plan.backend)
        return gradient


# Function.apply less its look for torch.func transforms, under which no plan is found.
with_gradient = super(torch.autograd.Function, BlendedKL).apply
has_storage = getattr(torch._C, "_has_storage", lambda tensor: True)  # no public interface, as the next
# Whether the backward pass that runs may be run again: retain_graph.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def times_upstream(gradients: Iterable[Tensor | None], upstream: Tensor, backend: str) -> list[Tensor | None]:
    """Gradients that came with the loss, times upstream, []: in place, unless the graph is kept to be run again."""
    upstream = upstream.resolve_neg()
    if _graph_is_kept():
        return [g if g is None else g * upstream for g in gradients]
    gradients = [g if g is None else g.detach() for g in gradients]  # autograd hands over what nobody else holds
    for gradient in gradients:  # each a new version: run again, after a hook that raised, it would be scaled twice
        if gradient is not None and gradient.is_contiguous() and not gradient.is_neg():
            implementation("blended_kl", backend).scale_(gradient, upstream)
        elif gradient is not None:  # a hook gave back another
            gradient.mul_(upstream)
    return gradients


def reject_second_derivative(call: str = "toast_loss") -> None:
    """Raises in a backward pass whose gradient could be differentiated, lest it pass for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"create_graph=True is for a second derivative, which {call} does not have; "
            'toast_loss of whole logits with backend="reference" has'
        )
