"""The one place where the times and outputs of networks are turned into those of samplers and noising processes, and back.

These count the original steps of a process, or the noise fraction of a flow (0 data, 1 noise), and take a velocity to be
noise minus data. What a network means is its spec's `Prediction`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from graftax.spec import Prediction

STEPS = 1000
"""Of the process that times of the kind "index" count."""

Network = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""x (b, h, w, c), t (b,), conditions -> (b, h, w, out channels)."""


def time_at(prediction: Prediction, fraction: Any) -> Any:
    """The time that a network is given where the noise fraction is `fraction`: any shape, numpy or jax."""
    if prediction.time == "index":
        return fraction * STEPS
    return (fraction if prediction.time == "noise" else 1 - fraction) * prediction.scale


def noise_fraction(prediction: Prediction, t: Any) -> Any:
    """Inverse of `time_at`: where in the process times t, as a network takes them, lie, 0 data and 1 noise."""
    if prediction.time == "index":
        return t / STEPS
    return t / prediction.scale if prediction.time == "noise" else 1 - t / prediction.scale


def network_times(prediction: Prediction, t: Any) -> Any:
    """What a network is given at t, steps or fractions as its samplers and its noising count them."""
    return t if prediction.time == "index" else time_at(prediction, t)


def as_called(prediction: Prediction, network: Network) -> Network:
    """`network` as samplers and losses call it: with their times, and of a flow giving noise minus data (b, h, w, c)."""
    if not prediction.is_flow:
        return network

    def velocity(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        out = network(x, network_times(prediction, t), cond)[..., : x.shape[-1]]  # without a variance that no flow has
        return -out if prediction.time == "data" else out

    return velocity
