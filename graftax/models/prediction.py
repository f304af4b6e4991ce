"""The one place where the times and outputs of networks are turned into those of samplers and noising processes, and back.

These count the time of the path (`graftax.paths`): the original steps of DDPM, the noise fraction of a flow (0 data,
1 noise), the sigma of EDM; and take a velocity to be the change of x with the noise fraction, noise minus data on the linear
path. What a network means is its spec's `Prediction`. Given x and the time, noise, velocity, x0, score and Karras's network
tell the same, and so does x on another path of the same sigma / alpha, but for its scale: so any of them is any other
(`Interface`), exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.paths import SIGMA_DATA, STEPS, Level, ends, level, time_on
from graftax.spec import Prediction

Network = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""x (b, h, w, c), t (b,), conditions -> (b, h, w, out channels)."""


def time_at(prediction: Prediction, fraction: Any) -> Any:
    """The time that a network is given where the noise fraction is `fraction`: any shape, numpy or jax. Of steps it is their
    share, of EDM sigma / (1 + sigma)."""
    if prediction.time == "index":
        return fraction * STEPS
    return network_times(prediction, time_on("edm", fraction) if prediction.time == "log_sigma" else fraction)


def noise_fraction(prediction: Prediction, t: Any) -> Any:
    """Inverse of `time_at`: where in the process times t, as a network takes them, lie, 0 data and 1 noise."""
    if prediction.time == "index":
        return t / STEPS
    time = path_times(prediction, t)
    return time / (1 + time) if prediction.time == "log_sigma" else time


def network_times(prediction: Prediction, t: Any) -> Any:
    """What a network is given at t, the time of its path, as samplers and noising count it: any shape, numpy or jax."""
    if prediction.time == "index":
        return t
    if prediction.time == "log_sigma":
        return (jnp if isinstance(t, jax.Array) else np).log(t) / 4
    return (t if prediction.time == "noise" else 1 - t) * prediction.scale


def path_times(prediction: Prediction, t: Any) -> Any:
    """Inverse of `network_times`."""
    if prediction.time == "index":
        return t
    if prediction.time == "log_sigma":
        return (jnp if isinstance(t, jax.Array) else np).exp(4 * t)
    return t / prediction.scale if prediction.time == "noise" else 1 - t / prediction.scale


@dataclass(frozen=True)
class Interface:
    """A network that predicts one thing on its own path, as one that predicts another on another.

    Attributes:
        inner: what the network predicts.
        target: what is made of it: "eps", "velocity", "x0" or "score".
        path: on which x and t are then. Where the network's own path does not reach so far, the nearest that it does counts.
    """

    inner: Prediction
    target: str
    path: str

    def enter(self, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x (b, h, w, c) on the path and the path's times t (b,), as the network takes them."""
        outer, time, inner = self._levels(t)
        scale = self._moved(outer, inner)
        if self.inner.target == "edm":
            scale = scale * (inner.sigma**2 + SIGMA_DATA**2) ** -0.5  # its c_in
        return x * _spread(scale, x), network_times(self.inner, time)

    def leave(self, out: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """The target (b, h, w, c), of what the network gave (its variance is left out) for x and t, as `enter` took them."""
        out = out[..., : x.shape[-1]]
        if self.inner.target == "velocity" and self.inner.time == "data":
            out = -out
        if (self.inner.target, self.inner.path) == (self.target, self.path):
            return out
        outer, inner = (jax.tree.map(lambda part: _spread(part, x), one) for one in self._levels(t)[::2])
        x0, noise = _both(self.inner.target, out, x * self._moved(outer, inner), inner)
        if self.target == "velocity":
            return outer.dalpha * x0 + outer.dsigma * noise
        return {"x0": x0, "eps": noise, "score": -noise / outer.sigma}[self.target]

    def _levels(self, t: jax.Array) -> tuple[Level, jax.Array, Level]:
        """The level on the path, and the network's path: its time, its level."""
        outer = level(self.path, t)
        if self.path == self.inner.path:
            return outer, t, outer
        fraction = jnp.clip(outer.fraction, *ends(self.inner.path))
        time = time_on(self.inner.path, fraction)
        return level(self.path, time_on(self.path, fraction)), time, level(self.inner.path, time)

    def _moved(self, outer: Level, inner: Level) -> Any:
        """What x on the path is multiplied by to be on the network's."""
        same = self.path == self.inner.path
        return jnp.ones_like(outer.alpha) if same else (inner.alpha + inner.sigma) / (outer.alpha + outer.sigma)


def _spread(values: Any, x: jax.Array) -> jax.Array:
    """(b,) -> (b, 1, 1, 1) in the type of x."""
    return jnp.asarray(values, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _both(target: str, out: jax.Array, x: jax.Array, at: Level) -> tuple[jax.Array, jax.Array]:
    """x0 and noise of x = alpha x0 + sigma noise (b, h, w, c), where a network gave `out` for the target."""
    if target == "velocity":
        turn = at.alpha * at.dsigma - at.sigma * at.dalpha
        return (at.dsigma * x - at.sigma * out) / turn, (at.alpha * out - at.dalpha * x) / turn
    if target in ("eps", "score"):
        noise = out if target == "eps" else -at.sigma * out
        return (x - at.sigma * noise) / at.alpha, noise
    if target == "edm":
        total = at.sigma**2 + SIGMA_DATA**2
        out = SIGMA_DATA**2 / total * x + at.sigma * SIGMA_DATA * total**-0.5 * out
    return out, (x - at.alpha * out) / at.sigma


def as_called(prediction: Prediction, network: Network, target: str = "", path: str = "") -> Network:
    """`network` as samplers and losses call it: x on `path` at the path's own times, what comes back is the target.

    `target` "" is the network's own, of EDM x0, and `path` its own. A network of noise at DDPM's steps is then itself, with
    its variance channels; no other gives any.
    """
    target, path = target or {"edm": "x0"}.get(prediction.target, prediction.target), path or prediction.path
    if (prediction.target, prediction.path) == (target, path) == ("eps", "ddpm"):
        return network
    interface = Interface(prediction, target, path)

    def called(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return interface.leave(network(*interface.enter(x, t), cond), x, t)

    return called


def given(prediction: Prediction, x: jax.Array, t: jax.Array, path: str = "") -> tuple[jax.Array, jax.Array]:
    """What a network is given where samplers are at x (b, h, w, c) and t (b,) of `path`, "" being its own."""
    return Interface(prediction, "eps", path or prediction.path).enter(x, t)


def entered(prediction: Prediction, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and t of a model as the network within is given them, where it is another (`Prediction.inner`)."""
    if prediction.inner is None:
        return x, t
    return Interface(prediction.inner, prediction.target, prediction.path).enter(x, path_times(prediction, t))


def left(prediction: Prediction, out: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """What a model makes of the output of the network within, `x` and `t` being the model's own."""
    if prediction.inner is None:
        return out
    interface = Interface(prediction.inner, prediction.target, prediction.path)
    found = interface.leave(out, x, path_times(prediction, t))
    return -found if (prediction.target, prediction.time) == ("velocity", "data") else found
