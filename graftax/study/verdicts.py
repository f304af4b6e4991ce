"""Whether one group of trainings is ahead of another, by their numbers and these numbers' spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from graftax.evaluate.score import Measure

HOLDS, OPPOSITE, OPEN = "holds", "the opposite holds", "not decidable at this size"

ENOUGH = 2.0
"""Standard errors from which a difference counts. Of equals, three seeds each, about one pair in nine differs by more
(Student's t of four degrees of freedom: 0.116)."""


@dataclass(frozen=True)
class Gap:
    """How far the first of two groups is ahead of the second.

    Attributes:
        ahead: difference of their means, above 0 where the first is better.
        error: its standard error, from the variance pooled over both; infinite where no group has two runs.
    """

    ahead: float
    error: float

    @property
    def verdict(self) -> str:
        """`HOLDS` where the first is ahead by more than `ENOUGH` errors, `OPPOSITE` where it is behind so far, or `OPEN`."""
        if abs(self.ahead) <= ENOUGH * self.error:
            return OPEN
        return HOLDS if self.ahead > 0 else OPPOSITE

    @property
    def errors(self) -> str:
        """The difference in standard errors, in words."""
        if math.isinf(self.error):
            return "one seed, no error to compare with"
        return f"{abs(self.ahead) / self.error:.1f} standard errors" if self.error else "no spread"


def gap(first: Sequence[float], second: Sequence[float], measure: Measure) -> Gap:
    """Of the values of two groups by a measure, which says whether more is better. Both have one value or more."""
    better, worse = ([measure.ahead(value) for value in group] for group in (first, second))
    ahead = statistics.fmean(better) - statistics.fmean(worse)
    freedom = len(better) + len(worse) - 2
    if not freedom:
        return Gap(ahead, math.inf)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in (better, worse) for value in group)
    return Gap(ahead, math.sqrt(squares / freedom * (1 / len(better) + 1 / len(worse))))
