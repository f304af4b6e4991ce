"""DDPM and DDIM sampling as one `lax.scan`: a pure function to be jitted whole by its caller."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.guidance import ModelFn
from graftax.diffusion.process import Process, interpolate, split_output
from graftax.errors import BadInput

Sampler = Literal["ddpm", "ddim"]


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


def sample(
    model_fn: ModelFn,
    process: Process,
    x_init: jax.Array,
    y: jax.Array,
    key: jax.Array | None = None,
    sampler: Sampler = "ddpm",
    eta: float = 0.0,
    step_noise: jax.Array | None = None,
    clip: bool = False,
) -> jax.Array:
    """Denoise `x_init` through all kept steps of `process`, in float32.

    "ddpm": ancestral sampling with the learned variance (DDPM Algorithm 2, IDDPM Eq. 15). "ddim": Song et al.
    2020 (arXiv 2010.02502) Eq. 12 with sigma of Eq. 16 scaled by `eta` in [0, 1]; 0 is deterministic, and 1
    has DDPM's mean. No noise is added at the last step.

    model_fn: see `ModelFn`, called with int32 original timesteps. x_init: (b, h, w, c), unit Gaussian noise;
    y: (b,) classes. step_noise: (len(process), b, h, w, c) with step 0 the noisiest, unit Gaussian; if None,
    step i draws `unit_noise(key, i, ...)`. Deterministic DDIM uses neither. clip: hold the predicted x0 within
    [-1, 1], for models of pixels. Returns (b, h, w, c) float32. Pure and traceable: process, sampler, eta and
    clip are static.

    Raises BadInput on an unknown sampler, an eta out of range or given to "ddpm", shapes that do not fit, and
    noise that is needed but has neither key nor array.
    """
    noisy = sampler == "ddpm" or eta > 0
    _check(process, x_init, y, key, sampler, eta, step_noise, noisy)

    def denoise(x: jax.Array, inputs: tuple[jax.Array, _Step, jax.Array | None]) -> tuple[jax.Array, None]:
        i, step, noise = inputs
        out = model_fn(x, jnp.full(y.shape, step.timestep), y)
        eps, v = split_output(out, x.shape)
        x0 = step.x_scale * x - step.eps_scale * eps
        if clip:
            x0 = jnp.clip(x0, -1, 1)
        x_next = step.x0_weight * x0 + step.x_weight * x
        if not noisy:
            return x_next, None
        if noise is None:
            assert key is not None  # by _check
            noise = unit_noise(key, i, x.shape)
        std = step.std
        if sampler == "ddpm":
            std *= jnp.exp(0.5 * interpolate(v, step.log_variance_low, step.log_variance_high))
        return x_next + std * noise.astype(x.dtype), None

    inputs = (jnp.arange(len(process)), _schedule(process, sampler, eta), step_noise)
    x, _ = jax.lax.scan(denoise, x_init.astype(jnp.float32), inputs)
    return x


def unit_noise(key: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise of `shape` (b, ...) float32 for a step's `number`.

    `key` is one key for the whole batch, or keys (b,), one per image: then an image is the same whatever it is drawn with.
    """
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, number), shape)
    return jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, number), shape[1:]))(key)


def _schedule(process: Process, sampler: Sampler, eta: float) -> _Step:
    """Per-step scalars, computed in float64, given as float32 and reversed.

    DDIM's "direction to x_t" is written through x0 and x_t instead of eps. So the posterior mean of DDPM
    (Eq. 7) is the case eta = 1, and a clipped x0 needs no second eps.
    """
    c = process.tables
    sigma = (1.0 if sampler == "ddpm" else eta) * np.sqrt(c.posterior_variance)
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
    process: Process,
    x_init: jax.Array,
    y: jax.Array,
    key: jax.Array | None,
    sampler: Sampler,
    eta: float,
    step_noise: jax.Array | None,
    noisy: bool,
) -> None:
    if sampler not in ("ddpm", "ddim"):
        raise BadInput(f"sampler: {sampler!r}, expected 'ddpm' or 'ddim'")
    if not 0 <= eta <= (1 if sampler == "ddim" else 0):
        raise BadInput(f"eta: {eta} with {sampler!r}, expected 0..1 for 'ddim' and 0 for 'ddpm'")
    if x_init.ndim != 4 or y.shape != x_init.shape[:1]:
        raise BadInput(f"x_init, y: shapes {x_init.shape}, {y.shape}, expected (b, h, w, c) and (b,)")
    if step_noise is not None and step_noise.shape != (len(process), *x_init.shape):
        raise BadInput(f"step_noise: shape {step_noise.shape}, expected {(len(process), *x_init.shape)}")
    if key is not None and key.shape not in ((), y.shape):
        raise BadInput(f"key: shape {key.shape}, expected one key, or one for each of {y.shape[0]} images")
    if noisy and key is None and step_noise is None:
        raise BadInput(f"noise of {sampler!r} with eta {eta}: neither key nor step_noise given, expected one")
