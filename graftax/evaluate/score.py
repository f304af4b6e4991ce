"""Scores of pictures as named numbers, whoever judges them, and how these numbers are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number of a score.

    Attributes:
        key: its name in `Score.numbers` and in records.
        title: what it is called in sentences, "class accuracy".
        short: what it is called above a column of its own, "accuracy".
        share: whether it is a share in [0, 1], of which more is better; otherwise it is a distance, of which less is.
    """

    key: str
    title: str
    short: str
    share: bool = True

    def text(self, value: float) -> str:
        """A value as people read it."""
        return f"{value:.1%}" if self.share else f"{value:.3g}"

    def ahead(self, value: float) -> float:
        """A value as a key to sort by, the largest the best."""
        return value if self.share else -value


@dataclass(frozen=True)
class Score:
    """What a judge found.

    Attributes:
        numbers: by the keys of the judge's measures.
        count: of pictures.
    """

    numbers: Mapping[str, float]
    count: int

    def __getitem__(self, measure: Measure) -> float:
        return self.numbers[measure.key]

    def record(self) -> dict[str, Any]:
        """JSON types."""
        return {**self.numbers, "count": self.count}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Score:
        """Inverse of `record`. Raises `KeyError` where there is no count."""
        return cls({name: value for name, value in record.items() if name != "count"}, record["count"])
