"""Checks of one argument each. The error names the argument, what was expected and what came: TypeError for what is of
another kind, ValueError for what is out of range."""

import math
import operator
import reprlib
from fractions import Fraction
from numbers import Integral, Real

import torch
from torch import Tensor

_INTS = (int, torch.SymInt)  # of traced calls
_NUMBERS = (float, *_INTS, torch.SymFloat, Real)
_LABELS = (torch.int64, torch.int32, torch.uint8)


def check_number(name: str, value, low: float, high: float, brackets: str = "[]") -> float:
    """`value` as a float: a real number from low to high, which belong to what is allowed as the brackets say."""
    is_number = isinstance(value, _NUMBERS) and not isinstance(value, Fraction)  # torch takes none
    if (
        not is_number
        or not (low < value if brackets[0] == "(" else low <= value)
        or not (value < high if brackets[1] == ")" else value <= high)
    ):
        expected = f"a number in {brackets[0]}{low}, {high}{brackets[1]}"
        raise (ValueError if is_number else TypeError)(f"{name} must be {expected}, got {came(value)}")
    return float(value)


def check_positive(name: str, value) -> float:
    """Likewise, above 0 and finite."""
    return check_number(name, value, 0, math.inf, "()")


def check_int(name: str, value, low: int | None = None, high: int | None = None, *, or_none: bool = False):
    """`value` as an int, which it is, or NumPy's is, and no bool, of at least `low` and at most `high`."""
    if value is None and or_none:
        return None
    is_int = isinstance(value, (*_INTS, Integral)) and not isinstance(value, bool)
    if not is_int or (low is not None and value < low) or (high is not None and value > high):
        expected = "" if low is None else f" >= {low}" if high is None else f" in [{low}, {high}]"
        expected += " or None" if or_none else ""
        raise (ValueError if is_int else TypeError)(f"{name} must be an int{expected}, got {came(value)}")
    return value if isinstance(value, _INTS) else operator.index(value)


def check_int64(name: str, value) -> int:
    value = check_int(name, value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit into int64, got {value}")
    return value


def check_labels(name: str, value) -> None:
    if not isinstance(value, Tensor) or value.dtype not in _LABELS:
        raise TypeError(f"{name} must hold int64, int32 or uint8 labels, got {type_of(value)}")


def check_floating(name: str, value) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {type_of(value)}")


def came(value) -> str:
    """A number or setting as an error shows it."""
    return f"a {value.dtype} tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)


def type_of(value) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
