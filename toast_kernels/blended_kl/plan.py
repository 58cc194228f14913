"""How a call of toast_loss runs, found once for each kind of call.

A kind is what a call's checks and launches depend on: shapes, strides, dtypes, devices and settings. The first call of
a kind is checked, and its Plan kept; the next ones only look values up: alpha, past_weight, and where tensors lie.
"""

import threading

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import Arguments, check, class_dim, learned, numbers, to_problem
from ..backends import choose, implementation
from ..native import rows_of
from ..soft_targets import SoftTargets
from . import reference
from .cuda import held
from .op import gradient_in_forward, traced, with_gradient
from .problem import Outputs, Problem, flatten, is_traced, make

MOST_PLANS = 1024
PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors whose operations nothing overrides
_plans: dict[tuple, "Plan"] = {}
_adding = threading.Lock()


def blended_kl(given: tuple) -> Outputs:
    """Loss [] or [N] with its graph, and stats, of what toast_loss was given: Arguments in order."""
    kind = kind_of_call(given)
    try:
        plan = None if kind is None else _plans.get(kind)
    except TypeError:  # a setting that cannot be hashed
        plan = None
    if plan is not None:
        return plan.run(given)
    arguments = Arguments(*given)
    check(arguments)
    eager = kind is not None and all(map(isinstance, given[8:], _KINDS_OF_SETTINGS))
    plan = Plan(arguments, eager)
    outputs = plan.run(given)
    if eager:
        _keep(kind, plan)
    return outputs


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
        self.learned = learned(given) if grad else ()
        backend, width = given.backend, logits.shape[class_dim(logits)]
        probabilities = isinstance(target, Tensor) and target.is_floating_point()
        if backend == "auto" and probabilities and not {"target", "weight"}.isdisjoint(self.learned):
            backend = "reference"  # which alone gives them a gradient, as F.cross_entropy does
        self.backend = choose("blended_kl", backend, logits.device, logits.dtype, width, held=held(given))
        if self.learned and self.backend != "reference":
            raise ValueError(
                f'{self.learned[0]} requires grad, and backend "{self.backend}" gives it no gradient: use '
                'backend="reference", or detach it'
            )
        self.eager = eager
        self.differentiable = logits.requires_grad and grad
        in_forward = self.differentiable and gradient_in_forward(logits, given.reduction)
        self.need_gradient = in_forward and self.backend != "reference"
        self.launch = None
        self.rest = None  # where nothing else changes from call to call: the Problem but for its logits and labels
        self.backward_launches = {}  # by strides: hooks may give back other ones than autograd was given

    def run(self, given: tuple) -> Outputs:
        alpha, past_weight = numbers(given)
        if self.rest is not None:
            problem = make(Problem, given[:2] + self.rest)
        else:
            problem = to_problem(given, alpha, past_weight, self.need_gradient)
            if self.launch is None:
                if self.backend == "reference":
                    values = {name: getattr(Arguments(*given), name) for name in self.learned if name in _SCALARS}
                    return reference.blended_kl(problem._replace(**values))
                if not self.eager:
                    return traced(problem, self.backend)
                self.launch = implementation("blended_kl", self.backend).Launch(problem)
                if _is_plain(problem, given):
                    self.rest = problem[2:]
        logits = problem[0]
        if logits.is_cuda and logits.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(logits):
                outputs = self.launch(problem)
        else:
            outputs = self.launch(problem)
        if not self.differentiable:
            return outputs
        _, _, stats, argmax = outputs
        return make(Outputs, (with_gradient(logits, outputs, self, problem), None, stats, argmax))

    def gradient(self, problem: Problem, upstream: Tensor) -> Tensor:
        """In the backward pass, of a problem without a gradient in its forward pass."""
        logits, upstream = rows_of(problem.logits), upstream.resolve_neg().to(problem.dtype).contiguous()
        problem = problem._replace(logits=logits, upstream=upstream, need_gradient=True, need_stats=False)
        strides = tuple(x.stride() for x in flatten(problem) if isinstance(x, Tensor))
        launch = self.backward_launches.get(strides)
        if launch is None:
            launch = self.backward_launches[strides] = implementation("blended_kl", self.backend).Launch(problem)
        return launch(problem).gradient


def _is_plain(problem: Problem, given: tuple) -> bool:
    """Whether only logits and labels change from call to call of the kind, and go to the kernel as they are given."""
    others = problem[2 : Problem._fields.index("upstream")]
    return problem.logits is given[0] and problem.target is given[1] and all(x is None for x in others)


def kind_of_call(given: tuple) -> tuple | None:
    """What the plan of a call is found by; None for a call that is to be looked at anew each time: under a compiler,
    another dispatch mode or transform, with tensor subclasses or settings that are no plain numbers, or wrong ones."""
    if is_traced():
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch._C._get_tracing_state():
        return None
    (
        logits, target, weight, soft, alpha, past, past_index, past_weight, temperature, ignore_index, label_smoothing,
        reduction, return_stats, backend,
    ) = given  # fmt: skip
    try:
        return (
            _of_tensor(logits), torch.is_grad_enabled(),
            tuple(map(_of_operand, target)) if type(target) in (tuple, list) else _of_tensor(target),
            None if weight is None else _of_tensor(weight),
            None if soft is None else _of_table(soft), float if type(alpha) is float else _of_number(alpha),
            None if past is None else _of_table(past) if type(past) is SoftTargets else _of_tensor(past),
            None if past_index is None else _of_tensor(past_index),
            float if type(past_weight) is float else _of_number(past_weight),
            temperature, type(ignore_index), ignore_index, label_smoothing, reduction, return_stats, backend,
        )  # fmt: skip
    except _Unplanned:
        return None


class _Unplanned(Exception):
    pass


_SCALARS = ("alpha", "past_weight")
_NUMBERS = (float, int)
_KINDS_OF_SETTINGS = (_NUMBERS, int, _NUMBERS, str, bool, str)


def _of_tensor(x) -> tuple:
    if type(x) in PLAIN:
        return x.shape, x.stride(), x.dtype, x.device, x.requires_grad, x.is_neg()
    raise _Unplanned


def _of_number(x):
    """Its value is no part of a kind."""
    if isinstance(x, _NUMBERS):
        return float
    if type(x) in PLAIN and not x.dim():
        kind = float if x.device.type == "cpu" else (x.dtype, x.device)
        return (kind, "learned") if x.requires_grad else kind
    raise _Unplanned


def _of_operand(x):
    return _of_tensor(x) if isinstance(x, Tensor) else _of_number(x)


def _of_table(x) -> tuple:
    if type(x) is SoftTargets:
        return x.kind
    raise _Unplanned
