"""How the errors of checks say what came."""

from torch import Tensor


def type_of(value) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
