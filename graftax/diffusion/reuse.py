"""Which passes of a sampler take what blocks change from an earlier one, as one line of text (`graftax.models.reuse`)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftax.errors import BadInput

FORMS = "'first_block(THRESHOLD)', or 'table(POSITIONS, ROW, ROW, ..)' as `graftax reuse` finds it"


@dataclass(frozen=True)
class FirstBlock:
    """The first block decides at every call. Raises `BadInput` on thresholds that are none.

    Attributes:
        threshold: share by which its change must differ from that of the last whole pass for another one.
    """

    threshold: float
    kind: ClassVar[str] = "first_block"

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise BadInput(f"reuse: threshold {self.threshold}, expected 0 or more, finite")

    @property
    def summary(self) -> str:
        """A few words."""
        return str(self)

    def __str__(self) -> str:
        return f"first_block({self.threshold:g})"


@dataclass(frozen=True)
class Table:
    """What is computed at every call, chosen beforehand. Raises `BadInput` where the first call does not compute all.

    Attributes:
        computed: for each call of the model, noisiest first, whether each position of the program is computed.
    """

    computed: tuple[tuple[bool, ...], ...]
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        if not self.computed or not self.computed[0] or len({len(row) for row in self.computed}) != 1:
            raise BadInput(f"reuse: a table of {len(self.computed)} rows, expected one for each call, all of one length")
        if not all(self.computed[0]):
            raise BadInput("reuse: the first call leaves positions out, expected all: there is nothing to take yet")

    @property
    def share(self) -> float:
        """Share of the positions that are computed."""
        return float(np.mean(self.computed))

    @property
    def summary(self) -> str:
        """A few words."""
        return f"{self.share:.0%} of the blocks computed"

    def __str__(self) -> str:
        rows = (f"{int(''.join('01'[one] for one in row), 2):x}" for row in self.computed)
        return f"table({len(self.computed[0])}, {', '.join(rows)})"


Reuse = FirstBlock | Table


def parse_reuse(text: str) -> Reuse | None:
    """From text as `str` of one gives it; "" is None. A row of a table is a hexadecimal number, its highest bit position 0.
    Raises `BadInput` on other text."""
    if not text:
        return None
    found = re.fullmatch(r"(first_block|table)\((.*)\)", text.strip())
    try:
        if found and found[1] == "first_block":
            return FirstBlock(float(found[2]))
        if found:
            positions, *rows = (part.strip() for part in found[2].split(","))
            return Table(tuple(_bits(int(row, 16), int(positions)) for row in rows))
    except ValueError:
        pass
    raise BadInput(f"reuse: got {text[:60]!r}, expected {FORMS}")


def _bits(number: int, positions: int) -> tuple[bool, ...]:
    if not 0 <= number < 2**positions:
        raise ValueError(number)
    return tuple(bit == "1" for bit in f"{number:0{positions}b}")


def check_share(share: float) -> None:
    """Raise `BadInput` where `share` is none that can be computed."""
    if not 0 < share <= 1:
        raise BadInput(f"share: got {share}, expected more than 0, at most 1")


def chosen(errors: np.ndarray, share: float) -> Table:
    """The table that computes at most `share` of all positions, with the least error for which that is so.

    errors (calls, longest, positions): how much what a position changes at a call differs from what it changed 1, 2, ..
    calls before, as a share of it; NaN where there is no such call. Of every position the last change that was computed is
    taken as long as its error is at most one threshold for all; the threshold is the least that leaves `share`. Source:
    SmoothCache (arXiv 2411.10510), section 3. Raises `BadInput` unless 0 < share <= 1, or where no threshold leaves so
    little: a change is taken for `longest` calls at most.
    """
    check_share(share)
    levels = np.unique(errors[np.isfinite(errors)])
    low, high = -1, len(levels) - 1  # below the first level everything is computed
    least = Table(_table(errors, levels[high])).share
    if least > share:
        longest = f"changes are taken {errors.shape[1]} times at most"
        raise BadInput(f"share: got {share}, expected {least:.3f} or more: {longest}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if Table(_table(errors, levels[middle])).share <= share else (middle, high)
    everything = Table(_table(errors, -1.0))
    return everything if everything.share <= share else Table(_table(errors, levels[high]))


def _table(errors: np.ndarray, threshold: float) -> tuple[tuple[bool, ...], ...]:
    calls, longest, positions = errors.shape
    age, rows = np.full(positions, longest), []  # calls since each position was computed, less one
    for call in range(calls):
        known = age < longest
        error = np.where(known, errors[call, np.minimum(age, longest - 1), np.arange(positions)], np.inf)
        computed = ~(error <= threshold)
        age = np.where(computed, 0, age + 1)
        rows.append(tuple(map(bool, computed)))
    return tuple(rows)
