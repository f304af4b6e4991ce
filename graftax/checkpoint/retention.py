"""Which checkpoints of a run stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graftax.errors import BadInput

BEST = ("min", "max")


@dataclass
class Retention:
    """A checkpoint stays while it is one of the newest `keep`, its step is a multiple of `every` (0: none), or no other
    has a better score (`best` "min" or "max", the later one of equals; None: scores do not count). `scores` are those
    given so far, by step.

    Raises `BadInput` on values out of range.
    """

    keep: int = 2
    every: int = 0
    best: str | None = None
    scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise BadInput(f"keep: got {self.keep}, expected 1 or more")
        if self.every < 0:
            raise BadInput(f"keep every: got {self.every}, expected 0 or more")
        if self.best not in (None, *BEST):
            raise BadInput(f"best: got {self.best!r}, expected one of {BEST} or None")

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The step with the best score; None where none has a number for one."""
        if self.best is None:
            return None
        scored = [step for step in steps if math.isfinite(self.scores.get(step, math.nan))]
        sign = 1 if self.best == "max" else -1
        return max(scored, key=lambda step: (sign * self.scores[step], step), default=None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer per checkpoint (objects with a `step`), oldest first: orbax's `PreservationPolicy`."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        staying = {*steps[-self.keep :], self.best_of(steps)}
        return [step in staying or (self.every > 0 and step % self.every == 0) for step in steps]
