"""What arguments may be, for type checkers and completion."""

from typing import Any, Literal, TypeAlias

from torch import Tensor

Backend: TypeAlias = Literal["auto", "reference", "cpu", "triton", "cuda"]
Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine", "cityblock", "jeffreys"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]
Target: TypeAlias = Tensor | tuple[Tensor, Tensor, float | Tensor] | list[Any]  # a DataLoader makes lists of tuples
