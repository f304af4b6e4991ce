"""Paths from data to noise in continuous time, and their training losses: flow matching, rectified flow, EDM.

Sources: Lipman et al. 2022 (arXiv 2210.02747), Liu et al. 2022 (arXiv 2209.03003), Esser et al. 2024 (arXiv 2403.03206,
"SD3"), Ma et al. 2024 (arXiv 2401.08740, "SiT"), Karras et al. 2022 (arXiv 2206.00364, "EDM"). A model returns (b, h, w, c),
by default the velocity noise - x0, with which x changes as the noise fraction grows. Networks that count the other way, or
give another sign, are turned to this by `graftax.models.prediction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.objective import PLAIN, Objective
from graftax.diffusion.process import Process
from graftax.diffusion.times import EDM_TIMES, UNIFORM, Times
from graftax.errors import BadInput
from graftax.paths import SIGMA_DATA, Level, ends, level, time_on
from graftax.spec import Prediction

WHAT = {"velocity": "a velocity", "eps": "noise", "score": "a score", "x0": "clean images"}


@dataclass(frozen=True)
class Flow:
    """x_t = alpha x0 + sigma noise along a path of `graftax.paths`: the continuous twin of `Process`, with the same
    methods.

    Wherever `t` is an argument it is (b,) float, a time of the path: the noise fraction, 0 data and 1 noise, or EDM's sigma.
    Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        path: "linear", x_t = (1 - t) x0 + t noise, "gvp", "vp" or "edm".
        target: what the model gives: "velocity", "eps", "x0" or "score".
    """

    path: str = "linear"
    target: str = "velocity"

    @classmethod
    def of(cls, prediction: Prediction) -> Flow:
        """What models that predict `prediction` are trained with."""
        return cls(prediction.path, "x0" if prediction.target == "edm" else prediction.target)

    @property
    def ends(self) -> tuple[float, float]:
        """Between which noise fractions models are trained (SiT's `check_interval`): not at pure noise or data where their
        target tells nothing of x or is infinite there; of EDM those of its sigmas."""
        if self.path == "edm":
            return ends("edm")
        if self.path == "vp":
            return 1e-5, 1.0
        return (0.0, 1.0) if self.target == "velocity" else (1e-3, 1 - 1e-3)

    def at(self, share: np.ndarray) -> np.ndarray:
        """The times (n,) float32 that lie `share` of the way from data to noise."""
        return np.asarray(self._times(np.asarray(share, np.float32)), np.float32)

    def draw(self, key: jax.Array, count: int, times: Times | None = None) -> jax.Array:
        """(count,) float32 times, as `times` says; None: evenly, of EDM as its authors do."""
        times = times or (EDM_TIMES if self.path == "edm" else UNIFORM)
        fraction = times.draw(key, count)
        return time_on(self.path, fraction) if times.kind == "lognormal" else self._times(fraction)

    def _times(self, share: Any) -> Any:
        least, most = self.ends
        fraction = share if (least, most) == (0, 1) else least + (most - least) * share
        return time_on("edm", fraction) if self.path == "edm" else fraction

    def model_times(self, t: jax.Array) -> jax.Array:
        """What a model is called with at `t`: the path's time itself."""
        return t

    def earlier(self, t: jax.Array, share: jax.Array) -> jax.Array:
        """Times (b,) with less noise than `t` by a share (b,) of the process, down to the data; of EDM's sigmas by a share
        of the noise fraction that they stand for, down to the least at which its models are asked."""
        if self.path != "edm":
            return jnp.maximum(t - share, 0)
        fraction = level("edm", t).fraction
        return time_on("edm", jnp.maximum(fraction - share, jnp.minimum(fraction, self.ends[0])))

    def q_sample(self, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        """x_t of x0, noise (b, h, w, c): (b, h, w, c) float32. Raises `BadInput` on shapes that do not fit."""
        _check(x0, t, noise)
        at = self._level(t)
        return at.alpha * x0.astype(jnp.float32) + at.sigma * noise.astype(jnp.float32)

    def training_losses(
        self, model_out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array, objective: Objective = PLAIN
    ) -> dict[str, jax.Array]:
        """The squared error of the target, by default of the velocity, weighted and added to as `objective` says.

        A score is judged by sigma times its error; x0 on EDM's path by the error of the network within its preconditioner,
        which is EDM's weight (sigma^2 + 1/4) / (sigma / 2)^2.

        model_out: (b, h, w, c), the model at (q_sample(x0, t, noise), t). Returns {"mse", "loss"} and the objective's other
        terms by name, each (b,) float32, one value per sample; "mse" is not weighted. Raises `BadInput` on shapes that do
        not fit, and on objectives that do not fit the target.
        """
        _check(x0, t, noise)
        if model_out.shape != x0.shape:
            raise BadInput(f"model output: shape {model_out.shape}, expected {WHAT[self.target]} {x0.shape}")
        if objective.of_velocities and self.target != "velocity":
            raise BadInput(f"objective: {objective} of {self.target!r}, expected a velocity")
        out, x0, noise = (array.astype(jnp.float32) for array in (model_out, x0, noise))
        at, flat = self._level(t), level(self.path, t.astype(jnp.float32))
        velocity = at.dalpha * x0 + at.dsigma * noise
        errors = {"x0": out - x0, "eps": out - noise, "score": at.sigma * out + noise, "velocity": out - velocity}
        mse = jnp.mean(errors[self.target] ** 2, axis=(1, 2, 3))  # (b, h, w, c) -> (b,)
        weight = objective.weight(self.target, flat)
        if self.path == "edm" and objective.weighting == "none":
            weight = (flat.sigma**2 + SIGMA_DATA**2) / (flat.sigma * SIGMA_DATA) ** 2
        more = objective.terms(out, velocity, flat.fraction) if objective.of_velocities else {}
        return {"mse": mse, **more, "loss": weight * mse + sum(more.values())}

    def _level(self, t: jax.Array) -> Level:
        """At t (b,), arrays (b, 1, 1, 1)."""
        return level(self.path, t.astype(jnp.float32)[:, None, None, None])


Noising = Process | Flow
"""How data become noise: in the steps of a process, or along a path."""


def _check(x0: jax.Array, t: jax.Array, noise: jax.Array) -> None:
    if x0.ndim != 4 or noise.shape != x0.shape:
        raise BadInput(f"noise: shape {noise.shape}, expected that of the data {x0.shape}, both (b, h, w, c)")
    if t.shape != x0.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
        raise BadInput(f"t: shape {t.shape} {t.dtype}, expected {x0.shape[:1]} of a float type")
