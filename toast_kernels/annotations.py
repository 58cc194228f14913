"""What arguments may be, for type checkers and completion; and how errors say what came instead."""

from typing import Any, Literal, TypeAlias

from torch import Tensor

Backend: TypeAlias = Literal["auto", "reference", "cpu", "triton", "cuda"]
Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]
Target: TypeAlias = Tensor | tuple[Tensor, Tensor, float | Tensor] | list[Any]  # a DataLoader makes lists of tuples


def type_of(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
