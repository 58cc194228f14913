"""What blended_kl is asked and what it answers, declared once: every backend takes a Problem and returns Outputs."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..native import DTYPE

REDUCTION = {"none": 0, "mean": 1, "sum": 2}  # as Reduction in csrc/blended_kl.h

make = tuple.__new__  # make(Outputs, (loss, ...)) is Outputs(loss, ...) in half the time


class Table(NamedTuple):
    """R rows of probabilities over C classes; toast_kernels.SoftTargets has the three encodings."""

    values: Tensor  # [R, C] probabilities | [R, k] of them | [R, C] logits; each row contiguous
    indices: Tensor | None  # [R, k] int32, ascending: a top-k row
    logsumexp: Tensor | None  # [R] float64 of values / temperature: values are logits
    entropy: Tensor  # [R]
    filled: Tensor  # [R] bool
    temperature: float

    def rows(self, index) -> "Table":
        return Table(*(x[index] if isinstance(x, Tensor) else x for x in self))

    def dense(self, num_classes: int, masked: Tensor | None = None) -> Tensor:
        """[R, C] probabilities in float32 (float64 for float64 values); zeros in the rows that are not filled.

        masked: bool [R, C], the classes that get nothing of a top-k row's tail; None: there are none.
        """
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.logsumexp is not None:
            probs = torch.softmax(values / self.temperature, dim=1)
        elif self.indices is not None:
            listed = self.indices.long()
            sharing = torch.ones_like(values[:, :1], dtype=torch.bool) if masked is None else ~masked
            sharing = sharing.expand(-1, num_classes).scatter(1, listed, False)
            probs = torch.where(sharing, tail(values, sharing.sum(1).clamp(min=1))[:, None], 0).scatter(
                1, listed, values
            )
        else:
            probs = values
        return torch.where(self.filled[:, None], probs, 0)


def tail(values: Tensor, sharing: int | Tensor) -> Tensor:
    """[R] probability of each of the classes, `sharing` of them (a number, or [R]), that share what top-k rows leave of
    1; 0 where rounding leaves a sum above 1."""
    return (1 - values.sum(dim=1)).clamp(min=0) / sharing


class Problem(NamedTuple):
    """Labels are int64; lam, weight, upstream and entropies have the dtype of the loss. All but rows of classes is
    contiguous."""

    logits: Tensor  # [N, C], each row contiguous
    target: Tensor  # [N] labels | [N, C] class probabilities
    target_b: Tensor | None  # [N]: the second label of a Mixup pair, with
    lam: Tensor | None  # [N]: the share of the first
    weight: Tensor | None  # [C]
    soft: Table | None  # C rows
    alpha: float | Tensor | None  # a number, or [] on the GPU of the logits
    past: Table | None  # M rows
    past_index: Tensor | None  # [N]
    past_weight: float | Tensor | None  # as alpha
    upstream: Tensor | None  # [] | [N]: what the gradient is multiplied by before it is rounded
    temperature: float
    ignore_index: int
    label_smoothing: float
    reduction: str
    need_gradient: bool
    need_stats: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the loss: what is computed in."""
        return loss_dtype(self.logits.dtype)

    @property
    def has_labels(self) -> bool:
        return not self.target.is_floating_point()


class Outputs(NamedTuple):
    loss: Tensor  # [], or [N] for reduction "none"
    gradient: Tensor | None  # [N, C], contiguous
    stats: Tensor | None  # [2, N]: cross-entropy against the labels alone, logsumexp
    argmax: Tensor | None  # [N] int64


def loss_dtype(logits: torch.dtype) -> torch.dtype:
    return torch.float64 if logits == torch.float64 else torch.float32


def is_traced() -> bool:
    """Whether a compiler or another dispatch mode (make_fx, fake tensors) sees the call: values may be unknown then."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def number(value):
    """The number in a 0-d tensor on the CPU; what is on a GPU, or unknown in a traced call, stays a tensor."""
    if type(value) is float or not isinstance(value, Tensor) or is_traced():  # floats take no time
        return value
    return value.item() if value.device.type == "cpu" else value.resolve_neg()


def allocate(problem: Problem) -> Outputs:
    """Outputs that are not written yet."""
    logits, dtype = problem.logits, problem.dtype
    num_rows = logits.shape[0]
    loss = logits.new_empty((num_rows,) if problem.reduction == "none" else (), dtype=dtype)
    gradient = logits.new_empty(logits.shape) if problem.need_gradient else None
    if not problem.need_stats:
        return Outputs(loss, gradient, None, None)
    stats, argmax = logits.new_empty((2, num_rows), dtype=dtype), logits.new_empty(num_rows, dtype=torch.int64)
    return Outputs(loss, gradient, stats, argmax)


class Allocation:
    """Outputs for problems of one layout, made in less time than `allocate` takes where the loss is one number."""

    def __init__(self, problem: Problem):
        logits = problem.logits
        self.loss = None if problem.reduction == "none" else logits.new_empty((), dtype=problem.dtype)
        self.contiguous = logits.is_contiguous()
        self.argmax = logits.new_empty(0, dtype=torch.int64) if problem.need_stats else None

    def __call__(self, problem: Problem) -> Outputs:
        if self.loss is None:
            return allocate(problem)
        logits, gradient, stats, argmax = problem[0], None, None, None
        if problem.need_gradient:
            gradient = torch.empty_like(logits) if self.contiguous else logits.new_empty(logits.shape)
        if self.argmax is not None:
            num_rows = logits.shape[0]
            stats, argmax = self.loss.new_empty(2, num_rows), self.argmax.new_empty(num_rows)
        return make(Outputs, (torch.empty_like(self.loss), gradient, stats, argmax))


# The schema of the op: the fields of Problem, those of a Table with its name before them.
_TYPES = {Tensor: "Tensor", float: "float", int: "int", str: "str", bool: "bool"}


def schema() -> str:
    """Of the op that takes what `arguments_of_op` gives."""
    arguments = []
    for name, kind in Problem.__annotations__.items():
        if kind == Table | None:
            arguments += [f"Tensor? {name}_{field}" for field in Table._fields[:-1]] + [f"float {name}_temperature"]
        else:
            arguments.append(f"{_TYPES.get(kind, 'Tensor?')} {name}")
    return ", ".join(arguments)


def flatten(problem: Problem) -> list:
    """All fields, those of a table in its place."""
    fields = []
    for name, value in zip(Problem._fields, problem, strict=True):
        if name in ("soft", "past"):
            fields += (None,) * 5 + (1.0,) if value is None else value
        else:
            fields.append(value)
    return fields


def arguments_of_op(problem: Problem) -> list:
    """The fields as the op takes them: numbers that may be tensors as float64 tensors."""

    def tensor(x):
        device = x.device if isinstance(x, Tensor) else "cpu"
        return None if x is None else torch.as_tensor(x, dtype=torch.float64, device=device)

    alpha, past_weight = tensor(problem.alpha), tensor(problem.past_weight)
    return flatten(problem._replace(alpha=alpha, past_weight=past_weight))


def none_as_empty(results: tuple, like: Tensor) -> tuple:
    """As an op returns them, which has tensors alone to return: what there is none of is empty."""
    return tuple(like.new_empty(0) if x is None else x for x in results)


def unflatten(arguments) -> Problem:
    """The inverse of `flatten`."""
    rest = list(arguments)
    fields = []
    for name in Problem._fields:
        if name in ("soft", "past"):
            table, rest = rest[: len(Table._fields)], rest[len(Table._fields) :]
            fields.append(None if table[0] is None else Table(*table))
        else:
            fields.append(rest.pop(0))
    return Problem(*fields)


def layout(problem: Problem, outputs: Outputs) -> tuple:
    """What the kernels in C++ and CUDA are told once of problems of one kind, in the order of csrc/bindings.h: where
    tensors and numbers stand in a Problem and its Outputs, which they get in each call; sizes, strides and settings."""
    logits, upstream = problem.logits, problem.upstream
    return (
        list(_places(problem, outputs)), Problem._fields.index("alpha"), Problem._fields.index("past_weight"),
        DTYPE[logits.dtype], *logits.shape, logits.stride(0),
        None if problem.has_labels else _rows(problem.target, 1.0),
        None if problem.soft is None else _rows(problem.soft.values, problem.soft.temperature),
        None if problem.past is None else _rows(problem.past.values, problem.past.temperature),
        problem.temperature, problem.ignore_index, problem.label_smoothing, REDUCTION[problem.reduction],
        0 if upstream is None else upstream.dim(),
    )  # fmt: skip


def _rows(values: Tensor, temperature: float) -> tuple:
    return (DTYPE[values.dtype], *values.shape, values.stride(0), temperature)


def _places(problem: Problem, outputs: Outputs) -> Iterator[tuple[str, int, int]]:
    """Of each tensor that there is: its name in csrc/bindings.h, its field of Problem or, counted on, of Outputs, and
    its field of a Table there, or -1."""
    for field, (name, x) in enumerate(zip(Problem._fields + Outputs._fields, problem + outputs, strict=True)):
        if isinstance(x, Table):
            yield from ((f"{name}_{x._fields[i]}", field, i) for i in range(len(x)) if isinstance(x[i], Tensor))
        elif isinstance(x, Tensor):
            yield "probabilities" if name == "target" and not problem.has_labels else name, field, -1
