"""What is made of a prediction's squared error, as one line of text: its weighting, and terms beside it.

none                                   the plain squared error of what the network predicts
min_snr(5)                             weighted with the signal-to-noise ratio, cut off
none + direction(1) + contrast(0.05)   with LightningDiT's cosine term, and contrastive flow matching
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.paths import Level

WEIGHTINGS = {"none": 0, "velocity": 0, "likelihood": 0, "min_snr": 1}
"""Weightings, and how many numbers each is said by."""
TERMS = ("direction", "contrast", "contrast_linear")
TEXT = "'none', 'velocity', 'likelihood' or 'min_snr(GAMMA)', and '+ direction(W)', '+ contrast(W)', '+ contrast_linear(W)'"


@dataclass(frozen=True)
class Objective:
    """How predictions are judged. Raises `BadInput` on values out of range.

    Attributes:
        weighting: of the noise's squared error, with d = sigma sigma' - sigma^2 alpha' / alpha: "velocity" (d / sigma)^2,
            "likelihood" d / sigma^2 (SiT, Eq. 9 and its code; of noise and score, for a velocity is not weighted), "min_snr"
            min(snr, gamma) of the error of x0, whatever is predicted (Hang et al. 2023, arXiv 2303.09556).
        gamma: of "min_snr".
        direction: weight of 1 - cosine of predicted and true velocity over the channels (LightningDiT, arXiv 2501.01423).
        contrast: weight of minus the squared distance to the next sample's velocity in the batch (contrastive flow matching,
            arXiv 2506.05350).
        contrast_linear: likewise, times the noise fraction.
    """

    weighting: str = "none"
    gamma: float = 5.0
    direction: float = 0.0
    contrast: float = 0.0
    contrast_linear: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.gamma, self.direction, self.contrast, self.contrast_linear)
        if self.weighting not in WEIGHTINGS or not self.gamma > 0 or not all(0 <= one < math.inf for one in numbers):
            raise BadInput(f"objective: got {self}, expected {TEXT}")

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From "min_snr(5) + direction(1)". Raises `BadInput` on other text."""
        fields: dict[str, str | float] = {}
        for part in str(text).split("+"):
            found = re.fullmatch(r"\s*(\w+)(?:\(([^()]+)\))?\s*", part)
            name, number = (found[1], found[2]) if found else ("", None)
            wanted = WEIGHTINGS.get(name, 1 if name in TERMS else -1)
            key = "weighting" if name in WEIGHTINGS else name
            try:
                numbers = [] if number is None else [float(number)]
            except ValueError:
                numbers = [math.nan]
            if len(numbers) != wanted or key in fields:
                raise BadInput(f"objective: got {text}, expected {TEXT}")
            fields |= {"weighting": name} if key == "weighting" else {}
            fields |= {"gamma" if key == "weighting" else key: number for number in numbers}
        return cls(**fields)  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        weighting = f"min_snr({self.gamma:g})" if self.weighting == "min_snr" else self.weighting
        return " + ".join([weighting, *(f"{name}({value:g})" for name in TERMS if (value := getattr(self, name)))])

    @property
    def of_velocities(self) -> bool:
        """Whether it has a term that only velocities have."""
        return bool(self.direction or self.contrast or self.contrast_linear)

    def weight(self, target: str, at: Level) -> jax.Array:
        """(b,) factor of the target's squared error; a score's is that of sigma times it. Raises `BadInput` where the
        weighting does not fit."""
        if self.weighting == "none":
            return jnp.ones_like(at.sigma)
        snr = (at.alpha / at.sigma) ** 2
        if self.weighting == "min_snr":
            if target in ("eps", "score"):
                return jnp.minimum(1, self.gamma / snr)
            to_x0 = 1.0 if target == "x0" else at.sigma / (at.alpha * at.dsigma - at.sigma * at.dalpha)
            return jnp.minimum(snr, self.gamma) * to_x0**2
        if target not in ("eps", "score"):
            raise BadInput(f"objective: weighting {self.weighting!r} of {target!r}, expected 'eps' or 'score', or 'none'")
        d = at.sigma * at.dsigma - at.sigma**2 * at.dalpha / at.alpha
        return (d / at.sigma) ** 2 if self.weighting == "velocity" else d / at.sigma**2

    def terms(self, velocity: jax.Array, true: jax.Array, fraction: jax.Array) -> dict[str, jax.Array]:
        """The weighted terms beside the error, each (b,), of velocities (b, h, w, c) at noise fractions (b,)."""
        found: dict[str, jax.Array] = {}
        if self.direction:
            cosine = jnp.sum(_unit(velocity) * _unit(true), -1)  # (b, h, w)
            found["direction"] = self.direction * (1 - jnp.mean(cosine, axis=(1, 2)))
        if self.contrast or self.contrast_linear:
            apart = jnp.mean((velocity - jnp.roll(true, 1, axis=0)) ** 2, axis=(1, 2, 3))
            found["contrast"] = -(self.contrast + self.contrast_linear * fraction) * apart
        return found


def _unit(x: jax.Array) -> jax.Array:
    """x (..., c) over its length, which counts as 1e-8 at least, as in PyTorch's `cosine_similarity`. Its gradient is finite
    at 0 too, where a fresh model begins, whose last layer is zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-16))


PLAIN = Objective()
