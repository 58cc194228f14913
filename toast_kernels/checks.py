"""Checks of one argument each. The error names the argument, what was expected and what came: TypeError for what is of
another kind, ValueError for what is out of range."""

import math
import reprlib
from numbers import Real

import torch
from torch import Tensor

_INTS = (int, torch.SymInt)  # of traced calls
_NUMBERS = (float, *_INTS, torch.SymFloat, Real)


def check_number(name: str, value, low: float, high: float, brackets: str = "[]") -> float:
    """`value` as a float: a real number from low to high, which belong to what is allowed as the brackets say."""
    is_number = isinstance(value, _NUMBERS)
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


def check_int(name: str, value, low: int | None = None, high: int | None = None, *, or_none: bool = False) -> None:
    """An int, not a bool, of at least `low` and at most `high`."""
    if value is None and or_none:
        return
    is_int = isinstance(value, _INTS) and not isinstance(value, bool)
    if not is_int or (low is not None and value < low) or (high is not None and value > high):
        expected = "" if low is None else f" >= {low}" if high is None else f" in [{low}, {high}]"
        expected += " or None" if or_none else ""
        raise (ValueError if is_int else TypeError)(f"{name} must be an int{expected}, got {came(value)}")


def check_floating(name: str, value) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {type_of(value)}")


def came(value) -> str:
    """A number or setting as an error shows it."""
    return f"a {value.dtype} tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)


def type_of(value) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
