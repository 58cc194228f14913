"""Of a test with many parameters the cases that every run takes: as few as bring each two values together once.

What three values break only together is left to `make check-more`, which runs all cases.
"""

from itertools import combinations, groupby

import pytest
import torch

PLAIN = (str, int, float, type(None), torch.dtype)  # bool is an int


def pairs(item):
    """The pairs of (parameter, value) that come together in this case."""
    values = [
        (name, str(value) if isinstance(value, PLAIN) else id(value)) for name, value in item.callspec.params.items()
    ]
    return set(combinations(values, 2))


def cover(sets):
    """Places of sets, greedily few, that have all elements of all of them."""
    missing, chosen = set().union(*sets), set()
    while missing:
        best = max(range(len(sets)), key=lambda place: len(sets[place] & missing))
        missing -= sets[best]
        chosen.add(best)
    return chosen


def mark_others_as_more(items):
    """Marks the cases of each test with three parameters or more that repeat pairs of values."""
    of_many = (item for item in items if len(getattr(getattr(item, "callspec", None), "params", ())) > 2)
    for _, cases in groupby(of_many, key=lambda item: item.nodeid.partition("[")[0]):
        cases = [case for case in cases if case.get_closest_marker("more") is None]
        chosen = cover([pairs(case) for case in cases])
        for place, case in enumerate(cases):
            if place not in chosen:
                case.add_marker(pytest.mark.more)
