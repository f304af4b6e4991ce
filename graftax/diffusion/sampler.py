"""DDPM and DDIM sampling, step by step (`Steps`) or whole as one `lax.scan` (`denoise`): pure functions, to be jitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.guidance import ModelFn
from graftax.diffusion.process import Process, interpolate, split_output
from graftax.diffusion.sampling import Sampler, Sampling, unit_noise
from graftax.errors import BadInput


class _Step(NamedTuple):
    """Scalars of one denoising step: x_{t-1} = x0_weight * x0 + x_weight * x_t + std * noise.

    As fields of a schedule they are arrays (steps,), noisiest step first.
    """

    timestep: jax.Array  # original index, for the model
    x_scale: jax.Array  # x0 = x_scale * x_t - eps_scale * eps
    eps_scale: jax.Array
    x0_weight: jax.Array
    x_weight: jax.Array
    std: jax.Array  # DDIM: sigma. DDPM: 1, to be scaled by the learned deviation; 0 at the last step
    log_variance_low: jax.Array
    log_variance_high: jax.Array


@dataclass(frozen=True)
class Steps:
    """The steps of a sampler, noisiest first.

    Attributes:
        model_fn: see `ModelFn`; called with int32 original timesteps.
        sampling: what is drawn; its guidance is not looked at, `model_fn` has it.
        clip: hold the predicted x0 within [-1, 1], for models of pixels.
    """

    model_fn: ModelFn
    sampling: Sampling
    clip: bool = False

    @property
    def noisy(self) -> bool:
        """Whether steps add noise."""
        return self.sampling.sampler == "ddpm" or self.sampling.eta > 0

    @property
    def timesteps(self) -> np.ndarray:
        """The original timestep of every step, (steps,) int32."""
        return self.sampling.process.timestep_map[::-1]

    def __call__(self, number: int | jax.Array, x: jax.Array, cond: Any, noise: jax.Array | None) -> jax.Array:
        """Step `number`: x (b, h, w, c) -> x one step cleaner. `noise` (b, h, w, c) is needed where steps add any."""
        step = jax.tree.map(lambda row: row[number], _schedule(self.sampling.process, self.sampling))
        return self._advance(step, x, cond, noise)

    def scan(self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None) -> jax.Array:
        """All steps as one loop; see `denoise`."""

        def body(x: jax.Array, inputs: tuple[jax.Array, _Step, jax.Array | None]) -> tuple[jax.Array, None]:
            i, step, noise = inputs
            if noise is None and self.noisy:
                assert keys is not None, "checked by denoise"
                noise = unit_noise(keys, i, x.shape[1:])
            return self._advance(step, x, cond, noise), None

        schedule = _schedule(self.sampling.process, self.sampling)
        return jax.lax.scan(body, x, (jnp.arange(self.sampling.steps), schedule, step_noise))[0]

    def _advance(self, step: _Step, x: jax.Array, cond: Any, noise: jax.Array | None) -> jax.Array:
        eps, v = split_output(self.model_fn(x, jnp.full(x.shape[:1], step.timestep), cond), x.shape)
        x0 = step.x_scale * x - step.eps_scale * eps
        if self.clip:
            x0 = jnp.clip(x0, -1, 1)
        x_next = step.x0_weight * x0 + step.x_weight * x
        if not self.noisy:
            return x_next
        assert noise is not None, "steps of this sampler add noise"
        std = step.std
        if self.sampling.sampler == "ddpm":
            std *= jnp.exp(0.5 * interpolate(v, step.log_variance_low, step.log_variance_high))
        return x_next + std * noise.astype(x.dtype)


def denoise(
    model_fn: ModelFn, sampling: Sampling, x_init: jax.Array, cond: Any, keys: jax.Array | None = None,
    step_noise: jax.Array | None = None, *, clip: bool = False,
) -> jax.Array:  # fmt: skip
    """Denoise `x_init` through all steps of `sampling`, in float32.

    "ddpm": ancestral sampling with the learned variance (DDPM Algorithm 2, IDDPM Eq. 15). "ddim": Song et al.
    2020 (arXiv 2010.02502) Eq. 12 with sigma of Eq. 16 scaled by `eta` in [0, 1]; 0 is deterministic, and 1
    has DDPM's mean. No noise is added at the last step.

    x_init: (b, h, w, c), unit Gaussian noise; cond: conditions, a tree of arrays (b, ...). step_noise: (steps, b, h, w, c)
    with step 0 the noisiest, unit Gaussian; if None, step i draws `unit_noise(keys, i, ...)` of one key for each image,
    keys (b,). Deterministic DDIM uses neither. `model_fn` and `clip` as in `Steps`. Returns (b, h, w, c) float32. Pure and
    traceable: sampling and clip are static.

    Raises BadInput on shapes that do not fit, and on noise that is needed but has neither keys nor array.
    """
    steps = Steps(model_fn, sampling, clip)
    _check(sampling, x_init, keys, step_noise, steps.noisy)
    return steps.scan(x_init.astype(jnp.float32), cond, keys, step_noise)


def _schedule(process: Process, sampling: Sampling) -> _Step:
    """Per-step scalars, computed in float64, given as float32 and reversed.

    DDIM's "direction to x_t" is written through x0 and x_t instead of eps. So the posterior mean of DDPM
    (Eq. 7) is the case eta = 1, and a clipped x0 needs no second eps.
    """
    c = process.tables
    sampler: Sampler = sampling.sampler
    sigma = (1.0 if sampler == "ddpm" else sampling.eta) * np.sqrt(c.posterior_variance)
    x_weight = np.sqrt((1 - c.alpha_bar_prev - sigma**2) / (1 - c.alpha_bar))
    rows = (
        1 / np.sqrt(c.alpha_bar),
        np.sqrt(1 / c.alpha_bar - 1),
        np.sqrt(c.alpha_bar_prev) - x_weight * np.sqrt(c.alpha_bar),
        x_weight,
        (sigma > 0).astype(float) if sampler == "ddpm" else sigma,
        c.log_variance_low,
        c.log_variance_high,
    )
    scalars = (jnp.asarray(row[::-1], jnp.float32) for row in rows)
    return _Step(jnp.asarray(process.timestep_map[::-1]), *scalars)


def _check(
    sampling: Sampling, x_init: jax.Array, keys: jax.Array | None, step_noise: jax.Array | None, noisy: bool
) -> None:
    if x_init.ndim != 4:
        raise BadInput(f"x_init: shape {x_init.shape}, expected (b, h, w, c)")
    if step_noise is not None and step_noise.shape != (sampling.steps, *x_init.shape):
        raise BadInput(f"step_noise: shape {step_noise.shape}, expected {(sampling.steps, *x_init.shape)}")
    if keys is not None and keys.shape != x_init.shape[:1]:
        raise BadInput(f"keys: shape {keys.shape}, expected one for each of {x_init.shape[0]} images")
    if noisy and keys is None and step_noise is None:
        raise BadInput(f"noise of {sampling}: neither keys nor step_noise given, expected one of them")
