"""How a call of toast_loss runs, found once for each kind of call.

A kind is what a call's checks and launches depend on: shapes, strides, dtypes, devices and settings. The first call of
a kind is checked, and its Plan kept; the next ones only look values up: alpha, past_weight, and where tensors lie.
"""

import threading

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import Arguments, check, check_values, to_problem
from ..backends import choose
from ..soft_targets import SoftTargets
from . import reference
from .op import gradient_in_forward, kernels, traced, with_gradient
from .problem import Outputs, Problem, Table, number

MOST_PLANS = 1024
_plans: dict[tuple, "Plan"] = {}
_adding = threading.Lock()


def blended_kl(given: Arguments) -> Outputs:
    """Loss [] or [N] with its graph, and stats, of what toast_loss was given."""
    kind = kind_of_call(given)
    plan = _plans.get(kind) if kind is not None else None
    if plan is None:
        check(given)
        plan = Plan(given, eager=kind is not None)
        outputs = plan(given)
        if kind is not None:
            _keep(kind, plan)
        return outputs
    return plan(given)


def _keep(kind: tuple, plan: "Plan") -> None:
    with _adding:
        if len(_plans) >= MOST_PLANS:
            _plans.pop(next(iter(_plans)))
        _plans[kind] = plan


class Plan:
    """Runs calls of one kind."""

    def __init__(self, given: Arguments, eager: bool):
        logits, target = given.logits, given.target
        grad = torch.is_grad_enabled()
        learns_target = isinstance(target, Tensor) and target.requires_grad and grad
        width = logits.shape[min(1, logits.dim() - 1)]
        self.backend = choose(
            "blended_kl", given.backend, logits.device, logits.dtype, width, learns_target=learns_target
        )
        self.eager = eager
        self.differentiable = logits.requires_grad and grad
        self.in_forward = gradient_in_forward(logits, given.reduction)
        self.need_gradient = self.differentiable and self.in_forward and self.backend != "reference"
        self.launch = self.launch_backward = None

    def __call__(self, given: Arguments) -> Outputs:
        alpha, past_weight = number(given.alpha), number(given.past_weight)
        check_values(given, alpha, past_weight)
        problem = to_problem(given, alpha, past_weight, self.need_gradient)
        if self.backend == "reference":
            return reference.blended_kl(problem)
        if not self.eager:
            return traced(problem, self.backend)
        if self.launch is None:
            self.launch = kernels(self.backend).Launch(problem)
        logits = problem.logits
        if logits.is_cuda and logits.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(logits):
                outputs = self.launch(problem)
        else:
            outputs = self.launch(problem)
        if not self.differentiable:
            return outputs
        later = None if self.in_forward else _GradientLater(self, problem)
        loss = with_gradient(logits, outputs, kernels(self.backend).scale_, later)
        return Outputs(loss, None, outputs.stats, outputs.argmax)


class _GradientLater:
    """Computes the gradient in the backward pass, from the logits that autograd kept and what else there was."""

    def __init__(self, plan: Plan, problem: Problem):
        self.plan, self.others = plan, problem[1:]
        self.versions = self._versions()

    def __call__(self, logits: Tensor, upstream: Tensor) -> Tensor:
        for (name, before), (_, now) in zip(self.versions, self._versions(), strict=True):
            if before != now:
                raise RuntimeError(
                    f"{name} was modified by an inplace operation after toast_loss had computed the loss from it, and "
                    f"the gradient is computed from it again (float16 logits or reduction='none')"
                )
        problem = Problem(logits, *self.others)
        upstream = upstream.to(problem.dtype).contiguous()
        problem = problem._replace(upstream=upstream, need_gradient=True, need_stats=False)
        plan = self.plan
        if plan.launch_backward is None:
            plan.launch_backward = kernels(plan.backend).Launch(problem)
        return plan.launch_backward(problem).gradient

    def _versions(self) -> list:
        found = []
        for name, value in zip(Problem._fields[1:], self.others, strict=True):
            tensors = zip(Table._fields, value, strict=True) if isinstance(value, Table) else [("", value)]
            for field, x in tensors:
                if isinstance(x, Tensor) and not x.is_inference():
                    found.append((f"{name} {field}".strip(), x._version))
        return found


def kind_of_call(given: Arguments) -> tuple | None:
    """What the plan of a call is found by; None for a call that is to be looked at anew each time: under a compiler,
    another dispatch mode or transform, with tensor subclasses or settings that are no plain numbers, or wrong ones."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    logits, target, soft, past = given.logits, given.target, given.soft_targets, given.past
    if type(logits) not in _TENSORS:
        return None
    settings = given[8:]  # temperature to backend
    if tuple(map(type, settings)) not in _SETTINGS:
        return None
    try:
        return (
            logits.shape, logits.stride(), logits.dtype, logits.device,
            logits.requires_grad, torch.is_grad_enabled(),
            tuple(map(_operand, target)) if type(target) in (tuple, list) else _operand(target),
            None if given.weight is None else _operand(given.weight),
            None if soft is None else _table(soft), _scalar(given.alpha),
            None if past is None else _table(past) if type(past) is SoftTargets else _matrix(past),
            None if given.past_index is None else _operand(given.past_index), _scalar(given.past_weight),
            *settings,
        )  # fmt: skip
    except _Unplanned:
        return None


class _Unplanned(Exception):
    pass


_TENSORS = (Tensor, torch.nn.Parameter)
_NUMBERS = (float, int)
_SETTINGS = {(a, int, b, str, bool, str) for a in _NUMBERS for b in _NUMBERS}


def _operand(x) -> tuple:
    if type(x) in _TENSORS:
        return x.shape, x.dtype, x.device, x.requires_grad
    return _scalar(x)


def _matrix(x) -> tuple:
    if type(x) in _TENSORS:
        return x.shape, x.stride(), x.dtype, x.device
    raise _Unplanned


def _scalar(x):
    """Its value is no part of a kind."""
    if type(x) in _NUMBERS:
        return float
    if type(x) in _TENSORS and not x.dim():
        return float if x.device.type == "cpu" else (x.dtype, x.device)
    raise _Unplanned


def _table(x) -> tuple:
    if type(x) is SoftTargets:
        return x.kind
    raise _Unplanned
