"""The straight path from data to noise, and its training loss: flow matching, or rectified flow.

Sources: Lipman et al. 2022 (arXiv 2210.02747), Liu et al. 2022 (arXiv 2209.03003), Esser et al. 2024 (arXiv 2403.03206,
"SD3"). A model returns (b, h, w, c): the velocity noise - x0, with which x changes as the noise fraction grows. Networks
that count the other way, or give another sign, are turned to this by `graftax.models.prediction`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.process import Process
from graftax.diffusion.times import UNIFORM, Times
from graftax.errors import BadInput


@dataclass(frozen=True)
class Flow:
    """x_t = (1 - t) x0 + t noise, t the noise fraction: the continuous twin of `Process`, with the same methods.

    Wherever `t` is an argument it is (b,) float, 0 data and 1 noise. Hashable, so it can be a static argument of `jax.jit`.
    """

    def at(self, share: np.ndarray) -> np.ndarray:
        """The times (n,) float32 that lie `share` of the way from data to noise."""
        return np.asarray(share, np.float32)

    def draw(self, key: jax.Array, count: int, times: Times = UNIFORM) -> jax.Array:
        """(count,) float32 times, as `times` says."""
        return times.draw(key, count)

    def model_times(self, t: jax.Array) -> jax.Array:
        """What a model is called with at `t`: the noise fraction itself."""
        return t

    def q_sample(self, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        """x_t of x0, noise (b, h, w, c): (b, h, w, c) float32. Raises `BadInput` on shapes that do not fit."""
        _check(x0, t, noise)
        fraction = t.astype(jnp.float32)[:, None, None, None]
        return (1 - fraction) * x0.astype(jnp.float32) + fraction * noise.astype(jnp.float32)

    def training_losses(self, model_out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        """The mean squared error of the velocity: loss = mse.

        model_out: (b, h, w, c), the model at (q_sample(x0, t, noise), t). Returns {"mse", "loss"}, each (b,) float32, one
        value per sample. Raises `BadInput` on shapes that do not fit.
        """
        _check(x0, t, noise)
        if model_out.shape != x0.shape:
            raise BadInput(f"model output: shape {model_out.shape}, expected a velocity {x0.shape}")
        velocity = noise.astype(jnp.float32) - x0.astype(jnp.float32)
        mse = jnp.mean((model_out.astype(jnp.float32) - velocity) ** 2, axis=(1, 2, 3))  # (b, h, w, c) -> (b,)
        return {"mse": mse, "loss": mse}


Noising = Process | Flow
"""How data become noise: in the steps of a process, or along the straight path."""


def _check(x0: jax.Array, t: jax.Array, noise: jax.Array) -> None:
    if x0.ndim != 4 or noise.shape != x0.shape:
        raise BadInput(f"noise: shape {noise.shape}, expected that of the data {x0.shape}, both (b, h, w, c)")
    if t.shape != x0.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
        raise BadInput(f"t: shape {t.shape} {t.dtype}, expected {x0.shape[:1]} of a float type")
