"""What all backbones say of the times that they are given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.models.model import all_known
from graftax.models.prediction import STEPS
from graftax.spec import ModelSpec

FEW, MANY = (256, 0.5), (4096, 1.15)
"""Image tokens, and Flux' shift mu there."""


def check_times(spec: ModelSpec, t: jax.Array) -> None:
    """Raise `BadInput` where times t (b,), as far as they are known, are not such as the network was trained with."""
    if spec.prediction.time == "log_sigma":  # any number
        if not all_known(t, jnp.isfinite):
            raise BadInput(f"t: {some(t)}, expected ln(sigma) / 4, finite")
        return
    index = spec.prediction.time == "index"
    last = STEPS if index else spec.prediction.scale
    if not all_known(t, lambda t: (t >= 0) & ((t < last) if index else (t <= last))):
        raise BadInput(f"t: {some(t)}, expected times in [0, {last:g}{')' if index else ']'}")


def resolution_shift(tokens: int) -> float:
    """The shift (`Sampling.shift`) of noise fractions for images of so many tokens, as Flux-dev is drawn: e^mu, mu a line
    through 0.5 at 256 tokens and 1.15 at 4096, beyond them too."""
    slope = (MANY[1] - FEW[1]) / (MANY[0] - FEW[0])
    return math.exp(FEW[1] + slope * (tokens - FEW[0]))


def some(values: jax.Array) -> str:
    """The first few values, for a message."""
    return f"{np.asarray(values)[:8].tolist()}{' ..' if len(values) > 8 else ''}"


__all__ = ["STEPS", "check_times", "resolution_shift", "some"]
