"""Which times a network is trained at: a distribution of the noise fraction (0 data, 1 noise), as one line of text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np

from graftax.errors import BadInput

A = TypeVar("A", float, np.ndarray, jax.Array)

KINDS = {"uniform": 2, "logit_normal": 2, "lognormal": 2, "shifted": 1}
"""Distributions, and how many numbers each is said by."""
FORMS = "'uniform', 'uniform(LOW, HIGH)' in 0..1, 'logit_normal(MEAN, STD)', 'lognormal(MEAN, STD)' or 'shifted(SHIFT)'"


def shifted(fraction: A, shift: float) -> A:
    """Noise fractions with odds `shift` times as large, as SD3 shifts times (Esser et al. 2024, arXiv 2403.03206); Flux's
    exponential shift by mu is the one by e^mu."""
    return shift * fraction / (1 + (shift - 1) * fraction)


@dataclass(frozen=True)
class Times:
    """A distribution of the noise fraction. Raises `BadInput` on names and numbers that are none.

    Attributes:
        kind: "uniform"; "logit_normal", the sigmoid of a normal number (SD3, section 3.1); "lognormal", of which sigma
            / alpha is e to a normal number (EDM, REPA), so that on the linear path it is "logit_normal"; "shifted",
            uniform, shifted.
        numbers: of "uniform" its ends, of the normal ones mean and deviation, of "shifted" the shift. Shifting a
            logit-normal adds the shift's logarithm to its mean; RAE shifts by sqrt(numbers of an image / 4096) (arXiv
            2510.11690).
    """

    kind: str = "uniform"
    numbers: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        good = len(self.numbers) == KINDS.get(self.kind, -1) and all(map(math.isfinite, self.numbers))
        if good and self.kind == "uniform":
            good = 0 <= self.numbers[0] < self.numbers[1] <= 1
        elif good:
            good = self.numbers[-1] > 0
        if not good:
            raise BadInput(f"times: got {self}, expected {FORMS}")

    @classmethod
    def parse(cls, text: str) -> Times:
        """From "uniform", "uniform(0.35, 0.8)", "logit_normal(0, 1)" or "shifted(3)". Raises `BadInput` on other text."""
        if text == "uniform":
            return cls()
        found = re.fullmatch(r"(\w+)\((.*)\)", text)
        try:
            return cls(found[1], tuple(float(number) for number in found[2].split(","))) if found else cls(text, ())
        except ValueError:
            raise BadInput(f"times: got {text}, expected {FORMS}") from None

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """(count,) float32 in 0..1: a path's noise fractions, of "lognormal" sigma / (alpha + sigma)."""
        if self.kind in ("logit_normal", "lognormal"):
            mean, deviation = self.numbers
            return jax.nn.sigmoid(mean + deviation * jax.random.normal(key, (count,)))
        if self.kind == "shifted":
            return shifted(jax.random.uniform(key, (count,)), *self.numbers)
        low, high = self.numbers
        return jax.random.uniform(key, (count,), minval=low, maxval=high)

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{number:g}' for number in self.numbers)})"


UNIFORM = Times()
EDM_TIMES = Times("lognormal", (-1.2, 1.2))
"""Karras et al. 2022, Table 1."""
