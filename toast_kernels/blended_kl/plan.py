"""How a call of toast_loss runs, found once for each kind of call.

A kind is what a call's checks and launches depend on: shapes, strides, dtypes, devices and settings. The first call of
a kind is checked, and its Plan kept; the next ones only look values up: alpha, past_weight, and where tensors lie.
"""

import threading

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import Arguments, check, check_values, class_dim, to_problem
from ..backends import choose
from ..native import rows_of
from ..soft_targets import SoftTargets
from . import reference
from .op import gradient_in_forward, kernels, traced, with_gradient
from .problem import Outputs, Problem, flatten, number

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
        width = logits.shape[class_dim(logits)]
        self.backend = choose(
            "blended_kl", given.backend, logits.device, logits.dtype, width, learns_target=learns_target
        )
        self.eager = eager
        self.differentiable = logits.requires_grad and grad
        in_forward = self.differentiable and gradient_in_forward(logits, given.reduction)
        self.need_gradient = in_forward and self.backend != "reference"
        self.launch = self.scale_ = None
        self.backward_launches = {}  # by strides: hooks may give back other ones than autograd was given

    def __call__(self, given: Arguments) -> Outputs:
        alpha, past_weight = number(given.alpha), number(given.past_weight)
        check_values(given, alpha, past_weight)
        problem = to_problem(given, alpha, past_weight, self.need_gradient)
        if self.backend == "reference":
            return reference.blended_kl(problem)
        if not self.eager:
            return traced(problem, self.backend)
        if self.launch is None:
            self.scale_ = kernels(self.backend).scale_
            self.launch = kernels(self.backend).Launch(problem)
        logits = problem.logits
        if logits.is_cuda and logits.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(logits):
                outputs = self.launch(problem)
        else:
            outputs = self.launch(problem)
        if not self.differentiable:
            return outputs
        loss = with_gradient(logits, outputs, self, problem)
        return Outputs(loss, None, outputs.stats, outputs.argmax)

    def gradient(self, problem: Problem, upstream: Tensor) -> Tensor:
        """In the backward pass, of a problem without a gradient in its forward pass."""
        logits, upstream = rows_of(problem.logits), upstream.to(problem.dtype).contiguous()
        problem = problem._replace(logits=logits, upstream=upstream, need_gradient=True, need_stats=False)
        strides = tuple(x.stride() for x in flatten(problem) if isinstance(x, Tensor))
        launch = self.backward_launches.get(strides)
        if launch is None:
            launch = self.backward_launches[strides] = kernels(self.backend).Launch(problem)
        return launch(problem).gradient


def kind_of_call(given: Arguments) -> tuple | None:
    """What the plan of a call is found by; None for a call that is to be looked at anew each time: under a compiler,
    another dispatch mode or transform, with tensor subclasses or settings that are no plain numbers, or wrong ones."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch._C._get_tracing_state():
        return None
    logits, target, soft, past = given.logits, given.target, given.soft_targets, given.past
    if type(logits) not in _TENSORS:
        return None
    settings = given[8:]  # temperature to backend
    if tuple(map(type, settings)) not in _SETTINGS and not all(map(isinstance, settings, _KINDS_OF_SETTINGS)):
        return None
    try:
        return (
            logits.shape, logits.stride(), logits.dtype, logits.device,
            logits.requires_grad, torch.is_grad_enabled(),
            tuple(map(_of_operand, target)) if type(target) in (tuple, list) else _of_operand(target),
            None if given.weight is None else _of_operand(given.weight),
            None if soft is None else _of_table(soft), _of_scalar(given.alpha),
            None if past is None else _of_table(past) if type(past) is SoftTargets else _of_matrix(past),
            None if given.past_index is None else _of_operand(given.past_index), _of_scalar(given.past_weight),
            *settings,
        )  # fmt: skip
    except _Unplanned:
        return None


class _Unplanned(Exception):
    pass


_TENSORS = (Tensor, torch.nn.Parameter)
_NUMBERS = (float, int)
_KINDS_OF_SETTINGS = (_NUMBERS, int, _NUMBERS, str, bool, str)
_SETTINGS = {(a, int, b, str, bool, str) for a in _NUMBERS for b in _NUMBERS}  # without a look at each of them


def _of_operand(x) -> tuple:
    if type(x) not in _TENSORS:
        return _of_scalar(x)
    if x.is_floating_point() and x.dim() > 1:
        return (*_of_matrix(x), x.requires_grad)
    return x.shape, x.dtype, x.device


def _of_matrix(x) -> tuple:
    if type(x) in _TENSORS:
        return x.shape, x.stride(), x.dtype, x.device
    raise _Unplanned


def _of_scalar(x):
    """Its value is no part of a kind."""
    if isinstance(x, _NUMBERS):
        return float
    if type(x) in _TENSORS and not x.dim():
        return float if x.device.type == "cpu" else (x.dtype, x.device)
    raise _Unplanned


def _of_table(x) -> tuple:
    if type(x) is SoftTargets:
        return x.kind
    raise _Unplanned
