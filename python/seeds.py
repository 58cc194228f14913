"""What several seeds say: a mean with its spread, and paired differences with their intervals."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from scipy.special import stdtrit  # scipy.stats takes half a second longer to load

CONFIDENCE = 0.95
FEW_SEEDS = 3  # with fewer a difference is shown without a verdict


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; the value alone where it is one."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and half the width of its t interval; None of a single pair."""

    mean: float
    half: float | None
    pairs: int

    @classmethod
    def of(cls, values: list[float]) -> Difference:
        n = len(values)
        half = None
        if n > 1:
            half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * statistics.stdev(values) / math.sqrt(n)
        return cls(statistics.fmean(values), half, n)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0 and stands on enough seeds, else 0."""
        if self.half is None or self.pairs < FEW_SEEDS or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1

    def shown(self, scale: float, digits: int) -> str:
        mean = f"{scale * self.mean:+.{digits}f}"
        if self.half is None:
            return f"{mean} (one seed)"
        text = f"{mean} ± {scale * self.half:.{digits}f}"
        return f"**{text}**" if self.sign else text
